# SPDX-License-Identifier: Apache-2.0
"""Geometry of training pictures: any sequence of flips, rotations, resizes and crops is one affine warp.

Coordinates are continuous: the pixel in column x covers [x, x + 1), as for `cv2.resize`. Enlarging by s is
diag(s, s, 1), and pixels are bilinear, as those of serving are.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import Truth

Matrix = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Polygon = NDArray[np.float64]

# How far a window may reach out of the picture and still count as inside, in pixels.
_TOLERANCE = 1e-3


def warp(image: Pixels, matrix: Matrix, size: tuple[int, int]) -> Pixels:
    """Cut a piece out of a picture.

    Args:
        image: uint8 (H, W, 3), or (H, W).
        matrix: From pixels of the picture to those of the piece: affine, (2, 3) or (3, 3).
        size: Height and width of the piece in pixels.

    Returns:
        uint8 of `size`, black outside of the picture.
    """
    height, width = size
    inverse: Matrix = np.linalg.inv(np.vstack([matrix[:2], [0.0, 0.0, 1.0]]))
    window = transform(np.array([[0, 0], [width, 0], [width, height], [0, height]]), inverse)
    limits = np.array(image.shape[1::-1])
    is_inside = bool((window >= -_TOLERANCE).all() and (window <= limits + _TOLERANCE).all())
    # OpenCV's coordinates are those of the pixels' centres.
    centred = translation(-0.5, -0.5) @ inverse @ translation(0.5, 0.5)
    warped = cv2.warpAffine(
        image,
        centred[:2],
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        # At the picture's own edge no black may be mixed in: `cv2.resize` does not either.
        borderMode=cv2.BORDER_REPLICATE if is_inside else cv2.BORDER_CONSTANT,
    )
    return np.asarray(warped, np.uint8)


def transform(points: NDArray[Any], matrix: Matrix) -> Polygon:
    """Apply an affine matrix, (2, 3) or (3, 3), to points (M, 2)."""
    return np.asarray(points @ matrix[:2, :2].T + matrix[:2, 2], np.float64)


def touching(
    polygons: Sequence[Polygon], ignored: Iterable[bool], size: tuple[int, int]
) -> tuple[tuple[Polygon, ...], tuple[bool, ...]]:
    """Keep the polygons whose bounding boxes touch a picture of `size` (height, width), with their flags."""
    limits = np.array(size[::-1])
    kept = [
        (polygon, flag)
        for polygon, flag in zip(polygons, ignored, strict=True)
        if (polygon.max(axis=0) >= 0).all() and (polygon.min(axis=0) <= limits).all()
    ]
    return tuple(polygon for polygon, _ in kept), tuple(flag for _, flag in kept)


def scaling(x: float, y: float) -> Matrix:
    """Return the (3, 3) matrix that multiplies coordinates."""
    return np.diag([x, y, 1.0])


def translation(x: float, y: float) -> Matrix:
    """Return the (3, 3) matrix that adds to coordinates."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def rotation(degrees: float, centre: tuple[float, float]) -> Matrix:
    """Return the (3, 3) matrix that turns about `centre` (x, y), clockwise on the screen."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    return translation(*centre) @ turn @ translation(-centre[0], -centre[1])


@dataclass(frozen=True)
class View:
    """What geometric steps make of a picture; its pixels are computed at the end, in one warp.

    Attributes:
        image: uint8 (H, W, 3), the source.
        polygons: float64 (M, 2) each, in pixels of the view.
        ignored: Whether each is don't-care.
        size: Height and width of the view.
        content: Height and width of its part, at the top left, that shows the picture; the rest is black.
        matrix: (3, 3), from source pixels to pixels of the view.
        blur: Standard deviation of the Gaussian blur, in pixels of the view.
        is_cut: Whether the source has pixels outside of the view, which later steps must not bring back.
    """

    image: Pixels
    polygons: tuple[Polygon, ...]
    ignored: tuple[bool, ...]
    size: tuple[int, int]
    content: tuple[int, int]
    matrix: Matrix
    blur: float = 0.0
    is_cut: bool = False

    @classmethod
    def of(cls, image: Pixels, truth: Truth) -> "View":
        """Show a whole picture."""
        size = (image.shape[0], image.shape[1])
        return cls(image, truth.polygons, truth.ignored, size, size, np.eye(3))

    def moved(self, matrix: Matrix, size: tuple[int, int], content: tuple[int, int] | None = None) -> "View":
        """Apply a matrix to the view's pixels, which become a view of `size`."""
        return replace(
            self,
            polygons=tuple(transform(polygon, matrix) for polygon in self.polygons),
            size=size,
            content=content or size,
            matrix=matrix @ self.matrix,
            blur=self.blur * math.sqrt(abs(float(np.linalg.det(matrix)))),
        )

    def cut(self) -> "View":
        """Note that the last step moved pixels out of the view, and drop the polygons there."""
        polygons, ignored = touching(self.polygons, self.ignored, self.content)
        return replace(self, polygons=polygons, ignored=ignored, is_cut=True)

    def blurred(self, sigma: float) -> "View":
        """Blur the view; `sigma` in its pixels."""
        return replace(self, blur=math.hypot(self.blur, sigma))

    def pixels(self) -> Pixels:
        """Compute the view's pixels, uint8 (h, w, 3)."""
        shown = warp(self.image, self.matrix, self.content)
        if self.blur > 0:
            shown = np.asarray(cv2.GaussianBlur(shown, (0, 0), self.blur), np.uint8)
        if self.content == self.size:
            return shown
        canvas = np.zeros((*self.size, 3), np.uint8)
        canvas[: self.content[0], : self.content[1]] = shown
        return canvas

    def flat(self, is_cut_allowed: bool = True) -> "View":
        """Return a view whose matrix alone says what it shows, with pixels computed where that is not yet so.

        Args:
            is_cut_allowed: Whether the next step shows nothing from outside of the view.
        """
        if self.content == self.size and (is_cut_allowed or not self.is_cut):
            return self
        return View(self.pixels(), self.polygons, self.ignored, self.size, self.size, np.eye(3))
