# SPDX-License-Identifier: Apache-2.0
"""The steps of an ensemble: single stages between tensors that may be on the GPU.

The tensors are those of the contract: images of several sizes share a container, as large as the largest, and frames
say which part each one fills. Returned tensors are complete on the GPU. All steps are thread-safe.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.dlpack import DeviceTensor
from ocdserve.backend.device.protocol import Buffer, Device, Stream
from ocdserve.backend.gpu.decode import DecoderKind
from ocdserve.backend.gpu.device_image import DeviceImage, size_of
from ocdserve.backend.gpu.inputs import Image, ImageReader, batches_of, bucket_of
from ocdserve.backend.gpu.memory import SharedBuffers
from ocdserve.backend.gpu.postprocess import GpuPostprocess
from ocdserve.backend.gpu.preprocess import GpuPreprocess, Source, sources_of
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.backend.network.resource_pool import RecentlyUsed, ResourcePool
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame, ResizePolicy, container_of
from ocdserve.backend.stages.postprocess import merged_parts
from ocdserve.contract import MAX_BATCH_SIZE, Limits
from ocdserve.results.detections import Detections

# On the host, or on the GPU.
Tensor = NDArray[np.uint8] | DeviceTensor

# Keeps every size: for cutting images out of a container.
_UNCHANGED = ResizePolicy("short_side", enlarge=False, largest_side=4096, stride=1, bucket=1)
# Shapes per stream that stay prepared.
_MOST_SHAPES = 8


class PreprocessStep:
    """Images to network pixels on the GPU.

    Args:
        device: The GPU.
        index: Its index.
        policy: How an image gets its network size.
        concurrency: Calls on the GPU at the same time.
        limits: Limits of decoding.
        decoder: See `decode.make_decoder`.
        threads: Images that the CPU decodes at the same time; None: one per core of this process.
    """

    def __init__(
        self,
        device: Device,
        index: int,
        policy: ResizePolicy,
        concurrency: int = 2,
        limits: Limits | None = None,
        decoder: DecoderKind = "cpu",
        threads: int | None = None,
    ) -> None:
        policy.check_for_gpu()
        self._device = device
        self._index = index
        self._policy = policy
        self._reader = ImageReader(device, limits or Limits(), decoder, threads)
        self._pool = ResourcePool(lambda: (device.stream(), GpuPreprocess(device, policy, MAX_BATCH_SIZE)), concurrency)

    def run(self, images: Sequence[Image], page: int | None = None) -> tuple[DeviceTensor, list[Frame]]:
        """NETWORK_IMAGE (B, H, W, 3), and the frame of each image; `page` is that of every encoded image.

        Raises:
            InvalidInputError: An image is not valid; the message names its index where there are several.
            UnavailableError: The GPU is out of memory, or has failed.
        """
        pixels = self._reader.read_valid(images, page)
        frames = [Frame.of(*size_of(each), self._policy) for each in pixels]
        container = container_of(frames)
        shape = (len(frames), *container, 3)
        with self._pool.acquire() as (stream, preprocess):
            output = self._device.allocate(int(np.prod(shape)))
            if any(frame.tiles > 1 for frame in frames):
                _put_tiles(preprocess, stream, pixels, frames, output, container)
            else:
                preprocess.stage(pixels, stream)
                preprocess.launch(stream, output, len(frames), container)
            stream.synchronize()
        return DeviceTensor(output, shape, np.dtype(np.uint8), self._index), frames

    def close(self) -> None:
        """Release what it holds on the GPU."""
        self._reader.close()
        for stream, preprocess in self._pool.drain():
            preprocess.close()
            stream.close()


class NetworkStep:
    """Network pixels to maps on the GPU; images are cut out of their containers, so that results are independent.

    One call runs at a time, as Triton makes them: waiting requests are put into larger batches.

    Args:
        device: The GPU.
        index: Its index.
        network: The network on it; released by `close`.
    """

    def __init__(self, device: Device, index: int, network: DeviceNetwork) -> None:
        self._device = device
        self._index = index
        self._network = network
        self._pool = ResourcePool(lambda: _NetworkStream(device, network), 1)

    def check(self, height: int, width: int) -> None:
        """Raise InvalidInputError for a size, in pixels, that the network does not take."""
        self._network.check(1, height, width)

    def run(self, requests: Sequence[tuple[Tensor, Sequence[Frame]]]) -> list[DeviceTensor]:
        """The MAP (B, H, W) of each request's NETWORK_IMAGE (B, H, W, 3), uint8; images of one size share batches.

        Raises:
            InvalidInputError: The network does not take the size of an image.
            UnavailableError: The network's library or the GPU failed, or the GPU is out of memory.
        """
        maps = [
            DeviceTensor(
                self._device.allocate(int(np.prod(container.shape[:3]))),
                tuple(container.shape[:3]),
                np.dtype(np.uint8),
                self._index,
            )
            for container, _ in requests
        ]
        # Request, image, and first row of each part.
        groups: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        for which, (_, frames) in enumerate(requests):
            for image, frame in enumerate(frames):
                for part, row in zip(frame.parts, frame.rows, strict=True):
                    groups[part.network].append((which, image, row))
        with self._pool.acquire() as worker:
            for (container, frames), target in zip(requests, maps, strict=True):
                if not all(_fills(frame, *container.shape[1:3]) for frame in frames):
                    worker.stream.fill(target.buffer, 0, target.nbytes)
            for size, places in groups.items():
                for batch in batches_of(places, MAX_BATCH_SIZE):
                    sources = [_cut(requests[which][0], image, row, *size) for which, image, row in batch]
                    worker.run(sources, size, [(maps[which], image, row) for which, image, row in batch])
            worker.stream.synchronize()
        return maps

    def close(self) -> None:
        """Release what it holds on the GPU, including the network."""
        workers = self._pool.drain()
        for worker in workers:
            worker.trim()
        # Before the streams, which its sessions are bound to.
        self._network.close()
        for worker in workers:
            worker.close()


class _NetworkStream:
    """A stream, and the memory and shapes prepared for it."""

    def __init__(self, device: Device, network: DeviceNetwork) -> None:
        self.stream = device.stream()
        self._device = device
        self._network = network
        self._cut = GpuPreprocess(device, _UNCHANGED, MAX_BATCH_SIZE)
        self._memory: RecentlyUsed[tuple[int, int, int], tuple[Buffer, Buffer]] = RecentlyUsed(
            _MOST_SHAPES, functools.partial(_release, network, self.stream)
        )

    def run(
        self, images: Sequence[Source], size: tuple[int, int], targets: Sequence[tuple[DeviceTensor, int, int]]
    ) -> None:
        """Queue a batch; each map is copied to an index of a target tensor, from a row on."""
        height, width = size
        self._cut.stage(images, self.stream)
        batch = bucket_of(len(images), MAX_BATCH_SIZE)
        pixels, maps = self._memory.get((batch, height, width), lambda: self._allocated(batch * height * width))
        self._cut.launch(self.stream, pixels, batch, size)
        self._network.enqueue(self.stream, pixels, maps, batch, height, width)
        for number, (target, image, top) in enumerate(targets):
            _, rows, columns = target.shape
            source, begin = number * height * width, (image * rows + top) * columns
            if columns == width:
                self.stream.copy(target.buffer, maps, height * width, begin, source)
                continue
            # Only where images of one request differ in size.
            for row in range(height):
                self.stream.copy(target.buffer, maps, width, begin + row * columns, source + row * width)

    def trim(self) -> None:
        """Release the memory of all shapes."""
        self.stream.synchronize()
        self._memory.clear()

    def close(self) -> None:
        self._cut.close()
        self.stream.close()

    def _allocated(self, area: int) -> tuple[Buffer, Buffer]:
        with ExitStack() as on_failure:
            pixels = on_failure.enter_context(closing(self._device.allocate(3 * area)))
            maps = self._device.allocate(area)
            on_failure.pop_all()
        return pixels, maps


def _release(
    network: DeviceNetwork, stream: Stream, shape: tuple[int, int, int], memory: tuple[Buffer, Buffer]
) -> None:
    """Not a method: its object would be in a reference cycle, and keep GPU memory until the garbage collector runs."""
    network.release(stream, *shape)
    for buffer in memory:
        buffer.close()


class PostprocessStep:
    """Maps to detections.

    Args:
        device: The GPU.
        concurrency: Calls on the GPU at the same time.
    """

    def __init__(self, device: Device, concurrency: int = 2) -> None:
        self._device = device
        self._pool = ResourcePool(lambda: _PostprocessStream(device), concurrency)

    def run(self, maps: Tensor, images: Sequence[tuple[Frame, PostprocessParams]]) -> list[Detections]:
        """The detections of each image of a MAP (B, H, W), uint8.

        Raises:
            InvalidInputError: An image is larger than the container.
            UnavailableError: The GPU is out of memory, or has failed.
        """
        with self._pool.acquire() as worker:
            return worker.run(maps, images)

    def close(self) -> None:
        """Release what it holds on the GPU."""
        for worker in self._pool.drain():
            worker.close()


class _PostprocessStream:
    """A stream, and what is prepared for the most recently used shapes, whose tables share memory."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream: Stream = device.stream()
        self._tables = SharedBuffers(device)
        self._stages: RecentlyUsed[tuple[int, ...], GpuPostprocess] = RecentlyUsed(
            _MOST_SHAPES, lambda _, stage: stage.close()
        )

    def run(self, maps: Tensor, images: Sequence[tuple[Frame, PostprocessParams]]) -> list[Detections]:
        if all(frame.tiles == 1 for frame, _ in images):
            return self._run(maps, images)
        return [self._merged(maps, index, *image) for index, image in enumerate(images)]

    def _merged(self, maps: Tensor, index: int, frame: Frame, params: PostprocessParams) -> Detections:
        """The detections of one image of the container, in tiles or in one piece."""
        _, rows, width = maps.shape
        found: list[Detections] = []
        for part, _, count, row in _runs(frame):
            size, begin = count * part.network[0] * width, (index * rows + row) * width
            with closing(self._device.allocate(size)) as buffer:
                if isinstance(maps, DeviceTensor):
                    self._stream.copy(buffer, maps.buffer, size, 0, begin)
                else:
                    self._stream.to_device(buffer, np.ascontiguousarray(maps).reshape(-1)[begin : begin + size])
                stage = self._stage(count, part.network[0], width)
                stage.set([(part, params)] * count)
                found += self._results(stage, buffer)
        return found[0] if frame.tiles == 1 else merged_parts(found, frame)

    def _stage(self, batch: int, height: int, width: int) -> GpuPostprocess:
        def make() -> GpuPostprocess:
            return GpuPostprocess(self._device, batch, height, width, tables=self._tables)

        return self._stages.get((batch, height, width), make)

    def _run(self, maps: Tensor, images: Sequence[tuple[Frame, PostprocessParams]]) -> list[Detections]:
        batch, height, width = maps.shape
        stage = self._stage(batch, height, width)
        stage.set(images)
        if isinstance(maps, DeviceTensor):
            return self._results(stage, maps.buffer)
        buffer = self._device.allocate(maps.nbytes)
        try:
            self._stream.to_device(buffer, np.ascontiguousarray(maps))
            return self._results(stage, buffer)
        finally:
            buffer.close()

    def close(self) -> None:
        self._stages.clear()
        self._stream.close()

    def _results(self, stage: GpuPostprocess, maps: Buffer) -> list[Detections]:
        stage.enqueue(self._stream, maps)
        self._stream.synchronize()
        return stage.results(self._stream, maps)


def _put_tiles(
    preprocess: GpuPreprocess,
    stream: Stream,
    images: Sequence[NDArray[np.uint8] | DeviceImage],
    frames: Sequence[Frame],
    output: Buffer,
    container: tuple[int, int],
) -> None:
    """Queue images, some of them in tiles, into their containers of (height, width)."""
    rows, columns = container
    stream.fill(output, 0, output.size)
    for index, (image, frame) in enumerate(zip(images, frames, strict=True)):
        sources = sources_of(image, frame)
        for part, first, count, row in _runs(frame):
            batch = preprocess(sources[first : first + count], stream, (part.network[0], columns))
            stream.copy(output, batch.data, int(np.prod(batch.shape)), 3 * columns * (index * rows + row), 0)


def _runs(frame: Frame) -> Iterator[tuple[Frame, int, int, int]]:
    """First part, its index, number of parts, and first row, of the runs of parts of one size that a batch holds."""
    begin, parts, rows = 0, frame.parts, frame.rows
    for level in frame.levels:
        for first in range(begin, begin + level.tiles, MAX_BATCH_SIZE):
            yield parts[first], first, min(MAX_BATCH_SIZE, begin + level.tiles - first), rows[first]
        begin += level.tiles


def _fills(frame: Frame, height: int, width: int) -> bool:
    """Whether an image's parts leave nothing free in a container."""
    return frame.container[0] == height and all(level.network[1] == width for level in frame.levels)


def _cut(container: Tensor, image: int, row: int, height: int, width: int) -> Source:
    """An image's own part of its container, or a tile's, from a row on."""
    if not isinstance(container, DeviceTensor):
        return container[image, row : row + height, :width]
    _, rows, columns, _ = container.shape
    pointer = container.buffer.pointer + 3 * columns * (rows * image + row)
    return DeviceImage(pointer, height, width, 3 * columns, owner=container)
