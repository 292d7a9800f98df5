# SPDX-License-Identifier: Apache-2.0
"""Precision, recall and hmean by the protocol of ICDAR 2015 (challenge 4, task 4.1), and its data format.

Karatzas et al., "ICDAR 2015 competition on robust reading": a detection matches a truth one to one when their
intersection over union exceeds 0.5; detections that lie by more than half in a don't-care region do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError

_IOU = 0.5
_DONT_CARE_SHARE = 0.5
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


@dataclass(frozen=True)
class ImageResult:
    """Counts of one image: matches, detections and truths that count."""

    matched: int
    detections: int
    truths: int


@dataclass(frozen=True)
class Evaluation:
    """Counts over a data set; the figures follow from their sums."""

    images: tuple[ImageResult, ...]

    @property
    def matched(self) -> int:
        """Matches between detections and truths."""
        return sum(image.matched for image in self.images)

    @property
    def detections(self) -> int:
        """Detections outside of don't-care regions."""
        return sum(image.detections for image in self.images)

    @property
    def truths(self) -> int:
        """Truths that are not don't-care."""
        return sum(image.truths for image in self.images)

    @property
    def precision(self) -> float:
        """Share of the detections that match; 0 without detections."""
        return self.matched / self.detections if self.detections else 0.0

    @property
    def recall(self) -> float:
        """Share of the truths that are matched; 0 without truths."""
        return self.matched / self.truths if self.truths else 0.0

    @property
    def hmean(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Figures and counts, ready for JSON."""
        return {
            "images": len(self.images),
            "precision": self.precision,
            "recall": self.recall,
            "hmean": self.hmean,
            "matched": self.matched,
            "detections": self.detections,
            "truths": self.truths,
        }


def match(quads: NDArray[Any], truth: Truth) -> ImageResult:
    """Match the detections of one image with its truth.

    Greedy in the order given, truths outside, as the competition's own script does. Polygons that are not
    simple or have no area are left out on either side.

    Args:
        quads: (N, 4, 2) in source pixels.
        truth: Truth of the image.
    """
    found = [polygon for polygon in map(_polygon, quads) if polygon is not None]
    known = [(_polygon(points), ignored) for points, ignored in zip(truth.polygons, truth.ignored, strict=True)]
    dont_care = [polygon for polygon, ignored in known if polygon is not None and ignored]
    cared = [polygon for polygon, ignored in known if polygon is not None and not ignored]
    counted = [
        polygon
        for polygon in found
        if not any(polygon.intersection(region).area / polygon.area > _DONT_CARE_SHARE for region in dont_care)
    ]
    free = set(range(len(counted)))
    matched = 0
    for polygon in cared:
        partner = next((index for index in sorted(free) if _iou(polygon, counted[index]) > _IOU), None)
        if partner is not None:
            free.remove(partner)
            matched += 1
    return ImageResult(matched, len(counted), len(cared))


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


def _polygon(points: Sequence[Any] | NDArray[Any]) -> shapely.Polygon | None:
    polygon = shapely.Polygon(points)
    return polygon if polygon.is_valid and polygon.area > 0 else None


def _iou(a: shapely.Polygon, b: shapely.Polygon) -> float:
    if not a.intersects(b):
        return 0.0
    intersection: float = a.intersection(b).area
    union: float = a.area + b.area - intersection
    return intersection / union
