# SPDX-License-Identifier: Apache-2.0
"""Labelled images: `img/` and `gt/`, in ICDAR 2015's format."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Truth:
    """Text instances of one image.

    Attributes:
        polygons: float64 (M, 2) each, in source pixels.
        ignored: Whether each is don't-care.
    """

    polygons: tuple[NDArray[np.float64], ...]
    ignored: tuple[bool, ...]


@dataclass(frozen=True)
class Sample:
    """One image of a data set with its truth."""

    image: Path
    truth: Truth


def load_dataset(directory: Path) -> list[Sample]:
    """Read a folder with `img/<stem>.<suffix>` and `gt/gt_<stem>.txt`, sorted by name.

    A line of truth is `x1,y1,...,x4,y4,transcription` (UTF-8, with or without a byte order mark); the
    transcription `###` means don't-care.

    Raises:
        InvalidInputError: A folder, a truth file or a line is missing or malformed; the message names it.
    """
    images, truths = directory / "img", directory / "gt"
    for folder in (images, truths):
        if not folder.is_dir():
            raise InvalidInputError(f"{directory} needs the folders img/ and gt/; {folder.name}/ is missing")
    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InvalidInputError(f"{images} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return [Sample(path, _read_truth(truths / f"gt_{path.stem}.txt")) for path in paths]


def _read_truth(path: Path) -> Truth:
    if not path.is_file():
        raise InvalidInputError(f"the truth file {path} is missing; write an empty one for an image without text")
    polygons, ignored = [], []
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 text: {error}. Convert it.") from error
    # Not splitlines: a transcription may hold characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        fields = line.split(",", 8)
        try:
            polygon = np.array([float(field) for field in fields[:8]]).reshape(4, 2)
            if not np.isfinite(polygon).all():
                raise ValueError("a coordinate is not finite")
        except ValueError as error:
            raise InvalidInputError(f"{path}:{number}: expected x1,y1,...,x4,y4,text; got {line!r}") from error
        polygons.append(polygon)
        ignored.append(len(fields) == 9 and fields[8].strip() == "###")
    return Truth(tuple(polygons), tuple(ignored))
