# SPDX-License-Identifier: Apache-2.0
"""Labelled images: `img/` and `gt/`, in the format of ICDAR 2015."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import IMAGE_SUFFIXES, InvalidInputError, is_image

DONT_CARE = "###"

# The byte order mark of UTF-8, decoded as UTF-8 and as Latin-1.
_BYTE_ORDER_MARKS = ("\ufeff", "\xef\xbb\xbf")
# Two numbers, and a comma where more follows.
_PAIR = re.compile(r" *([+-]?\d+(?:\.\d*)?) *, *([+-]?\d+(?:\.\d*)?) *(?:(,)|$)")
# Distance of a further corner from the one before, in lengths of the longest side so far.
_FARTHEST = 3.0


@dataclass(frozen=True)
class Truth:
    """Text instances of one image.

    Attributes:
        polygons: float64 (M, 2) each, in source pixels.
        ignored: Whether each is don't-care.
        texts: What each reads, None where that is not known; empty if it is known of none.
    """

    polygons: tuple[NDArray[np.float64], ...]
    ignored: tuple[bool, ...]
    texts: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One image of a data set with its truth."""

    image: Path
    truth: Truth


def load_dataset(directory: Path) -> list[Sample]:
    """Read a folder with `img/<stem>.<suffix>` and `gt/gt_<stem>.txt`, sorted by name; hidden files are left out.

    A line of truth is `x1,y1,...,x4,y4,transcription`, or with more corners (`parse_outline`), in UTF-8 with or without
    a byte order mark; the transcription `###` means don't-care.

    Raises:
        InvalidInputError: A folder, a truth file or a line is missing or malformed; the message names it.
    """
    images, truths = directory / "img", directory / "gt"
    for folder in (images, truths):
        if not folder.is_dir():
            raise InvalidInputError(f"{directory} needs the folders img/ and gt/; {folder.name}/ is missing")
    paths = sorted(path for path in images.iterdir() if is_image(path) and not path.name.startswith("."))
    if not paths:
        raise InvalidInputError(f"{images} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return [Sample(path, read_truth(truths / f"gt_{path.stem}.txt")) for path in paths]


def read_truth(path: Path) -> Truth:
    """Read a file of truth, in the format of `load_dataset`.

    Raises:
        InvalidInputError: It is missing or a line is malformed; the message names both.
    """
    if not path.is_file():
        raise InvalidInputError(f"the truth file {path} is missing; write an empty one for an image without text")
    polygons, ignored, texts = [], [], []
    for number, line in read_lines(path):
        try:
            polygon, text = parse_outline(line)
            if not np.isfinite(polygon).all():
                raise ValueError("a coordinate is not finite")
        except ValueError as error:
            raise InvalidInputError(f"{path}:{number}: expected x1,y1,...,x4,y4,text; got {line!r}") from error
        polygons.append(polygon)
        ignored.append(text is not None and text.strip() == DONT_CARE)
        texts.append(None if ignored[-1] or text is None else text.strip() or None)
    return Truth(tuple(polygons), tuple(ignored), tuple(texts) if any(texts) else ())


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a label file with their numbers, stripped, without blank ones.

    Raises:
        InvalidInputError: The file cannot be read or is not UTF-8 text.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 text: {error}. Convert it.") from error
    except OSError as error:
        raise InvalidInputError(f"cannot read the label file {path}: {error.strerror}") from error
    lines = []
    # Not `splitlines`: a transcription may hold characters that it takes for line ends.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        stripped = line.strip()
        for mark in _BYTE_ORDER_MARKS:
            stripped = stripped.removeprefix(mark)
        if stripped:
            lines.append((number, stripped))
    return lines


def parse_quad(line: str) -> tuple[NDArray[np.float64], str | None]:
    """Parse `x1,y1,...,x4,y4,text` into corners, float64 (4, 2), and the text; None where the line has none.

    Raises:
        ValueError: The line has another form.
    """
    fields = line.split(",", 8)
    return np.array([float(field) for field in fields[:8]]).reshape(4, 2), fields[8] if len(fields) > 8 else None


def parse_outline(line: str) -> tuple[NDArray[np.float64], str | None]:
    """Parse `x1,y1,...,xn,yn,text` with at least four corners; otherwise the same as `parse_quad`.

    Pairs of numbers after the fourth corner are corners as long as each is near the one before: at most three times the
    longest side so far away. Others begin the text, such as the price "1,234.50".

    Returns:
        Corners, float64 (M, 2), and the text; None where the line has none.
    """
    corners, text = parse_quad(line)
    points = list(corners)
    longest = max(float(np.hypot(*side)) for side in np.diff(corners, axis=0))
    while text is not None and (pair := _PAIR.match(text)):
        point = np.array([float(pair[1]), float(pair[2])])
        side = float(np.hypot(*(point - points[-1])))
        if not side <= _FARTHEST * longest:
            break
        points.append(point)
        longest = max(longest, side)
        text = text[pair.end() :] if pair[3] else None
    if text is None and len(points) == 5:
        return parse_quad(line)  # ICDAR's lines end with a text: this one is a number, such as "250,000"
    return np.array(points), text
