# SPDX-License-Identifier: Apache-2.0
"""Post-processing on the GPU: probability maps to the same detections as `ocdserve.backend.stages.postprocess`.

Only counts and detections leave the device, 48 bytes each. The kernels rarely fall back to the host: for quads that
are not convex once truncated to whole pixels, images with more regions than the tables hold, mode `tao`, and polygons,
for which the map is fetched.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device, Dim3, Kernel, KernelArgument, Stream
from ocdserve.backend.gpu.memory import SharedBuffers
from ocdserve.backend.network.options import MapType
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.spec.rows import IMAGE, LARGEST_SIDE, ROW, image_record
from ocdserve.backend.stages.postprocess import detections_of_rows, postprocess
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections

_logger = logging.getLogger(__name__)

_THREADS = 128

# Of segments.cuh: rows and words of a block of `binarise`, one word per thread.
_TILE_ROWS = 32
_TILE_WORDS = _THREADS // _TILE_ROWS

# Blocks per multiprocessor that share a batch's candidates: more than are resident at once, so that those that finish
# early are followed by others.
_BLOCKS = 8

# Other structures of postprocess.cuh.
_COUNTS = np.dtype([(name, "i4") for name in ("regions", "candidates", "rows", "accepted")])
_TABLES = np.dtype(
    [(name, "i4") for name in ("height", "width", "words", "regions", "candidates", "rows", "heads", "chain", "images")]
)
_REGION_BYTES, _CANDIDATE_BYTES, _SPAN_BYTES, _BOX_BYTES = 20, 20, 8, 48

# Of unclip.cuh.
_MOST_GROWN_POINTS = 512


@dataclass(frozen=True)
class Capacity:
    """Table sizes; an image that exceeds one is computed on the CPU.

    Attributes:
        regions: Text regions and holes above the threshold, of any size.
        candidates: Regions large enough for a rectangle.
        rows: The heights of all candidates together, in network pixels.
        heads: Detections of an image that are copied with the counts; further ones need a second copy.

    Raises:
        InvalidInputError: A field is below 1.
    """

    regions: int = 65_536
    candidates: int = 16_384
    rows: int = 262_144
    heads: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InvalidInputError(f"Capacity.{name} must be at least 1; got {value}")


class GpuPostprocess:
    """Buffers and launches for up to `batch` maps of one container size.

    The order of use is `set`, `enqueue`, `Stream.synchronize`, `results`; `enqueue` may be captured in a graph once
    and then launched with the graph.

    Args:
        device: The GPU with the maps.
        batch: Most images at a time.
        height: Of the container of the maps, in pixels.
        width: Likewise.
        map_type: Type of the maps.
        capacity: Sizes of the tables.
        tables: Memory of the tables, shared with others that use the same stream; None: memory of its own.

    Raises:
        InvalidInputError: A size is out of its range.
        DeviceMemoryError: There is not enough memory for the tables: about 10 MB per image of 736 x 1280.
        UnavailableError: The kernels cannot be compiled for this device.
    """

    def __init__(
        self,
        device: Device,
        batch: int,
        height: int,
        width: int,
        map_type: MapType = "uint8",
        capacity: Capacity | None = None,
        tables: SharedBuffers | None = None,
    ) -> None:
        if batch < 1 or not 1 <= height <= LARGEST_SIDE or not 1 <= width <= LARGEST_SIDE:
            raise InvalidInputError(
                f"maps must have sides from 1 to {LARGEST_SIDE} pixels, at least one at a time; "
                f"got {batch} of {height} x {width} (height x width)"
            )
        capacity = capacity or Capacity()
        self._shape = batch, height, width
        self._capacity = capacity
        self._map_dtype = np.dtype(map_type)
        self._images: Sequence[tuple[Frame, PostprocessParams]] = ()
        words = -(-width // 32)
        self._words = words
        # The outline of a hole has two rows more than the hole, and one point more than rows.
        chain = max(height + 3, _MOST_GROWN_POINTS)
        sizes = height, width, words, capacity.regions, capacity.candidates, capacity.rows, capacity.heads, chain, batch
        (self._tables,) = np.array([sizes], _TABLES)
        self._host_images = device.host_array(batch, IMAGE)
        # As order.cu lays them out: all counts, then all heads.
        counts, heads = batch * _COUNTS.itemsize, batch * capacity.heads * ROW.itemsize
        self._host_results = device.host_array(counts + heads, np.uint8)
        self._host_counts = self._host_results[:counts].view(_COUNTS)
        self._host_heads = self._host_results[counts:].view(ROW).reshape(batch, capacity.heads)
        self._launches = self._planned(device, chain)
        self._sizes = {
            "images": batch * IMAGE.itemsize,
            "results": counts + heads,
            "masks": batch * 4 * height * words,
            "parents": batch * 4 * (height * width + 1),
            "regions": batch * _REGION_BYTES * capacity.regions,
            "candidates": batch * _CANDIDATE_BYTES * capacity.candidates,
            "rows": batch * _SPAN_BYTES * capacity.rows,
            "boxes": batch * _BOX_BYTES * capacity.candidates,
            "tails": batch * ROW.itemsize * capacity.candidates,
        }
        self._shared = tables or SharedBuffers(device)
        self._shared.add(self._sizes)
        self._is_open = True
        try:
            self.prepare()
        except BaseException:
            self.close()
            raise

    def prepare(self) -> int:
        """Allocate what is missing of the tables; returns their version (see `SharedBuffers`).

        Needed before recording where the tables are shared: the memory of another user may have been replaced since.

        Raises:
            DeviceMemoryError: There is not enough memory.
        """
        self._shared.get()
        return self._shared.version

    def set(self, images: Sequence[tuple[Frame, PostprocessParams]]) -> None:
        """Set each image's frame and parameters for the next maps; host side only.

        Raises:
            InvalidInputError: There are more images than `batch`, or one is larger than the container.
        """
        batch, height, width = self._shape
        if len(images) > batch:
            raise InvalidInputError(f"at most {batch} images at a time; got {len(images)}")
        for index, (frame, _) in enumerate(images):
            if frame.network[0] > height or frame.network[1] > width:
                raise InvalidInputError(
                    f"image {index}: its map of {frame.network[0]} x {frame.network[1]} pixels (height x width) must "
                    f"fit into the container of {height} x {width}"
                )
        self._images = list(images)
        self._host_images[...] = 0
        for index, item in enumerate(images):
            self._host_images[index] = image_record(*item)

    def enqueue(self, stream: Stream, maps: Buffer) -> None:
        """Queue the work on maps (batch, height, width), uint8 or float32, each image in the top left corner."""
        buffers = {**self._shared.get(), "maps": maps}
        stream.to_device(buffers["images"], self._host_images)
        stream.fill(buffers["results"], 0, self._host_results.nbytes)
        for kernel, grid, names, shared in self._launches:
            arguments: list[KernelArgument] = [*(buffers[name] for name in names.split()), self._tables]
            stream.launch(kernel, grid, (_THREADS, 1, 1), arguments, shared)
        stream.to_host(self._host_results, buffers["results"])

    def results(self, stream: Stream, maps: Buffer) -> list[Detections]:
        """The detections of the images given to `set`; call it after the stream was synchronised."""
        tails = self._tails(stream)
        return [self._result(stream, maps, index, tails.get(index)) for index in range(len(self._images))]

    def close(self) -> None:
        """Release the tables; calling it again does nothing."""
        if self._is_open:
            self._is_open = False
            self._shared.remove(self._sizes)

    def _planned(self, device: Device, chain: int) -> list[tuple[Kernel, Dim3, str, int]]:
        """The launches in order: kernel, grid, names of its buffers, bytes of shared memory."""
        labels, boxes, order = (device.module(f"{name}.cu") for name in ("labels", "boxes", "order"))
        batch, height, _ = self._shape
        by_tiles = -(-self._words // _TILE_WORDS), -(-height // _TILE_ROWS), batch
        by_words = -(-height * self._words // _THREADS), 1, batch
        by_regions = -(-self._capacity.regions // _THREADS), 1, batch
        by_candidates = -(-self._capacity.candidates // _THREADS), 1, batch
        in_strides = min(batch * self._capacity.candidates, _BLOCKS * device.multiprocessors), 1, 1
        map_type = self._map_dtype.name
        measured = "maps images candidates rows boxes results"
        return [
            (labels.kernel(f"binarise_{map_type}"), by_tiles, "maps images masks parents", 0),
            (labels.kernel("join_segments"), by_words, "masks images parents", 0),
            (labels.kernel("list_regions"), by_words, "masks images parents regions results", 0),
            (labels.kernel("bound_regions"), by_words, "masks images parents regions", 0),
            (labels.kernel("pick_candidates"), by_regions, "masks images regions candidates rows results", 0),
            (labels.kernel("mark_rows"), by_words, "masks images parents regions rows results", 0),
            (boxes.kernel(f"measure_{map_type}"), in_strides, measured, 2 * 4 * chain),
            (order.kernel("order_boxes"), by_candidates, "boxes tails results", 0),
        ]

    def _result(self, stream: Stream, maps: Buffer, index: int, tail: NDArray[Any] | None) -> Detections:
        frame, params = self._images[index]
        counts = self._host_counts[index]
        limits = vars(self._capacity)
        exceeded = [
            f"{counts[name]} {name}" for name in ("regions", "candidates", "rows") if counts[name] > limits[name]
        ]
        if exceeded:
            _logger.warning(
                "an image has %s, more than the GPU's tables hold: the CPU computes it", ", ".join(exceeded)
            )
        if params.mode != "default" or exceeded:
            return postprocess(self._map(stream, maps, index), frame, params)
        heads = self._host_heads[index, : int(counts["accepted"])]
        rows = heads.copy() if tail is None else np.concatenate([heads, tail])
        return detections_of_rows(rows, self._shape[2], frame, params, lambda: self._map(stream, maps, index))

    def _tails(self, stream: Stream) -> dict[int, NDArray[Any]]:
        """The detections after the heads, `ROW` (N,), of each image that has more."""
        tails = {}
        for index in range(len(self._images)):
            count, heads = int(self._host_counts[index]["accepted"]), self._capacity.heads
            if count > heads:
                tails[index] = np.empty(count - heads, ROW)
                offset = (index * self._capacity.candidates + heads) * ROW.itemsize
                stream.to_host(tails[index], self._shared.get()["tails"], offset)
        if tails:
            stream.synchronize()
        return tails

    def _map(self, stream: Stream, maps: Buffer, index: int) -> NDArray[Any]:
        _, height, width = self._shape
        container = np.empty((height, width), self._map_dtype)
        stream.to_host(container, maps, index * container.nbytes)
        stream.synchronize()
        (rows, columns) = self._images[index][0].network
        return np.ascontiguousarray(container[:rows, :columns])
