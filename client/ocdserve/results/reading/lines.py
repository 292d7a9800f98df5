# SPDX-License-Identifier: Apache-2.0
"""Rectification: quads of an image to upright text lines of one height, and the mapping of points back.

The definition, which the compiled code shares (rectify.cuh) and decision 0081 explains:

- Points are continuous: the image's first pixel reaches from 0 to 1, and so does a line's.
- A line is as wide as the longer of the quad's upper and lower edges, and as high as the longer of the other two, both
  at least one pixel; scaled to the height that is asked for. A quad at least `TALL` times as high as wide is a column:
  its line is turned by 90 degrees counter-clockwise.
- A perspective maps the line's corners to the quad's (Heckbert, Fundamentals of Texture Mapping and Image Warping,
  1989, section 2.2.3). A quad that is not convex is read as the parallelogram of its mean edges.
- A line more than twice as high as asked for is read from a reduced image: the means of squares of whole pixels, as
  many as keep at least the height asked for. Squares begin at the image's origin, pixels of its edge are repeated;
  squares of more than 8 pixels a side are sampled by every second, third ... pixel.
- Positions are rounded to 1/32 pixel, halves upwards, and kept within the image; pixels are interpolated linearly
  between four, and rounded, halves upwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError
from ocdserve.results.images import check_rgb

Cut: TypeAlias = Callable[[NDArray[Any], NDArray[np.uint8]], None]

# Height over width from which on a quad is a column of characters.
TALL = 1.5
# Wider lines are squeezed to this many pixels, unless said otherwise: one of 4096 x 1 must not become 200,000.
LARGEST_WIDTH = 3200

# rectify.cuh's `Line`.
LINE = np.dtype(
    [
        ("across", "f8", 3),
        ("down", "f8", 3),
        ("depth", "f8", 3),
        ("pixels", "u8"),
        ("pitch", "i8"),
        ("last_x", "i4"),
        ("last_y", "i4"),
        ("height", "i4"),
        ("width", "i4"),
        ("reduction", "i4"),
        ("upside_down", "i4"),
    ]
)

_STEPS = 32
_MOST_SAMPLES = 8
# Of quads much larger than any image, so that products of it and a position fit.
_LARGEST_REDUCTION = 1 << 16


@dataclass(frozen=True, eq=False)
class LinePlace:
    """Where a text line lies.

    Attributes:
        size: Height and width of the line, upright, in pixels.
        quad: float32 (4, 2), the corners that it is cut from, in source pixels, clockwise from the text's top left.
        turned: Whether the quad is a column, turned by 90 degrees counter-clockwise: `quad` then begins with the
            line's bottom left.
        transform: float64 (3, 3), homogeneous points of the line to those of the source.
    """

    size: tuple[int, int]
    quad: NDArray[np.float32]
    turned: bool
    transform: NDArray[np.float64]

    def to_source(self, points: NDArray[Any], upside_down: bool = False) -> NDArray[np.float32]:
        """Points of the line to points of the source image.

        Args:
            points: (M, 2) in pixels of the line, from (0, 0) at its top left to (width, height).
            upside_down: Whether they are of the line turned by 180 degrees.

        Returns:
            float32 (M, 2) in source pixels.
        """
        if upside_down:
            points = self.size[::-1] - points
        found = np.asarray(points, np.float64) @ self.transform[:, :2].T + self.transform[:, 2]
        source: NDArray[np.float32] = (found[:, :2] / found[:, 2:]).astype(np.float32)
        return source


@dataclass(frozen=True, eq=False)
class LineImage(LinePlace):
    """A text line, cut out.

    Attributes:
        pixels: uint8 (height, width, 3) RGB.
    """

    pixels: NDArray[np.uint8]

    def as_read(self, upside_down: bool) -> NDArray[np.uint8]:
        """The pixels, or those of the line turned by 180 degrees; a view."""
        return self.pixels[::-1, ::-1] if upside_down else self.pixels


def rectify(
    pixels: NDArray[np.uint8],
    quads: NDArray[np.float32],
    height: int,
    most_width: int = LARGEST_WIDTH,
    cut: "Cut | None" = None,
) -> list[LineImage]:
    """Cut text lines out of an image.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        quads: float32 (N, 4, 2), corners of each line in source pixels, clockwise from the text's top left; they may
            reach beyond the image.
        height: Of every line, in pixels.
        most_width: Wider lines are squeezed to this many pixels.
        cut: Compiled code in place of NumPy, with the same result: it is given `LINE` (1,) with the address of the
            image's pixels, and writes to uint8 (height, w, 3).

    Returns:
        A line per quad, in their order; its width follows from the quad's own sizes.

    Raises:
        InvalidInputError: The image is no RGB image, or see `LinePlan.of`.
    """
    check_rgb(pixels)
    plan = LinePlan.of(quads, height, (pixels.shape[0], pixels.shape[1]), most_width)
    if pixels.strides[1:] != (3, 1) or pixels.strides[0] < 0:
        pixels = np.ascontiguousarray(pixels)
    plan.lines["pixels"], plan.lines["pitch"] = pixels.ctypes.data, pixels.strides[0]
    images = []
    for index, line in enumerate(plan.lines):
        if cut:
            target = np.empty((height, line["width"], 3), np.uint8)
            cut(plan.lines[index : index + 1], target)
        else:
            target = _interpolated(pixels, line)
        images.append(LineImage(**vars(plan.places[index]), pixels=target))
    return images


@dataclass(frozen=True, eq=False)
class LinePlan:
    """How the lines of an image are cut out.

    Attributes:
        lines: `LINE` (N,), without the address of the image's pixels.
        places: Where each of them lies.
    """

    lines: NDArray[Any]
    places: tuple[LinePlace, ...]

    @classmethod
    def of(
        cls, quads: NDArray[np.float32], height: int, size: tuple[int, int], most_width: int = LARGEST_WIDTH
    ) -> "LinePlan":
        """The plan of quads (N, 4, 2) for lines of that height, in an image of (height, width).

        Raises:
            InvalidInputError: The quads have another shape or are not finite, or a length is below 1.
        """
        if quads.ndim != 3 or quads.shape[1:] != (4, 2):
            raise InvalidInputError(
                f"quads must have the shape (N, 4, 2), four corners (x, y) each (got {quads.shape})"
            )
        if not np.isfinite(quads).all():
            first = int(np.argmin(np.isfinite(quads).all(axis=(1, 2))))
            raise InvalidInputError(f"quads must be finite (got {quads[first].tolist()} at index {first})")
        for name, length in (("height", height), ("most_width", most_width)):
            if length < 1:
                raise InvalidInputError(f"{name} must be at least 1 pixel; got {length}")
        corners = quads.astype(np.float64)
        across, down = _sides(corners)
        turned = down >= TALL * across
        corners = np.where(turned[:, None, None], np.roll(corners, -1, axis=1), corners)
        across, down = np.where(turned, (down, across), (across, down))
        widths = np.clip(np.rint(across * height / down), 1, most_width)
        reductions = np.where(down > 2 * height, np.minimum(down // height, _LARGEST_REDUCTION), 1)
        scale = np.stack([1 / widths, np.full(len(quads), 1 / height), np.ones(len(quads))], axis=1)
        transforms = _from_square(corners) * scale[:, None]
        # Centres of pixels, those of the reduced image from 0 on.
        centred = transforms.copy()
        centred[:, :, 2] += transforms[:, :, :2].sum(axis=2) / 2
        centred[:, :2] = centred[:, :2] / reductions[:, None, None] - centred[:, 2:] / 2
        lines = np.zeros(len(quads), LINE)
        lines["across"], lines["down"], lines["depth"] = centred.transpose(1, 0, 2)
        lines["last_y"], lines["last_x"] = size[0] - 1, size[1] - 1
        lines["height"], lines["width"], lines["reduction"] = height, widths, reductions
        sizes = [(height, int(width)) for width in widths]
        return cls(lines, tuple(map(LinePlace, sizes, quads, turned.tolist(), transforms)))


def _sides(corners: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lengths of lines across and down, each (N,), at least 1."""
    edges = np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=2)
    return np.maximum(edges[:, 0::2].max(axis=1), 1), np.maximum(edges[:, 1::2].max(axis=1), 1)


def _from_square(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Homogeneous transforms (N, 3, 3) of the unit square to quads (N, 4, 2)."""
    first, second, third, fourth = corners.transpose(1, 2, 0)
    bend = first - second + third - fourth
    ahead, below = second - third, fourth - third
    with np.errstate(all="ignore"):
        area = _cross(ahead, below)
        depth = np.stack([_cross(bend, below) / area, _cross(ahead, bend) / area])
        convex = np.isfinite(depth).all(axis=0) & (depth > -1).all(axis=0) & (depth.sum(axis=0) > -1)
        depth = np.where(convex, depth, 0.0)
    perspective = np.stack([second - first + depth[0] * second, fourth - first + depth[1] * fourth, first])
    across, down = (second - first + third - fourth) / 2, (fourth - first + third - second) / 2
    parallelogram = np.stack([across, down, corners.mean(axis=1).T - (across + down) / 2])
    rows = np.where(convex, perspective, parallelogram)
    last = np.stack([depth[0], depth[1], np.ones_like(area)])[:, None]
    transforms: NDArray[np.float64] = np.concatenate([rows, last], axis=1).transpose(2, 1, 0)
    return transforms


def _cross(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = first[0] * second[1] - first[1] * second[0]
    return product


def _interpolated(pixels: NDArray[np.uint8], line: Any) -> NDArray[np.uint8]:
    """rectify.cuh in NumPy, operation by operation."""
    x, y = np.arange(line["width"])[None], np.arange(line["height"])[:, None]
    across, down, depth = (
        line[name][0] * x + line[name][1] * y + line[name][2] for name in ("across", "down", "depth")
    )
    with np.errstate(all="ignore"):
        scale = _STEPS / depth
        across, down = across * scale, down * scale
    last_x, last_y = line["last_x"] // line["reduction"], line["last_y"] // line["reduction"]
    places_x, places_y = _places(across, last_x), _places(down, last_y)
    left, upper = places_x // _STEPS, places_y // _STEPS
    right, lower = np.minimum(left + 1, last_x), np.minimum(upper + 1, last_y)
    to_right, to_lower = (places_x % _STEPS)[..., None], (places_y % _STEPS)[..., None]
    corners = [_means(pixels, line, *place) for place in ((left, upper), (right, upper), (left, lower), (right, lower))]
    above = corners[0] * (_STEPS - to_right) + corners[1] * to_right
    below = corners[2] * (_STEPS - to_right) + corners[3] * to_right
    total = above * (_STEPS - to_lower) + below * to_lower
    return ((total + _STEPS**2 // 2) // _STEPS**2).astype(np.uint8)


def _places(places: NDArray[np.float64], last: int) -> NDArray[np.int64]:
    kept = np.where(places > 0, np.minimum(places, float(last * _STEPS)), 0.0)
    return (kept + 0.5).astype(np.int64)


def _means(
    pixels: NDArray[np.uint8], line: Any, columns: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    reduction = int(line["reduction"])
    offsets = range(0, reduction, -(-reduction // _MOST_SAMPLES))
    total = np.zeros((*columns.shape, 3), np.int64)
    for i in offsets:
        for j in offsets:
            total += pixels[
                np.minimum(rows * reduction + i, line["last_y"]), np.minimum(columns * reduction + j, line["last_x"])
            ]
    count = len(offsets) ** 2
    return (2 * total + count) // (2 * count)
