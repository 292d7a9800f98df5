# SPDX-License-Identifier: Apache-2.0
"""How an image gets its network size, and the mapping of coordinates back to the source."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError
from ocdserve.results.tiles import LEAST_IN_OVERVIEW, Boxes, tile_starts

PolicyKind = Literal["fixed", "letterbox", "short_side", "long_side"]

# Networks gain nothing from more; a map of this side still fits every summed-area table.
_LARGEST_SIDE = 4096

# An image is elongated whose longer side is more than this many times the shorter (docs/decisions/0042).
_ELONGATED = 4
# Most pixels of an elongated image's content: the square of this many times the network's longest side. With padding
# the network gets at most twice as many.
_LONGEST_SIDES = 2.5
# Neighbouring tiles overlap by at least one part in this many of their length.
_OVERLAP_PART = 8
# What is cut into tiles is shown once more at one part in this many of its scale: an overview for large letters.
_OVERVIEW_PART = 3
# Most bytes of several images' container between Triton's steps. Seven images of 34,000 x 400 pixels take 500 MB, but
# 1.8 GB with one of 400 x 34,000 among them; Triton's shared memory grows by a multiple of it, and keeps that size.
_MOST_BYTES = 512_000_000


@dataclass(frozen=True)
class ResizePolicy:
    """How an image gets its network size; sides are pixels.

    Attributes:
        kind: `fixed`: stretch to `width` x `height` (TAO). `letterbox`: fit into `width` x `height`, keep the
            aspect, fill right and bottom with black. `short_side`: scale the shorter side to `side`.
            `long_side`: scale the longer side to `side`. The last two keep the aspect up to the rounding of
            each side to a bucket.
        width: Network width (fixed, letterbox).
        height: Network height (fixed, letterbox).
        side: Wanted length of the shorter or longer side (short_side, long_side).
        enlarge: Whether images smaller than wanted are scaled up (short_side, long_side).
        shrink: Whether images larger than wanted are scaled down (short_side, long_side).
        largest_side: No network side becomes longer than this (short_side, long_side).
        stride: Network sides are multiples of this.
        bucket: Sides are rounded to multiples of this, itself a multiple of the stride: the coarser, the
            fewer shapes there are to compile, and the more requests share one.
        tiles: Whether elongated images (over 1:4) keep their aspect, and up to a number of pixels their scale: what
            is longer than the network's input is cut into overlapping tiles, and has an overview (see `Frame`). None:
            as the detector's mode says, and off without a detector. Their padding repeats the image's edge.
        reduce_jpeg: Whether JPEG files are decoded for detection at 1/2, 1/4 or 1/8 of their size, by libjpeg's scaled
            DCT, where both sides are at least so many times those of the content (`decode_for`); on a CPU only.

    Raises:
        InvalidInputError: A field is out of its range; the message names it.
    """

    kind: PolicyKind = "short_side"
    width: int = 1280
    height: int = 736
    side: int = 736
    enlarge: bool = True
    shrink: bool = False
    largest_side: int = 2048
    stride: int = 32
    bucket: int = 32
    tiles: bool | None = None
    reduce_jpeg: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(PolicyKind):
            raise InvalidInputError(f"resize.kind must be one of {', '.join(get_args(PolicyKind))}; got {self.kind!r}")
        for name in ("width", "height", "side", "largest_side", "stride", "bucket"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InvalidInputError(f"resize.{name} must be a whole number of pixels; got {value!r}")
        if not isinstance(self.tiles, bool | None):
            raise InvalidInputError(f"resize.tiles must be true, false or null; got {self.tiles!r}")
        if not 1 <= self.stride <= 256:
            raise InvalidInputError(f"resize.stride must be from 1 to 256; got {self.stride}")
        for name in ("width", "height") if self.has_one_size else ("largest_side", "bucket"):
            value = getattr(self, name)
            if not self.stride <= value <= _LARGEST_SIDE or value % self.stride:
                raise InvalidInputError(
                    f"resize.{name} must be a multiple of the stride {self.stride} and at most {_LARGEST_SIDE}; "
                    f"got {value}"
                )
        if not self.stride <= self.side <= _LARGEST_SIDE:
            raise InvalidInputError(f"resize.side must be from {self.stride} to {_LARGEST_SIDE}; got {self.side}")

    @property
    def has_one_size(self) -> bool:
        """Whether all images get the same network size, `width` x `height`."""
        return self.kind in ("fixed", "letterbox")

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Network size and content size, each (height, width), for a source of height x width pixels.

        The content is the part of the network's input that the image covers; the rest is padding. Content with a side
        longer than the network's is cut into tiles.
        """
        if self.is_elongated(height, width):
            return self._elongated_sizes(height, width)
        if self.kind == "fixed":
            return (self.height, self.width), (self.height, self.width)
        scale = self._scale(height, width)
        if self.kind == "letterbox":
            content = (min(self.height, _whole(height * scale)), min(self.width, _whole(width * scale)))
            return (self.height, self.width), content
        size = self._round(height * scale), self._round(width * scale)
        return size, size

    def is_elongated(self, height: int, width: int) -> bool:
        """Whether a source of height x width pixels keeps its aspect and scale, in tiles if need be."""
        return bool(self.tiles) and max(height, width) > _ELONGATED * min(height, width)

    def overview(self, network: tuple[int, int], content: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """`sizes` of the overview of content, (height, width), in tiles of the network's size."""
        reduced = _whole(content[0] / _OVERVIEW_PART), _whole(content[1] / _OVERVIEW_PART)
        return (network if self.has_one_size else self._tile_size(*reduced)), reduced

    def check_network_size(self, height: int, width: int) -> None:
        """Raise InvalidInputError for a network size, in pixels, that this policy never produces."""
        if self.has_one_size:
            if (height, width) != (self.height, self.width):
                raise InvalidInputError(
                    f"the network takes images of {self.height} x {self.width} pixels (height x width); "
                    f"got {height} x {width}. Pass on what ocdnet_preprocess returned."
                )
        elif height % self.stride or width % self.stride or max(height, width) > self.largest_side:
            raise InvalidInputError(
                f"the network takes sides that are multiples of {self.stride}, at most {self.largest_side}; "
                f"got {height} x {width}. Pass on what ocdnet_preprocess returned."
            )

    def check_for_gpu(self) -> None:
        """Raise InvalidInputError for a policy that the stages on a GPU do not follow."""
        if self.reduce_jpeg:
            raise InvalidInputError(
                "resize.reduce_jpeg must be false where all stages run on a GPU, which takes whole images; got "
                "true. Set it to false, or use the CPU's stages."
            )

    def _scale(self, height: int, width: int) -> float:
        """Network pixels per source pixel, for an image in one piece and with its aspect kept."""
        if self.has_one_size:
            return min(self.height / height, self.width / width)
        reference = min(height, width) if self.kind == "short_side" else max(height, width)
        scale = self.side / reference
        if (scale > 1 and not self.enlarge) or (scale < 1 and not self.shrink):
            scale = 1.0
        return min(scale, self.largest_side / max(height, width))

    def _elongated_sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """`sizes` with the aspect kept, for an image that is scaled down less than in one piece, or not at all.

        The allowance grows with the cube of the aspect from 1:4 on: there the scale has no step.
        """
        is_tall = height > width
        long, short = max(height, width), min(height, width)
        longest = across = self.largest_side
        if self.has_one_size:
            longest, across = (self.height, self.width) if is_tall else (self.width, self.height)
        most = (_LONGEST_SIDES * max(longest, across)) ** 2
        in_one_piece = self._scale(height, width)
        limits = [
            1.0,
            across / short,
            in_one_piece * (long / short / _ELONGATED) ** 3,
            math.sqrt(most / (long * short)),
            2 * most / (long * (across if self.has_one_size else self.bucket)),
        ]
        if self.kind == "short_side" and self.shrink:
            limits.append(self.side / short)
        scale = max(in_one_piece, min(limits))
        content = _whole(long * scale), min(across, _whole(short * scale))
        content = content if is_tall else content[::-1]
        return ((self.height, self.width) if self.has_one_size else self._tile_size(*content)), content

    def _tile_size(self, height: int, width: int) -> tuple[int, int]:
        """Network size, (height, width), for elongated content: tiles as short as their number allows."""
        long, largest = max(height, width), self.largest_side
        pieces = _tile_count(long, largest)
        length = -(-(long + (pieces - 1) * (largest // _OVERLAP_PART)) // pieces)
        size = min(self._up(length), largest), min(self._up(min(height, width)), largest)
        return size if height > width else size[::-1]

    def _up(self, length: int) -> int:
        """The next multiple of the bucket."""
        return -(-length // self.bucket) * self.bucket

    def _round(self, length: float) -> int:
        rounded = int(length / self.bucket + 0.5) * self.bucket
        return min(max(rounded, self.bucket), self.largest_side)


@dataclass(frozen=True)
class Frame:
    """Position of an image in the network's input; all sizes are (height, width) in pixels.

    A point (x, y) of the network is (x * source width / content width, y * source height / content height)
    of the source.

    Where one side of the content is longer than the network's, the scaled image is cut along it into tiles of network
    size, `boxes`, and so is an overview of it at a third of the scale: all are images of the network, `parts`, one
    below the other in a container.
    """

    source: tuple[int, int]
    network: tuple[int, int]
    content: tuple[int, int]
    overview: "Frame | None" = None

    @classmethod
    def of(cls, height: int, width: int, policy: ResizePolicy) -> "Frame":
        """The frame of a source of height x width pixels."""
        return cls((height, width), *policy.sizes(height, width)).with_overview(policy)

    def with_overview(self, policy: ResizePolicy) -> "Frame":
        """The same frame with the overview that an image in tiles has by this policy, if large letters fit into it."""
        is_tiled = self.content[0] > self.network[0] or self.content[1] > self.network[1]
        if not is_tiled or not policy.tiles or min(self.content) < _OVERVIEW_PART * LEAST_IN_OVERVIEW:
            return self
        return replace(self, overview=Frame(self.source, *policy.overview(self.network, self.content)))

    @property
    def scale(self) -> tuple[float, float]:
        """Source pixels per network pixel, (x, y)."""
        return self.source[1] / self.content[1], self.source[0] / self.content[0]

    @property
    def tiles(self) -> int:
        """Number of tiles, without those of the overview; 1 for an image in one piece."""
        return math.prod(map(_tile_count, self.content, self.network))

    @property
    def levels(self) -> tuple["Frame", ...]:
        """This frame, and that of the overview if there is one."""
        return (self,) if self.overview is None else (self, self.overview)

    @property
    def parts(self) -> tuple["Frame", ...]:
        """The frame of each of the network's images: first the tiles, then the overview's.

        That of an image in one piece is its own; of others each is an image of its own, in pixels of its level.
        """
        if self.tiles == 1:
            return (self,)
        return tuple(level._tile for level in self.levels for _ in range(level.tiles))

    @property
    def rows(self) -> tuple[int, ...]:
        """First row of each part in the container."""
        return tuple(accumulate((part.network[0] for part in self.parts[:-1]), initial=0))

    @property
    def container(self) -> tuple[int, int]:
        """Height and width of all parts, one below the other."""
        height = sum(level.tiles * level.network[0] for level in self.levels)
        return height, max(level.network[1] for level in self.levels)

    @property
    def boxes(self) -> Boxes:
        """int64 (T, 4): left, top, right, bottom of each tile in pixels of the content."""
        tops, lefts = map(_tile_starts, self.content, self.network)
        height, width = (min(sides) for sides in zip(self.content, self.network, strict=True))
        return np.array([(x, y, x + width, y + height) for y in tops for x in lefts], np.int64)

    def cut(self, container: NDArray[Any]) -> list[NDArray[Any]]:
        """Views (h, w, ...) of the parts of a container (H, W, ...)."""
        return [
            container[row : row + part.network[0], : part.network[1]]
            for row, part in zip(self.rows, self.parts, strict=True)
        ]

    @property
    def _tile(self) -> "Frame":
        size = min(self.content[0], self.network[0]), min(self.content[1], self.network[1])
        return Frame(size, self.network, size)

    def to_array(self) -> NDArray[np.int32]:
        """int32 (6,): source, network and content, each height before width; the wire form."""
        return np.array([*self.source, *self.network, *self.content], np.int32)

    @classmethod
    def from_array(cls, array: NDArray[np.int32], policy: ResizePolicy) -> "Frame":
        """Inverse of `to_array`; the overview follows from the policy.

        Raises:
            InvalidInputError: The values are not those of a frame.
        """
        values = [int(value) for value in array]
        if len(values) != 6 or min(values) < 1 or not _is_tiling(values[2:4], values[4:]):
            raise InvalidInputError(
                "FRAME must hold six positive numbers (source, network and content height and width, the content "
                "no larger than the network, or elongated and longer in one direction); "
                f"got {values}. Pass on what ocdnet_preprocess returned."
            )
        frame = cls((values[0], values[1]), (values[2], values[3]), (values[4], values[5]))
        return frame.with_overview(policy)


def container_of(frames: Sequence[Frame]) -> tuple[int, int]:
    """Height and width in pixels that hold each of a request's images.

    Raises:
        InvalidInputError: All of them together take too much memory.
    """
    height, width = (max(sides) for sides in zip(*(frame.container for frame in frames), strict=True))
    size = 3 * len(frames) * height * width
    if size > _MOST_BYTES and len(frames) > 1:
        raise InvalidInputError(
            f"the {len(frames)} images of this request take {size // 1_000_000} MB, each as much as the highest and "
            f"the widest together; at most {_MOST_BYTES // 1_000_000} MB are served. Send elongated images one by one, "
            "or to ocdnet_fused."
        )
    return height, width


def _is_tiling(network: list[int], content: list[int]) -> bool:
    """Whether content of this size fits into one image of the network, or is elongated and longer in one direction."""
    longer = sum(inner > side for inner, side in zip(content, network, strict=True))
    return longer == 0 or (longer == 1 and 2 * max(content) > _ELONGATED * min(content))


def _tile_starts(content: int, network: int) -> list[int]:
    return tile_starts(content, network, network // _OVERLAP_PART)


def _tile_count(content: int, network: int) -> int:
    """Length of `_tile_starts`."""
    overlap = network // _OVERLAP_PART
    return 1 if content <= network else -(-(content - overlap) // (network - overlap))


def _whole(length: float) -> int:
    return max(1, int(length + 0.5))
