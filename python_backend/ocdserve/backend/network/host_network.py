# SPDX-License-Identifier: Apache-2.0
"""A network on the GPU with inputs and outputs on the host, for use with the CPU's other stages."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.atexit_close import close_at_exit
from ocdserve.backend.device.protocol import Device, Stream
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.backend.network.resource_pool import ResourcePool

# Shapes per stream that stay prepared.
_MOST_SHAPES = 16


class HostNetwork:
    """A `Network` around a `DeviceNetwork`; closed at the end of the process at the latest.

    Args:
        device: The GPU; released by `close`.
        network: The network on it; released by `close`.
        streams: Images in the network at the same time.
    """

    def __init__(self, device: Device, network: DeviceNetwork, streams: int = 1) -> None:
        self._device = device
        self._network = network
        self._streams = ResourcePool(lambda: _ShapedStream(device.stream()), streams)
        self._closed = False
        close_at_exit(self)

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        """See `ocdserve.backend.network.protocols.Network.infer`."""
        return [self._infer_one(np.ascontiguousarray(image)) for image in images]

    def close(self) -> None:
        """Release network and device; calling it again does nothing."""
        if not self._closed and not self._device.failed:
            self._network.close()
            self._device.close()
        self._closed = True

    def _infer_one(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        height, width = image.shape[:2]
        self._network.check(1, height, width)
        probability = np.empty((height, width), np.dtype(self._network.map_type))
        with self._streams.acquire() as shaped:
            pixels, maps = self._device.allocate(image.nbytes), self._device.allocate(probability.nbytes)
            try:
                shaped.stream.to_device(pixels, image)
                self._network.enqueue(shaped.stream, pixels, maps, 1, height, width)
                shaped.stream.to_host(probability, maps)
                shaped.stream.synchronize()
            finally:
                pixels.close()
                maps.close()
            shaped.keep(height, width, self._network)
        return probability


class _ShapedStream:
    """A stream, and the shapes for which the network is prepared on it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._shapes: OrderedDict[tuple[int, int], None] = OrderedDict()

    def keep(self, height: int, width: int, network: DeviceNetwork) -> None:
        """Note that a shape was used, and release the least recently used one if there are too many."""
        self._shapes[height, width] = None
        self._shapes.move_to_end((height, width))
        while len(self._shapes) > _MOST_SHAPES:
            oldest, _ = self._shapes.popitem(last=False)
            network.release(self.stream, 1, *oldest)
