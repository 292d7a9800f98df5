# SPDX-License-Identifier: Apache-2.0
"""A network on the GPU between arrays of the host, for those who have the other stages on the CPU."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.atexit_close import close_at_exit
from ocdserve.backend.device.protocol import Device, Stream
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.backend.network.resource_pool import Lanes

# Shapes of one stream that stay prepared.
_MOST_SHAPES = 16


class HostNetwork:
    """A `Network` around a `DeviceNetwork`; closed at the end of the process at the latest.

    Args:
        device: The GPU; given back by `close`.
        network: The network on it; given back by `close`.
        streams: Images in the network at the same time.
    """

    def __init__(self, device: Device, network: DeviceNetwork, streams: int = 1) -> None:
        self._device = device
        self._network = network
        self._lanes = Lanes(lambda: _Lane(device.stream()), streams)
        self._closed = False
        close_at_exit(self)

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        """See `ocdserve.backend.network.protocols.Network.infer`."""
        return [self._infer_one(np.ascontiguousarray(image)) for image in images]

    def close(self) -> None:
        """Give back network and device; calling it again does nothing."""
        if not self._closed and not self._device.failed:
            self._network.close()
            self._device.close()
        self._closed = True

    def _infer_one(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        height, width = image.shape[:2]
        self._network.check(1, height, width)
        probability = np.empty((height, width), np.dtype(self._network.map_type))
        with self._lanes.lent() as lane:
            pixels, maps = self._device.allocate(image.nbytes), self._device.allocate(probability.nbytes)
            try:
                lane.stream.to_device(pixels, image)
                self._network.enqueue(lane.stream, pixels, maps, 1, height, width)
                lane.stream.to_host(probability, maps)
                lane.stream.synchronize()
            finally:
                pixels.close()
                maps.close()
            lane.keep(height, width, self._network)
        return probability


class _Lane:
    """A stream, and the shapes that the network keeps prepared for it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._shapes: OrderedDict[tuple[int, int], None] = OrderedDict()

    def keep(self, height: int, width: int, network: DeviceNetwork) -> None:
        """Note that a shape was used; the one that was used longest ago is given back where there are too many."""
        self._shapes[height, width] = None
        self._shapes.move_to_end((height, width))
        while len(self._shapes) > _MOST_SHAPES:
            oldest, _ = self._shapes.popitem(last=False)
            network.release(self.stream, 1, *oldest)
