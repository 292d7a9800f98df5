# SPDX-License-Identifier: Apache-2.0
"""Networks on the GPU with inputs and outputs on the host, for use with the CPU's other stages."""

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.atexit_close import close_at_exit
from ocdserve.backend.device.forks import bind_to_process, check_process
from ocdserve.backend.device.protocol import Device, Stream
from ocdserve.backend.network.protocols import DeviceNetwork, DeviceRecogniser
from ocdserve.backend.network.resource_pool import RecentlyUsed, ResourcePool
from ocdserve.backend.stages.ctc import Steps

_Network = TypeVar("_Network", bound=DeviceNetwork | DeviceRecogniser)

# Shapes per stream that stay prepared.
_MOST_SHAPES = 16


class _OnGpu(Generic[_Network]):
    """A network on a GPU; closed at the end of the process at the latest.

    Args:
        device: The GPU; released by `close`.
        network: The network on it; released by `close`.
        streams: Images in the network at the same time.
    """

    def __init__(self, device: Device, network: _Network, streams: int = 1) -> None:
        self._device = device
        self._network = network
        self._streams = ResourcePool(self._new_stream, streams)
        self._closed = False
        self._process = bind_to_process(self)
        close_at_exit(self)

    def close(self) -> None:
        """Release network and device; calling it again, or in a forked child, does nothing."""
        if os.getpid() != self._process:
            return
        if not self._closed and not self._device.failed:
            self._network.close()
            self._device.close()
        self._closed = True

    def _new_stream(self) -> tuple[Stream, RecentlyUsed[tuple[int, int], None]]:
        """A stream, and the shapes for which the network is prepared on it."""
        stream, network = self._device.stream(), self._network
        # No reference to `self`: a cycle would keep engine and memory until the garbage collector runs.
        return stream, RecentlyUsed(_MOST_SHAPES, lambda shape, _: network.release(stream, 1, *shape))


class HostNetwork(_OnGpu[DeviceNetwork]):
    """A `Network` around a `DeviceNetwork`."""

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        """See `ocdserve.backend.network.protocols.Network.infer`."""
        check_process(self._process)
        return [self._infer_one(np.ascontiguousarray(image)) for image in images]

    def _infer_one(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        height, width = image.shape[:2]
        self._network.check(1, height, width)
        probability = np.empty((height, width), np.dtype(self._network.map_type))
        with self._streams.acquire() as (stream, shapes):
            pixels, maps = self._device.allocate(image.nbytes), self._device.allocate(probability.nbytes)
            try:
                stream.to_device(pixels, image)
                self._network.enqueue(stream, pixels, maps, 1, height, width)
                stream.to_host(probability, maps)
                stream.synchronize()
            finally:
                pixels.close()
                maps.close()
            shapes.get((height, width), lambda: None)
        return probability


class HostRecogniser(_OnGpu[DeviceRecogniser]):
    """A `RecogniserNetwork` around a `DeviceRecogniser`."""

    def infer(self, lines: Sequence[NDArray[np.uint8]]) -> list[Steps]:
        """See `ocdserve.backend.network.protocols.RecogniserNetwork.infer`."""
        check_process(self._process)
        return [self._infer_one(np.ascontiguousarray(line)) for line in lines]

    def _infer_one(self, line: NDArray[np.uint8]) -> Steps:
        height, width = line.shape[:2]
        self._network.check(1, height, width)
        with self._streams.acquire() as (stream, shapes), ExitStack() as held:
            steps = self._network.steps(stream, height, width)
            found = Steps(np.empty(steps, np.int32), np.empty(steps, np.float32))
            sizes = (line.nbytes, found.classes.nbytes, found.probabilities.nbytes)
            pixels, *targets = (held.enter_context(closing(self._device.allocate(size))) for size in sizes)
            classes, probabilities = targets
            stream.to_device(pixels, line)
            self._network.enqueue(stream, pixels, classes, probabilities, 1, height, width)
            for array, target in zip(found, targets, strict=True):
                stream.to_host(array, target)
            stream.synchronize()
            shapes.get((height, width), lambda: None)
        return found
