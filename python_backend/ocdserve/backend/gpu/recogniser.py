# SPDX-License-Identifier: Apache-2.0
"""The recogniser with its lines cut out and its network on a GPU; its speed on one is not measured yet."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.atexit_close import close_at_exit
from ocdserve.backend.device.forks import bind_to_process, check_process
from ocdserve.backend.device.protocol import Device, DeviceMemoryError, Stream
from ocdserve.backend.gpu.device_image import DeviceImage, size_of
from ocdserve.backend.gpu.graphs import GraphSwitch, RecordedWork, Shape
from ocdserve.backend.gpu.inputs import batches_of, bucket_of, buckets
from ocdserve.backend.gpu.memory import locked_bytes
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.gpu.rectify import GpuRectify
from ocdserve.backend.network.protocols import DeviceRecogniser
from ocdserve.backend.network.resource_pool import RecentlyUsed, ResourcePool
from ocdserve.backend.recogniser import ReadLine, Recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.stages.ctc import Steps
from ocdserve.contract import InvalidInputError, ReadingParameters
from ocdserve.results.detections import Detections
from ocdserve.results.images import for_each
from ocdserve.results.pictures import check_size
from ocdserve.results.reading import Reading
from ocdserve.results.reading.lines import LINE, LineImage, LinePlace, LinePlan

Pixels: TypeAlias = NDArray[np.uint8] | DeviceImage


class GpuRecogniser(Recogniser):
    """Reads lines of text on a GPU; thread-safe.

    The lines of one call that have the same width in the network share batches, also those of several images.

    Args:
        bundle: The recogniser's contract.
        device: The GPU.
        network: The bundle's network on it; released by `close`.
        options: Slots, lines per batch, and shapes that stay prepared.

    Raises:
        InvalidInputError: The recogniser's lines are stretched, which only the CPU does.
    """

    def __init__(
        self, bundle: RecogniserBundle, device: Device, network: DeviceRecogniser, options: GpuOptions | None = None
    ) -> None:
        super().__init__(bundle, None)
        if self.spec.widths.fit != "pad":
            raise InvalidInputError(
                f"widths.fit must be pad on a GPU; got {self.spec.widths.fit}. Read with a runtime of the CPU."
            )
        options = options or GpuOptions()
        self._device = device
        self._on_gpu = network
        self._most_lines = options.max_lines
        self._closed = False
        self._process = bind_to_process(self)
        switch = GraphSwitch(network)
        fill = int(self._padding)
        self._slots = ResourcePool(lambda: _Slot(device, network, fill, options, switch), options.slots)
        # Of one call, several batches are in work.
        self._threads = ThreadPoolExecutor(options.slots, thread_name_prefix="lines")
        close_at_exit(self)

    @contextlib.contextmanager
    def on_gpu(self, images: Sequence[Pixels]) -> Iterator[list[DeviceImage]]:
        """The images in the GPU's memory, complete, for the duration of the `with` block.

        Raises:
            UnavailableError: The GPU is out of memory, or has failed.
        """
        with ExitStack() as held:
            placed = []
            with self._slots.acquire() as slot:
                kept = []
                for image in images:
                    if isinstance(image, DeviceImage):
                        placed.append(image)
                        continue
                    source = locked_bytes(image)
                    kept.append(np.ascontiguousarray(image).reshape(-1) if source is None else source[: image.size])
                    buffer = held.enter_context(closing(self._device.allocate(image.size)))
                    slot.stream.to_device(buffer, kept[-1])
                    placed.append(DeviceImage(buffer.pointer, image.shape[0], image.shape[1], owner=buffer))
                slot.stream.synchronize()
            yield placed

    def recognise_all(
        self, images: Sequence[Pixels], found: Sequence[Detections], parameters: ReadingParameters
    ) -> list[Reading]:
        """See `Recogniser.recognise_all`; images may also be on the GPU."""
        return self.recognise_each(images, found, [parameters] * len(images))

    def recognise_each(
        self, images: Sequence[Pixels], found: Sequence[Detections], parameters: Sequence[ReadingParameters]
    ) -> list[Reading]:
        """Read the detected text of several images, each with its own parameters; see `Recogniser.recognise_all`."""
        check_process(self._process)
        plans = for_each(lambda pair: self._plan(*pair), list(zip(images, found, strict=True)))
        read: dict[int, list[ReadLine]] = {}
        with self.on_gpu(images) as placed:
            for image, plan in zip(placed, plans, strict=True):
                plan.lines["pixels"], plan.lines["pitch"] = image.pointer, image.row_step
            for direction in (False, True):
                chosen = [index for index, each in enumerate(parameters) if each.direction == direction]
                places, lines = [plans[index].places for index in chosen], [plans[index].lines for index in chosen]
                read |= zip(chosen, self._read_records(places, lines, direction), strict=True)
        return [
            self.reading(each, plan.places, read[index], wanted)
            for index, (each, plan, wanted) in enumerate(zip(found, plans, parameters, strict=True))
        ]

    def read_pages(self, pages: Sequence[Sequence[LineImage]], direction: bool = True) -> list[list[ReadLine]]:
        """See `Recogniser.read_pages`."""
        check_process(self._process)
        with self.on_gpu([line.pixels for lines in pages for line in lines]) as placed:
            images = iter(placed)
            records = [np.array([self._whole(next(images)) for _ in lines], LINE) for lines in pages]
            return self._read_records(pages, records, direction)

    def close(self) -> None:
        """Release everything it holds but the device; again, or in a forked child, it does nothing."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        self._threads.shutdown()
        slots = self._slots.drain()
        if self._device.failed:
            return
        for slot in slots:
            slot.trim()
        # Before the streams, which its sessions are bound to.
        self._on_gpu.close()
        for slot in slots:
            slot.close()

    def _plan(self, image: Pixels, found: Detections) -> LinePlan:
        height, width = size_of(image)
        check_size(found, width, height)
        return LinePlan.of(found.quads, self.spec.height, (height, width), self.spec.widths.largest)

    def _whole(self, image: DeviceImage) -> np.void:
        """A line that is cut out already, squeezed if it is too wide."""
        line: np.void = np.zeros(1, LINE)[0]
        width = min(image.width, self.spec.widths.largest)
        scale = image.width / width
        line["across"], line["down"], line["depth"] = (scale, 0, (scale - 1) / 2), (0, 1, 0), (0, 0, 1)
        line["pixels"], line["pitch"] = image.pointer, image.row_step
        line["last_x"], line["last_y"] = image.width - 1, image.height - 1
        line["height"], line["width"], line["reduction"] = image.height, width, 1
        return line

    def _read_records(
        self, pages: Sequence[Sequence[LinePlace]], records: Sequence[NDArray[Any]], direction: bool
    ) -> list[list[ReadLine]]:
        """What the lines of pages read, `LINE` (N,) each."""

        def read(chosen: Sequence[Sequence[int]], upside_down: bool) -> list[list[ReadLine]]:
            wanted = np.concatenate([of[list(indices)] for of, indices in zip(records, chosen, strict=True)])
            wanted["upside_down"] = upside_down
            found = iter(self._read_in_batches(wanted))
            return [[next(found) for _ in indices] for indices in chosen]

        return self._read_upright(pages, read, direction) if pages else []

    def _read_in_batches(self, lines: NDArray[Any]) -> list[ReadLine]:
        groups: dict[int, list[int]] = defaultdict(list)
        for index, width in enumerate(lines["width"].tolist()):
            groups[self.spec.widths.fitted(width)].append(index)
        batches = [
            (width, list(batch))
            for width, members in groups.items()
            for batch in batches_of(members, self._most(width))
        ]

        def run(batch: tuple[int, list[int]]) -> list[Steps]:
            width, members = batch
            with self._slots.acquire() as slot:
                return slot.run(lines[members], self.spec.height, width)

        read: dict[int, ReadLine] = {}
        for (_, members), found in zip(batches, self._threads.map(run, batches), strict=True):
            for index, steps in zip(members, found, strict=True):
                read[index] = self._decoded(int(lines["width"][index]), steps)
        return [read[index] for index in range(len(lines))]

    def _most(self, width: int) -> int:
        """Most lines of a width, in pixels, that the network takes at once."""
        *larger, least = buckets(self._most_lines)
        for count in larger:
            with contextlib.suppress(InvalidInputError):
                self._on_gpu.check(count, self.spec.height, width)
                return count
        self._on_gpu.check(least, self.spec.height, width)
        return least


class _Slot:
    """A stream with its memory, for one batch of lines at a time and one thread at a time."""

    def __init__(
        self, device: Device, network: DeviceRecogniser, fill: int, options: GpuOptions, switch: GraphSwitch
    ) -> None:
        self._device = device
        self._network = network
        self._fill = fill
        self._most = options.max_lines
        self._switch = switch
        self.stream = device.stream()
        self._rectify = GpuRectify(device, options.max_lines)
        self._batches: RecentlyUsed[Shape, _Batch] = RecentlyUsed(options.line_shapes, lambda _, batch: batch.close())

    def run(self, lines: NDArray[Any], height: int, width: int) -> list[Steps]:
        """The time steps of lines, `LINE` (N,).

        Raises:
            DeviceMemoryError: The GPU is out of memory, even for one line.
            DeviceError: The GPU failed.
            UnavailableError: The network's library failed.
        """
        try:
            return self._run(lines, height, width)
        except DeviceMemoryError:
            self.trim()
            if len(lines) == 1:
                return self._run(lines, height, width)
        half = len(lines) // 2
        return [*self.run(lines[:half], height, width), *self.run(lines[half:], height, width)]

    def trim(self) -> None:
        """Release the memory of all shapes; the next batch of each shape prepares it again."""
        self.stream.synchronize()
        self._batches.clear()

    def close(self) -> None:
        """Release everything it holds."""
        self._batches.clear()
        self._rectify.close()
        self.stream.close()

    def _run(self, lines: NDArray[Any], height: int, width: int) -> list[Steps]:
        shape = (bucket_of(len(lines), self._most), height, width)
        batch = self._batches.get(shape, lambda: _Batch(self._device, self._network, self.stream, shape))
        self._rectify.stage(lines)
        batch.run(self._rectify, self._fill)
        self.stream.synchronize()
        found = batch.found(len(lines))
        batch.record(self._rectify, self._fill, self._switch)
        return found


class _Batch:
    """Memory and work for batches of one shape."""

    def __init__(self, device: Device, network: DeviceRecogniser, stream: Stream, shape: Shape) -> None:
        self._network = network
        self._stream = stream
        self._shape = shape
        self._work = RecordedWork(device, stream, shape)
        count, height, width = shape
        steps = network.steps(stream, height, width)
        self._classes = device.host_array((count, steps), np.int32)
        self._probabilities = device.host_array((count, steps), np.float32)
        with ExitStack() as on_failure:
            sizes = (3 * count * height * width, self._classes.nbytes, self._probabilities.nbytes)
            self._buffers = [on_failure.enter_context(closing(device.allocate(size))) for size in sizes]
            on_failure.pop_all()

    def run(self, rectify: GpuRectify, fill: int) -> None:
        """Queue all stages for what was staged."""
        self._work.run(lambda: self._enqueue(rectify, fill))

    def record(self, rectify: GpuRectify, fill: int, switch: GraphSwitch) -> None:
        """See `RecordedWork.record`."""
        self._work.record(lambda: self._enqueue(rectify, fill), switch)

    def found(self, count: int) -> list[Steps]:
        """The time steps of the first lines of the batch, which is complete."""
        return [
            Steps(*each) for each in zip(self._classes[:count].copy(), self._probabilities[:count].copy(), strict=True)
        ]

    def close(self) -> None:
        """Release everything it holds, the graph first: it refers to the rest."""
        self._work.close()
        self._network.release(self._stream, *self._shape)
        for buffer in self._buffers:
            buffer.close()

    def _enqueue(self, rectify: GpuRectify, fill: int) -> None:
        lines, classes, probabilities = self._buffers
        rectify.launch(self._stream, lines, *self._shape, fill)
        self._network.enqueue(self._stream, lines, classes, probabilities, *self._shape)
        self._stream.to_host(self._classes, classes)
        self._stream.to_host(self._probabilities, probabilities)
