# SPDX-License-Identifier: Apache-2.0
"""The three files that TAO's inference writes for an image: boxes, drawn boxes, probability map."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.results.detections import Detections

# Boxes, drawn boxes and map of one image.
ResultPaths = tuple[Path, Path, Path]

_RED = (255, 0, 0)
_LINE = 2
_JPEG_QUALITY = 95


def result_names(images: Sequence[Path]) -> list[str]:
    """Return the names of each image's result files, without their suffixes; no two are the same.

    The stem, as in TAO. Images that share one keep their whole name: the results of `a.jpg` and `a.png` are `a.jpg.txt`
    and `a.png.txt`.

    Args:
        images: Files of one folder.
    """
    names = [path.stem for path in images]
    while True:
        uses = Counter(name.casefold() for name in names)
        longer = [path.name if uses[name.casefold()] > 1 else name for path, name in zip(images, names, strict=True)]
        if longer == names:
            return names
        names = longer


def overwritten(images: Sequence[Path]) -> list[Path]:
    """Return the images whose results TAO overwrites by those of a later image of the same stem."""
    last = {path.stem: path for path in images}
    return [path for path in images if last[path.stem] != path]


def result_paths(folder: Path, name: str) -> ResultPaths:
    """Paths of boxes, drawn boxes and map."""
    return folder / f"{name}.txt", folder / f"{name}_result.jpg", folder / f"{name}_pred.jpg"


def box_lines(found: Detections) -> str:
    """Format one line per detection: `x1,y1,...,score`, coordinates truncated; polygons where there are any."""
    outlines = found.quads if found.polygons is None else found.polygons
    lines = [
        f"{','.join(str(value) for value in outline.astype(np.int64).reshape(-1).tolist())},{score!s}\n"
        for outline, score in zip(outlines, found.scores, strict=True)
    ]
    return "".join(lines)


def bottom_first(found: Detections) -> Detections:
    """Sort detections as TAO's lines are: by the topmost point of each, the lowest in the picture first."""
    outlines = found.quads if found.polygons is None else found.polygons
    tops = [min((int(y), int(x)) for x, y in outline.tolist()) for outline in outlines]
    return found.take(sorted(range(len(tops)), key=tops.__getitem__, reverse=True))


def drawn_boxes(source: NDArray[np.uint8], found: Detections) -> NDArray[np.uint8]:
    """Return a copy of a picture, uint8 (H, W, 3) RGB, with red outlines two pixels thick."""
    outlines = found.quads if found.polygons is None else found.polygons
    canvas = np.ascontiguousarray(source).copy()
    for outline in outlines:
        cv2.polylines(canvas, [outline.astype(np.int32)], True, _RED, _LINE)
    return canvas


def map_picture(probability: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert a map (h, w), uint8 or float32 from 0 to 1, into grey levels."""
    if probability.dtype == np.uint8:
        levels: NDArray[np.uint8] = probability
        return levels
    rounded: NDArray[np.uint8] = np.rint(probability * 255).clip(0, 255).astype(np.uint8)
    return rounded


def write_jpeg(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write grey levels (h, w) or RGB (h, w, 3) with OpenCV's default quality."""
    ordered = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    encoded = cv2.imencode(".jpg", ordered, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    path.write_bytes(encoded.tobytes())
