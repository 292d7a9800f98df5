# SPDX-License-Identifier: Apache-2.0
"""Random steps that change a training picture: those of NVIDIA TAO's `pre_processes`.

Each is a frozen dataclass whose fields are the step's arguments; called with a view and a generator of random numbers
it returns another view. Ranges are (low, high), drawn from uniformly.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ocdserve.builder.train.data.augment import View, rotation, scaling, translation
from ocdserve.contract import InvalidInputError

Range = tuple[float, float]

# Both sides of a network's input are multiples of this.
STRIDE = 32


class Step(Protocol):
    """Changes a view at random."""

    def __call__(self, view: View, random: Generator) -> View: ...


@dataclass(frozen=True)
class Fliplr:
    """Mirror left and right.

    Attributes:
        p: How probably.
    """

    p: float

    def __post_init__(self) -> None:
        check_share("Fliplr.p", self.p)

    def __call__(self, view: View, random: Generator) -> View:
        if random.random() >= self.p:
            return view
        view = view.flat()
        return view.moved(translation(view.size[1], 0) @ scaling(-1, 1), view.size)


@dataclass(frozen=True)
class Affine:
    """Turn about the centre; the size stays, what leaves it is lost, and what comes in is black.

    Attributes:
        rotate: Degrees.
    """

    rotate: Range

    def __call__(self, view: View, random: Generator) -> View:
        view = view.flat(is_cut_allowed=False)
        height, width = view.size
        return view.moved(rotation(random.uniform(*self.rotate), (width / 2, height / 2)), view.size).cut()


@dataclass(frozen=True)
class Resize:
    """Scale both sides by the same factor.

    Attributes:
        size: The factor.
    """

    size: Range

    def __post_init__(self) -> None:
        if not 0 < self.size[0] <= self.size[1] <= 16:
            raise InvalidInputError(
                f"Resize.size is a factor, or a range of factors, above 0 and at most 16; got {list(self.size)}"
            )

    def __call__(self, view: View, random: Generator) -> View:
        factor = random.uniform(*self.size)
        return stretched(view, (max(1, round(view.size[0] * factor)), max(1, round(view.size[1] * factor))))


@dataclass(frozen=True)
class GaussianBlur:
    """Blur.

    Attributes:
        sigma: Standard deviation in pixels.
    """

    sigma: Range

    def __post_init__(self) -> None:
        if not 0 <= self.sigma[0] <= self.sigma[1] <= 100:
            raise InvalidInputError(f"GaussianBlur.sigma must be 0 to 100 pixels, in order; got {list(self.sigma)}")

    def __call__(self, view: View, random: Generator) -> View:
        return view.blurred(random.uniform(*self.sigma))


@dataclass(frozen=True)
class Sometimes:
    """Run other steps with a probability.

    Attributes:
        p: How probably.
        then_list: Steps to run then.
        else_list: Steps to run otherwise.
    """

    p: float
    then_list: tuple[Step, ...] = ()
    else_list: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        check_share("Sometimes.p", self.p)

    def __call__(self, view: View, random: Generator) -> View:
        for step in self.then_list if random.random() < self.p else self.else_list:
            view = step(view, random)
        return view


@dataclass(frozen=True)
class EastRandomCropData:
    """Cut out a random rectangle that shows text and whose sides run through none, and scale it to `size`.

    If no rectangle is found, or text covers all columns or all rows, it is the whole picture. On a picture without text
    any rectangle will do. Named after EAST: An Efficient and Accurate Scene Text Detector (Zhou et al., 2017).

    Attributes:
        size: Width and height of the result in pixels.
        max_tries: How many rectangles to draw.
        keep_ratio: Whether to scale both sides alike and add black at the right or below; otherwise both fill `size`.
        min_crop_side_ratio: Least width and height of the rectangle as shares of the picture's.
    """

    size: tuple[int, int] = (640, 640)
    max_tries: int = 50
    keep_ratio: bool = True
    min_crop_side_ratio: float = 0.1

    def __post_init__(self) -> None:
        check_size("EastRandomCropData.size", self.size)
        check_share("EastRandomCropData.min_crop_side_ratio", self.min_crop_side_ratio)
        if self.max_tries < 1:
            raise InvalidInputError(f"EastRandomCropData.max_tries must be at least 1; got {self.max_tries}")

    def __call__(self, view: View, random: Generator) -> View:
        view = view.flat()
        left, top, right, bottom = self._rectangle(view, random)
        columns, rows = right - left, bottom - top
        width, height = self.size
        if self.keep_ratio:
            scale = min(width / columns, height / rows)
            # Rounded down; an exact product may come out a little smaller.
            width, height = (max(1, math.floor(side * scale + 1e-6)) for side in (columns, rows))
        matrix = scaling(width / columns, height / rows) @ translation(-left, -top)
        return view.moved(matrix, self.size[::-1], (height, width)).cut()

    def _rectangle(self, view: View, random: Generator) -> tuple[int, int, int, int]:
        height, width = view.size
        care = [polygon for polygon, ignored in zip(view.polygons, view.ignored, strict=True) if not ignored]
        low = np.array([polygon.min(axis=0) for polygon in care]).reshape(-1, 2)
        high = np.array([polygon.max(axis=0) for polygon in care]).reshape(-1, 2)
        columns, rows = (_free_runs(low[:, axis], high[:, axis], side) for axis, side in ((0, width), (1, height)))
        if not columns or not rows:
            return 0, 0, width, height
        least = self.min_crop_side_ratio
        for _ in range(self.max_tries):
            left, right = _two_lines(columns, random)
            top, bottom = _two_lines(rows, random)
            if right - left < max(least * width, 1) or bottom - top < max(least * height, 1):
                continue
            shows = (high >= (left, top)).all(axis=1) & (low <= (right, bottom)).all(axis=1)
            if not care or shows.any():
                return left, top, right, bottom
        return 0, 0, width, height


@dataclass(frozen=True)
class Resize2D:
    """Stretch to a size, or enlarge until the short side has a length.

    Attributes:
        short_size: Width and height in pixels; or the least short side, to which the other is scaled alike, both then
            rounded to multiples of 32.
        resize_text_polys: Must be true: targets are drawn in pixels of the result.
    """

    short_size: tuple[int, int] | int
    resize_text_polys: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.short_size, tuple):
            check_size("Resize2D.short_size", self.short_size)
        elif self.short_size < 1:
            raise InvalidInputError(f"Resize2D.short_size must be at least 1; got {self.short_size}")
        if not self.resize_text_polys:
            raise InvalidInputError(
                "Resize2D.resize_text_polys must be true in training, or targets and picture differ"
            )

    def __call__(self, view: View, random: Generator) -> View:
        if isinstance(self.short_size, tuple):
            return stretched(view, self.short_size[::-1])
        scale = max(1.0, self.short_size / min(view.size))
        height, width = (max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in view.size)
        return stretched(view, (height, width))


def stretched(view: View, size: tuple[int, int]) -> View:
    """Scale a view to height and width."""
    view = view.flat()
    return view.moved(scaling(size[1] / view.size[1], size[0] / view.size[0]), size)


def check_share(name: str, value: float) -> None:
    """Raise InvalidInputError unless a value is between 0 and 1."""
    if not 0 <= value <= 1:
        raise InvalidInputError(f"{name} must be between 0 and 1; got {value}")


def check_size(name: str, size: tuple[int, int]) -> None:
    """Raise InvalidInputError unless both sides can be those of a network's input."""
    if any(side < STRIDE or side % STRIDE for side in size):
        raise InvalidInputError(f"{name}: both sides must be multiples of {STRIDE} pixels; got {list(size)}")


def _free_runs(low: NDArray[Any], high: NDArray[Any], length: int) -> list[NDArray[np.int64]]:
    """Runs of the columns (or rows) 0 to length - 1 that no interval [low, high) covers."""
    changes = np.zeros(length + 1, np.int64)
    np.add.at(changes, np.clip(np.rint(low).astype(np.int64), 0, length), 1)
    np.add.at(changes, np.clip(np.rint(high).astype(np.int64), 0, length), -1)
    free = np.flatnonzero(np.cumsum(changes[:-1]) == 0)
    return [run for run in np.split(free, np.flatnonzero(np.diff(free) > 1) + 1) if len(run)]


def _two_lines(runs: list[NDArray[np.int64]], random: Generator) -> tuple[int, int]:
    """Draw two positions in order: each from a run drawn with equal chances, whatever the runs' lengths."""
    chosen = [runs[index] for index in random.integers(len(runs), size=2)]
    low, high = sorted(int(run[random.integers(len(run))]) for run in chosen)
    return low, high
