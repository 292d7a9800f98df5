# SPDX-License-Identifier: Apache-2.0
"""The result of a detection."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Detections:
    """Text found in one image, best score first.

    Attributes:
        quads: float32 (N, 4, 2), corners (x, y) in source pixels, clockwise from the top left.
        scores: float32 (N,), mean text probability inside each region, 0 to 1.
        width: Width of the source image in pixels, after EXIF orientation.
        height: Height of the source image in pixels, after EXIF orientation.
        polygons: One float32 (M, 2) array a detection, in source pixels; None unless asked for.
    """

    quads: NDArray[np.float32]
    scores: NDArray[np.float32]
    width: int
    height: int
    polygons: tuple[NDArray[np.float32], ...] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, ready for JSON: width, height, detections [{quad, score, polygon?}]."""
        detections: list[dict[str, Any]] = [
            {"quad": quad.tolist(), "score": float(score)} for quad, score in zip(self.quads, self.scores, strict=True)
        ]
        for detection, polygon in zip(detections, self.polygons or (), strict=False):
            detection["polygon"] = polygon.tolist()
        return {"width": self.width, "height": self.height, "detections": detections}
