# SPDX-License-Identifier: Apache-2.0
"""A stream with its memory that computes one batch after the other; its work is recorded as CUDA graphs."""

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing

from ocdserve.backend.device.protocol import Device, DeviceMemoryError, Graph, Stream
from ocdserve.backend.gpu.inputs import bucket_of
from ocdserve.backend.gpu.memory import SharedBuffers
from ocdserve.backend.gpu.postprocess import GpuPostprocess
from ocdserve.backend.gpu.preprocess import GpuPreprocess, Source
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.backend.network.resource_pool import RecentlyUsed
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.contract import UnavailableError
from ocdserve.results.detections import Detections

_logger = logging.getLogger(__name__)


# Batch, height and width in pixels.
_Shape = tuple[int, int, int]
# Shapes whose recording may fail before no more are tried.
_MOST_REFUSED = 8
# Batches of a shape that are queued call by call before it is recorded: in the first a library prepares for the shape,
# in the second it may still allocate memory, which a recording forbids.
_BATCHES_BEFORE = 2


class GraphSwitch:
    """Which shapes of a network are recorded as graphs; shared by all its slots. Each refusal is logged once.

    Args:
        network: The network.
    """

    def __init__(self, network: DeviceNetwork) -> None:
        self._network = network
        self._refused: set[_Shape] = set()
        self._on = True
        self._lock = threading.Lock()

    def allows(self, shape: _Shape) -> bool:
        """Whether batches of a shape, for which the network was executed before, may be recorded."""
        with self._lock:
            if self._on and (reason := self._network.unrecordable()):
                self._on = False
                _logger.warning(
                    "the network is not recorded in CUDA graphs, its calls are queued each time: %s", reason
                )
            return self._on and shape not in self._refused

    def refuse(self, shape: _Shape, reason: UnavailableError) -> None:
        """Queue batches of a shape call by call from now on; after too many such shapes, all that are not recorded."""
        with self._lock:
            if not self._on or shape in self._refused:
                return
            self._refused.add(shape)
            self._on = len(self._refused) < _MOST_REFUSED
        _logger.warning(
            "a batch of %d x %d x %d pixels cannot be recorded in a CUDA graph, its calls are queued each time%s: %s",
            *shape,
            "" if self._on else ", as are those of all further shapes",
            reason,
        )


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
        self._tables = SharedBuffers(device)
        self._plans: RecentlyUsed[_Shape, _Plan] = RecentlyUsed(most_plans, lambda _, plan: plan.close())

    def run(self, images: Sequence[Source], parameters: Sequence[PostprocessParams]) -> list[Detections]:
        """Detect text in images of one network size; black images fill the batch up to its `bucket_of`.

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
        plan = self._plan(bucket_of(len(images), self._preprocess.max_batch), *frames[0].network)
        plan.postprocess.set(list(zip(frames, parameters, strict=True)))
        plan.run()
        # Their memory is free for others that are decoded meanwhile.
        self._preprocess.finish()
        found = plan.postprocess.results(self.stream, plan.maps)
        plan.record(self._switch)
        return found

    def _plan(self, batch: int, height: int, width: int) -> "_Plan":
        def make() -> _Plan:
            self._network.check(batch, height, width)
            return _Plan(self._device, self._network, self._preprocess, self._tables, self.stream, batch, height, width)

        return self._plans.get((batch, height, width), make)


class _Plan:
    """Memory and work for batches of one shape.

    The first two batches are queued call by call, and the work is recorded right behind the second one, not before the
    third: ONNX Runtime plans convolutions anew whenever a session's shape changes, which a recording must not hold.
    After the tables that all plans of a slot share were replaced, the next batch is queued call by call again.
    """

    def __init__(
        self,
        device: Device,
        network: DeviceNetwork,
        preprocess: GpuPreprocess,
        tables: SharedBuffers,
        stream: Stream,
        batch: int,
        height: int,
        width: int,
    ) -> None:
        self._device = device
        self._network = network
        self._preprocess = preprocess
        self._stream = stream
        self._shape: _Shape = (batch, height, width)
        self._graph: Graph | None = None
        self._recorded_tables = 0
        self._queued = 0
        area = batch * height * width
        with ExitStack() as on_failure:
            self._pixels = on_failure.enter_context(closing(device.allocate(3 * area)))
            self.maps = on_failure.enter_context(
                closing(device.allocate(area if network.map_type == "uint8" else 4 * area))
            )
            self.postprocess = GpuPostprocess(device, batch, height, width, network.map_type, tables=tables)
            on_failure.pop_all()

    def run(self) -> None:
        """Queue all stages for what was staged and set."""
        if self.postprocess.prepare() != self._recorded_tables and self._graph is not None:
            self._graph.close()
            self._graph = None
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()
            self._queued += 1

    def record(self, switch: GraphSwitch) -> None:
        """Record what `run` has queued call by call, once that was done often enough."""
        if self._graph is not None or self._queued < _BATCHES_BEFORE or not switch.allows(self._shape):
            return
        try:
            with self._stream.capture() as capture:
                self._enqueue()
            self._graph = capture.graph
            self._recorded_tables = self.postprocess.prepare()
        except DeviceMemoryError:
            # Not the network's fault: recording is tried again with more memory.
            raise
        except UnavailableError as error:
            if self._device.failed:
                raise
            switch.refuse(self._shape, error)

    def close(self) -> None:
        """Release everything it holds, the graph first: it refers to the rest."""
        if self._graph is not None:
            self._graph.close()
        self._network.release(self._stream, *self._shape)
        self.postprocess.close()
        self.maps.close()
        self._pixels.close()

    def _enqueue(self) -> None:
        batch, height, width = self._shape
        self._preprocess.launch(self._stream, self._pixels, batch, (height, width))
        self._network.enqueue(self._stream, self._pixels, self.maps, batch, height, width)
        self.postprocess.enqueue(self._stream, self.maps)
