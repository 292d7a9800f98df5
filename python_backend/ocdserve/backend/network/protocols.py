# SPDX-License-Identifier: Apache-2.0
"""What a compiled network can do, on the host and on a GPU."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Stream
from ocdserve.backend.network.options import MapType
from ocdserve.backend.stages.ctc import Steps


class Network(Protocol):
    """A compiled network."""

    def infer(self, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Probability maps of images.

        Every image is computed on its own, so that results do not depend on the other images.

        Args:
            images: uint8 (h, w, 3) RGB each, of the sizes that the resize policy gives; sizes may differ. Float32
                where `RuntimeOptions.pixel_type` says so.

        Returns:
            One map (h, w) per image: uint8, 255 times the probability, or float32 (`RuntimeOptions.map_type`).
        """
        ...


class RecogniserNetwork(Protocol):
    """A compiled network that reads lines of text."""

    def infer(self, lines: Sequence[NDArray[np.uint8]]) -> list[Steps]:
        """The best class of each time step of each line.

        A line's result does not depend on the others.

        Args:
            lines: uint8 (height, w, 3) RGB each, of the recogniser's height and of widths that
                `WidthPolicy.fitted` gives, which may differ.
        """
        ...


class DeviceNetwork(Protocol):
    """A network on one GPU. Thread-safe; each stream must be used by one thread at a time."""

    @property
    def map_type(self) -> MapType:
        """Type of the maps."""
        ...

    def check(self, batch: int, height: int, width: int) -> None:
        """Raise InvalidInputError for a shape that the network does not take; sizes in pixels."""
        ...

    def enqueue(self, stream: Stream, pixels: Buffer, maps: Buffer, batch: int, height: int, width: int) -> None:
        """Queue the network.

        The first call for a shape and a stream prepares the network for it: it must not be captured, later ones may,
        unless the network is `unrecordable`.

        Args:
            stream: Where to queue it.
            pixels: uint8 (batch, height, width, 3) RGB.
            maps: (batch, height, width), 255 times the probability as uint8, or the probability as float32.
            batch: Images, computed independently of each other.
            height: Rows of each image.
            width: Columns of each image.

        Raises:
            InvalidInputError: The network does not take that shape.
            UnavailableError: The network's library cannot queue it, or there is not enough memory for it.
        """
        ...

    def unrecordable(self) -> str:
        """Why calls of `enqueue` must not be captured, once one was made; empty where they may."""
        ...

    def release(self, stream: Stream, batch: int, height: int, width: int) -> None:
        """Release what `enqueue` prepared for a shape; graphs that captured it must be closed first."""
        ...

    def close(self) -> None:
        """Release everything it holds."""
        ...


class DeviceRecogniser(Protocol):
    """A network on one GPU that reads lines of text; thread-safe as a `DeviceNetwork`, of which it is one otherwise."""

    def steps(self, stream: Stream, height: int, width: int) -> int:
        """Time steps of a line of that size; it may execute the network, and must not be captured."""
        ...

    def check(self, batch: int, height: int, width: int) -> None:
        """Raise InvalidInputError for a shape that the network does not take; sizes in pixels."""
        ...

    def enqueue(
        self, stream: Stream, lines: Buffer, classes: Buffer, probabilities: Buffer, batch: int, height: int, width: int
    ) -> None:
        """Queue the network; see `DeviceNetwork.enqueue`.

        Args:
            stream: Where to queue it.
            lines: uint8 (batch, height, width, 3) RGB.
            classes: int32 (batch, `steps`), the best class of each step.
            probabilities: float32 (batch, `steps`), its probability.
            batch: Lines, computed independently of each other.
            height: Rows of each line.
            width: Columns of each line.
        """
        ...

    def unrecordable(self) -> str:
        """See `DeviceNetwork.unrecordable`."""
        ...

    def release(self, stream: Stream, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.release`."""
        ...

    def close(self) -> None:
        """Release everything it holds."""
        ...
