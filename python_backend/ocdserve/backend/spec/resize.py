# SPDX-License-Identifier: Apache-2.0
"""How an image gets its network size, and the mapping of coordinates back to the source."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError

PolicyKind = Literal["fixed", "letterbox", "short_side", "long_side"]

# Networks gain nothing from more; a map of this side still fits every summed-area table.
_LARGEST_SIDE = 4096


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

    def __post_init__(self) -> None:
        if self.kind not in get_args(PolicyKind):
            raise InvalidInputError(f"resize.kind must be one of {', '.join(get_args(PolicyKind))}; got {self.kind!r}")
        for name in ("width", "height", "side", "largest_side", "stride", "bucket"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InvalidInputError(f"resize.{name} must be a whole number of pixels; got {value!r}")
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

        The content is the part of the network's input that the image covers; the rest is padding.
        """
        if self.kind == "fixed":
            return (self.height, self.width), (self.height, self.width)
        if self.kind == "letterbox":
            scale = min(self.height / height, self.width / width)
            content = (min(self.height, _whole(height * scale)), min(self.width, _whole(width * scale)))
            return (self.height, self.width), content
        reference = min(height, width) if self.kind == "short_side" else max(height, width)
        scale = self.side / reference
        if (scale > 1 and not self.enlarge) or (scale < 1 and not self.shrink):
            scale = 1.0
        scale = min(scale, self.largest_side / max(height, width))
        size = self._round(height * scale), self._round(width * scale)
        return size, size

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

    def _round(self, length: float) -> int:
        rounded = int(length / self.bucket + 0.5) * self.bucket
        return min(max(rounded, self.bucket), self.largest_side)


@dataclass(frozen=True)
class Frame:
    """Position of an image in the network's input; all sizes are (height, width) in pixels.

    A point (x, y) of the network is (x * source width / content width, y * source height / content height)
    of the source.
    """

    source: tuple[int, int]
    network: tuple[int, int]
    content: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int, policy: ResizePolicy) -> "Frame":
        """The frame of a source of height x width pixels."""
        return cls((height, width), *policy.sizes(height, width))

    @property
    def scale(self) -> tuple[float, float]:
        """Source pixels per network pixel, (x, y)."""
        return self.source[1] / self.content[1], self.source[0] / self.content[0]

    def to_array(self) -> NDArray[np.int32]:
        """int32 (6,): source, network and content, each height before width; the wire form."""
        return np.array([*self.source, *self.network, *self.content], np.int32)

    @classmethod
    def from_array(cls, array: NDArray[np.int32]) -> "Frame":
        """Inverse of `to_array`.

        Raises:
            InvalidInputError: The values are not those of a frame.
        """
        values = [int(value) for value in array]
        if len(values) != 6 or min(values) < 1 or values[4] > values[2] or values[5] > values[3]:
            raise InvalidInputError(
                "FRAME must hold six positive numbers (source, network and content height and width, the content "
                f"no larger than the network); got {values}. Pass on what ocdnet_preprocess returned."
            )
        return cls((values[0], values[1]), (values[2], values[3]), (values[4], values[5]))


def _whole(length: float) -> int:
    return max(1, int(length + 0.5))
