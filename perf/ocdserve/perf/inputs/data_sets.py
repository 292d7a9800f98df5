# SPDX-License-Identifier: Apache-2.0
"""Images with ground truth, read into memory before anything is timed."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from PIL import Image

from ocdserve.backend.evaluation.dataset import Truth, load_dataset
from ocdserve.contract import InvalidInputError


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One encoded image with its ground truth."""

    name: str
    encoded: bytes
    truth: Truth


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images that are summed up together.

    Raises:
        InvalidInputError: There is no image, or two have the same name.
    """

    name: str
    images: tuple[LabelledImage, ...]

    def __post_init__(self) -> None:
        names = {image.name for image in self.images}
        if not names or len(names) < len(self.images):
            raise InvalidInputError(
                f"data set {self.name!r}: {len(self.images)} images with {len(names)} different names; "
                "it needs at least one image, and a name of its own for each"
            )


def load_data_sets(folders: Sequence[Path]) -> tuple[DataSet, ...]:
    """Read data sets into memory.

    Args:
        folders: Data sets (img/ and gt/), or folders of such data sets.

    Raises:
        InvalidInputError: A folder holds no data set, or an image or its truth cannot be read.
    """
    found = []
    for folder in folders:
        if not (inside := _data_sets_in(folder)):
            raise InvalidInputError(f"{folder} is not a data set: it has no folder img/, nor has one of its folders")
        found += inside
    return tuple(map(_load, found))


def first_jpeg(data_sets: Sequence[DataSet], width: int, height: int) -> LabelledImage | None:
    """The first JPEG of this size in pixels; None where there is none."""
    for data in data_sets:
        for image in data.images:
            with Image.open(io.BytesIO(image.encoded)) as opened:
                if opened.format == "JPEG" and opened.size == (width, height):
                    return image
    return None


def photographs(folder: Path | None) -> list[tuple[str, bytes]]:
    """Names and contents of JPEG files, one of each data set in turn; empty where there are none.

    Args:
        folder: A data set (img/), or a folder of data sets; ground truth is not needed. None holds no files.
    """
    columns = [
        sorted(path for path in (data_set / "img").iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
        for data_set in (_data_sets_in(folder) if folder else ())
    ]
    return [(path.name, path.read_bytes()) for row in zip_longest(*columns) for path in row if path]


def _data_sets_in(folder: Path) -> list[Path]:
    """The folder itself where it has img/, otherwise those of its folders that do."""
    if (folder / "img").is_dir():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/img") if path.is_dir())


def _load(folder: Path) -> DataSet:
    samples = load_dataset(folder)
    images = (LabelledImage(sample.image.name, sample.image.read_bytes(), sample.truth) for sample in samples)
    return DataSet(folder.resolve().name, tuple(images))
