# SPDX-License-Identifier: Apache-2.0
"""A stream with its memory that computes one batch of images after the other."""

from collections.abc import Sequence
from contextlib import ExitStack, closing

from ocdserve.backend.device.protocol import Device, DeviceMemoryError, Stream
from ocdserve.backend.gpu.graphs import GraphSwitch, RecordedWork, Shape
from ocdserve.backend.gpu.inputs import bucket_of
from ocdserve.backend.gpu.memory import SharedBuffers
from ocdserve.backend.gpu.postprocess import GpuPostprocess
from ocdserve.backend.gpu.preprocess import GpuPreprocess, Source
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.backend.network.resource_pool import RecentlyUsed
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.results.detections import Detections


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
        self._plans: RecentlyUsed[Shape, _Plan] = RecentlyUsed(most_plans, lambda _, plan: plan.close())

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
        self._network = network
        self._preprocess = preprocess
        self._stream = stream
        self._shape: Shape = (batch, height, width)
        self._work = RecordedWork(device, stream, self._shape)
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
        self._work.run(self._enqueue, self.postprocess.prepare())

    def record(self, switch: GraphSwitch) -> None:
        """See `RecordedWork.record`."""
        self._work.record(self._enqueue, switch, self.postprocess.prepare)

    def close(self) -> None:
        """Release everything it holds, the graph first: it refers to the rest."""
        self._work.close()
        self._network.release(self._stream, *self._shape)
        self.postprocess.close()
        self.maps.close()
        self._pixels.close()

    def _enqueue(self) -> None:
        batch, height, width = self._shape
        self._preprocess.launch(self._stream, self._pixels, batch, (height, width))
        self._network.enqueue(self._stream, self._pixels, self.maps, batch, height, width)
        self.postprocess.enqueue(self._stream, self.maps)
