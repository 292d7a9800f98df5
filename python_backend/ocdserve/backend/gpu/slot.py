# SPDX-License-Identifier: Apache-2.0
"""A stream with its memory that computes one batch after the other; its work is recorded as CUDA graphs."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from ocdserve.backend.device.protocol import Device, DeviceMemoryError, Graph, Stream
from ocdserve.backend.gpu.postprocess import GpuPostprocess
from ocdserve.backend.gpu.preprocess import GpuPreprocess, Source
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.backend.network.resource_pool import RecentlyUsed
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.contract import UnavailableError
from ocdserve.results.detections import Detections

_logger = logging.getLogger(__name__)


@dataclass
class GraphSwitch:
    """Whether work is recorded as graphs; shared by all slots of a network, the first failure turns it off."""

    on: bool = True

    def turn_off(self, reason: UnavailableError) -> None:
        """Queue the work call by call from now on, and log it once."""
        if self.on:
            _logger.warning(
                "the network cannot be recorded in a CUDA graph, its calls are queued each time: %s", reason
            )
        self.on = False


class Slot:
    """All stages for one batch at a time; for one thread at a time.

    Args:
        device: The GPU.
        network: The network on it.
        policy: How an image gets its network size.
        max_batch: Most images per batch.
        most_plans: Shapes whose memory and graphs are kept; beyond that the least recently used one is released.
        switch: Whether graphs are used.
    """

    def __init__(
        self,
        device: Device,
        network: DeviceNetwork,
        policy: ResizePolicy,
        max_batch: int,
        most_plans: int,
        switch: GraphSwitch,
    ) -> None:
        self._device = device
        self._network = network
        self._switch = switch
        self.stream = device.stream()
        self._preprocess = GpuPreprocess(device, policy, max_batch)
        self._plans: RecentlyUsed[tuple[int, int, int], _Plan] = RecentlyUsed(most_plans, lambda _, plan: plan.close())

    def run(self, images: Sequence[Source], parameters: Sequence[PostprocessParams]) -> list[Detections]:
        """Detect text in images of one network size.

        Raises:
            InvalidInputError: The network does not take the size.
            DeviceMemoryError: The GPU is out of memory, even after the memory of other shapes was released.
            DeviceError: The GPU failed.
            UnavailableError: The network's library failed.
        """
        try:
            return self._run(images, parameters)
        except DeviceMemoryError:
            if not self._plans:
                raise
            self.trim()
            return self._run(images, parameters)

    def trim(self) -> None:
        """Release the memory of all shapes; the next batch of each shape prepares it again."""
        self.stream.synchronize()
        self._plans.clear()

    def close(self) -> None:
        """Release everything it holds."""
        self._plans.clear()
        self._preprocess.close()
        self.stream.close()

    def _run(self, images: Sequence[Source], parameters: Sequence[PostprocessParams]) -> list[Detections]:
        frames = self._preprocess.stage(images, self.stream)
        plan = self._plan(len(images), *frames[0].network)
        plan.postprocess.set(list(zip(frames, parameters, strict=True)))
        plan.run(self._switch)
        self.stream.synchronize()
        return plan.postprocess.results(self.stream, plan.maps)

    def _plan(self, batch: int, height: int, width: int) -> "_Plan":
        def make() -> _Plan:
            self._network.check(batch, height, width)
            return _Plan(self._device, self._network, self._preprocess, self.stream, batch, height, width)

        return self._plans.get((batch, height, width), make)


class _Plan:
    """Memory and work for batches of one shape.

    The first batch is queued call by call, which prepares kernels and network; the second one is recorded.
    """

    def __init__(
        self,
        device: Device,
        network: DeviceNetwork,
        preprocess: GpuPreprocess,
        stream: Stream,
        batch: int,
        height: int,
        width: int,
    ) -> None:
        self._device = device
        self._network = network
        self._preprocess = preprocess
        self._stream = stream
        self._shape = (batch, height, width)
        self._graph: Graph | None = None
        self._prepared = False
        area = batch * height * width
        with ExitStack() as on_failure:
            self._pixels = on_failure.enter_context(closing(device.allocate(3 * area)))
            self.maps = on_failure.enter_context(
                closing(device.allocate(area if network.map_type == "uint8" else 4 * area))
            )
            self.postprocess = GpuPostprocess(device, batch, height, width, network.map_type)
            on_failure.pop_all()

    def run(self, switch: GraphSwitch) -> None:
        """Queue all stages for what was staged and set."""
        if self._graph is None and self._prepared and switch.on:
            self._record(switch)
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()
        self._prepared = True

    def close(self) -> None:
        """Release everything it holds, the graph first: it refers to the rest."""
        if self._graph is not None:
            self._graph.close()
        self._network.release(self._stream, *self._shape)
        self.postprocess.close()
        self.maps.close()
        self._pixels.close()

    def _record(self, switch: GraphSwitch) -> None:
        try:
            with self._stream.capture() as capture:
                self._enqueue()
            self._graph = capture.graph
        except DeviceMemoryError:
            # Not the network's fault: recording is tried again with more memory.
            raise
        except UnavailableError as error:
            if self._device.failed:
                raise
            switch.turn_off(error)

    def _enqueue(self) -> None:
        batch, height, width = self._shape
        self._preprocess.launch(self._stream, self._pixels, batch, (height, width))
        self._network.enqueue(self._stream, self._pixels, self.maps, batch, height, width)
        self.postprocess.enqueue(self._stream, self.maps)
