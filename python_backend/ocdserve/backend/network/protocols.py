# SPDX-License-Identifier: Apache-2.0
"""What a compiled network can do, on the host and on a GPU."""

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Stream
from ocdserve.backend.network.options import MapType


class Network(Protocol):
    """A compiled network."""

    def infer(self, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Probability maps of images.

        Every image is computed on its own, so that an answer does not depend on its neighbours.

        Args:
            images: uint8 (h, w, 3) RGB each, of the sizes that the resize policy gives; sizes may differ. Float32
                where `RuntimeOptions.pixel_type` says so.

        Returns:
            One map (h, w) an image: uint8, 255 times the probability, or float32 (`RuntimeOptions.map_type`).
        """
        ...


class DeviceNetwork(Protocol):
    """A network on one GPU; usable from any thread, a stream by one at a time."""

    @property
    def map_type(self) -> MapType:
        """What the maps are made of."""
        ...

    def check(self, batch: int, height: int, width: int) -> None:
        """Raise InvalidInputError for a batch of a size in pixels that the network does not take."""
        ...

    def enqueue(self, stream: Stream, pixels: Buffer, maps: Buffer, batch: int, height: int, width: int) -> None:
        """Queue the network.

        The first call for a shape and a stream prepares the network for it: it must not be captured, later ones may.

        Args:
            stream: Where to queue it.
            pixels: uint8 (batch, height, width, 3) RGB.
            maps: (batch, height, width), 255 times the probability as uint8, or the probability as float32.
            batch: Images, computed independently of each other.
            height: Rows of each image.
            width: Columns of each image.

        Raises:
            InvalidInputError: The network does not take that shape.
            UnavailableError: The network's library cannot queue it, or has not the memory for it.
        """
        ...

    def release(self, stream: Stream, batch: int, height: int, width: int) -> None:
        """Give back what `enqueue` prepared for a shape; graphs that captured it must have been closed."""
        ...

    def close(self) -> None:
        """Give back all that it holds."""
        ...
