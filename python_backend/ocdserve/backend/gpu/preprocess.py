# SPDX-License-Identifier: Apache-2.0
"""Preprocessing on the GPU: RGB images of any sizes to one batch for the network, in one launch.

Form `uint8` has the same bytes as `ocdserve.backend.stages.preprocess.preprocess` on the CPU, OpenCV 4.11's.
Its speed on a GPU is not measured yet; the lower bound of its time is `bytes_moved` / memory bandwidth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device, KernelArgument, Stream
from ocdserve.backend.gpu.device_image import DeviceImage, size_of
from ocdserve.backend.gpu.memory import SPARE_BYTES, DeviceSpace, HostSpace, locked_bytes
from ocdserve.backend.spec.detector_spec import NetworkSpec
from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.contract import InvalidInputError
from ocdserve.results.images import check_rgb

Element = Literal["uint8", "float16", "float32"]
Interpolation = Literal["cv2_exact", "float"]

# `struct Source` in bilinear.cuh.
_SOURCE = np.dtype(
    [
        ("pixels", np.uint64),
        ("pitch", np.int64),
        ("scale_x", np.float64),
        ("scale_y", np.float64),
        ("height", np.int32),
        ("width", np.int32),
        ("content_height", np.int32),
        ("content_width", np.int32),
        ("filled_height", np.int32),
        ("filled_width", np.int32),
        ("spare", np.int32),
        ("top", np.int32),
        ("left", np.int32),
        ("unused", np.int32),
    ]
)
# `struct Normalisation` in preprocess.cu.
_NORMALISATION = np.dtype([("mean", np.float32, 3), ("scale", np.float32, 3), ("swap", np.int32)])
_KERNELS: dict[tuple[Element, Interpolation], str] = {
    ("uint8", "cv2_exact"): "resize_to_pixels",
    ("float16", "cv2_exact"): "resize_to_half_planes",
    ("float32", "cv2_exact"): "resize_to_float_planes",
    ("float16", "float"): "interpolate_to_half_planes",
    ("float32", "float"): "interpolate_to_float_planes",
}
# Output tile of a block, and its threads; as in preprocess.cu.
TILE_WIDTH, TILE_HEIGHT, THREADS = 128, 8, 256
# Alignment of images in the staging memory.
_ALIGNMENT = 256


@dataclass(frozen=True)
class OutputForm:
    """Type and layout of a batch.

    Attributes:
        element: `uint8`: (N, H, W, 3) RGB pixels, for a folded network. `float16`, `float32`: (N, 3, H, W) of
            (pixel - mean) / std, for a bare one; there, black padding is -mean / std.
        interpolation: `cv2_exact`: the pixels of OpenCV, rounded to 8 bits before they are normalised. `float`:
            rounded once, at the end (`float16`, `float32`).
        network: Mean, standard deviation and colour order of a bare network.

    Raises:
        InvalidInputError: A field is out of its range, or the combination is not supported.
    """

    element: Element = "uint8"
    interpolation: Interpolation = "cv2_exact"
    network: NetworkSpec = field(default_factory=NetworkSpec)

    def __post_init__(self) -> None:
        for name, kinds in (("element", Element), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(kinds):
                raise InvalidInputError(
                    f"{name} must be one of {', '.join(get_args(kinds))}; got {getattr(self, name)!r}"
                )
        if (self.element, self.interpolation) not in _KERNELS:
            raise InvalidInputError(f"interpolation must be cv2_exact for {self.element}; got {self.interpolation!r}")

    def shape(self, count: int, container: tuple[int, int]) -> tuple[int, int, int, int]:
        """Shape of a batch of `count` images in a container of (height, width) pixels."""
        return (count, *container, 3) if self.element == "uint8" else (count, 3, *container)

    def size(self, count: int, container: tuple[int, int]) -> int:
        """Bytes of that batch."""
        return int(np.prod(self.shape(count, container))) * np.dtype(self.element).itemsize

    def _arguments(self) -> list[KernelArgument]:
        if self.element == "uint8":
            return []
        scale = [1.0 / value for value in self.network.std]
        return [np.void((self.network.mean, scale, self.network.color == "BGR"), _NORMALISATION)]


@dataclass(frozen=True, eq=False)
class Tile:
    """One tile of an elongated image, or of its overview.

    Attributes:
        image: The whole image.
        frame: The whole image's, of the tile's level.
        index: Of the tile among `frame.boxes`.
        part: The tile's own frame, one of the image's `parts`.
    """

    image: NDArray[np.uint8] | DeviceImage
    frame: Frame
    index: int
    part: Frame


Source = NDArray[np.uint8] | DeviceImage | Tile


def sources_of(image: NDArray[np.uint8] | DeviceImage, frame: Frame) -> list[Source]:
    """The image itself, or what its `parts` show."""
    if frame.tiles == 1:
        return [image]
    places = [(level, index) for level in frame.levels for index in range(level.tiles)]
    return [Tile(image, *place, part) for place, part in zip(places, frame.parts, strict=True)]


@dataclass(frozen=True)
class Prepared:
    """A batch for the network, complete in the order of its stream.

    Attributes:
        data: The batch; it belongs to the `GpuPreprocess` and is valid until its next call.
        shape: See `OutputForm`.
        frames: Position of each image.
    """

    data: Buffer
    shape: tuple[int, int, int, int]
    frames: list[Frame]


class GpuPreprocess:
    """Preprocessing for one slot: one batch at a time, one thread at a time.

    Without a graph, call the object. With a graph, capture `launch` with a permanent buffer and call `stage` before
    each launch of the graph.

    Args:
        device: The GPU.
        policy: How the network size follows from the image's.
        max_batch: Most images per batch.
        form: Type and layout of the batch.

    Raises:
        InvalidInputError: `max_batch` is out of its range.
        UnavailableError: The kernels cannot be compiled or loaded.
    """

    def __init__(
        self, device: Device, policy: ResizePolicy, max_batch: int = 8, form: OutputForm | None = None
    ) -> None:
        if not 1 <= max_batch <= 65535:  # the grid's third side
            raise InvalidInputError(f"max_batch must be from 1 to 65535; got {max_batch}")
        self.policy = policy
        self.max_batch = max_batch
        self.form = form or OutputForm()
        kernel = _KERNELS[self.form.element, self.form.interpolation]
        self._kernel = device.module("preprocess.cu").kernel(kernel)
        self._sources = device.host_array(max_batch, _SOURCE)
        self._device_sources = device.allocate(self._sources.nbytes)
        self._staging = HostSpace(device)
        self._pixels = DeviceSpace(device)
        self._output = DeviceSpace(device)
        self._stream: Stream | None = None
        self._held: list[Source] = []

    def __call__(self, images: Sequence[Source], stream: Stream, container: tuple[int, int] | None = None) -> Prepared:
        """Queue a whole batch: the copies to the GPU and the launch.

        Args:
            images: uint8 (H, W, 3) RGB arrays, images on the GPU, or tiles of both (see `sources_of`).
            stream: Where to queue it; images on the GPU must be complete there.
            container: Height and width of the batch, pixels; None: those of the largest network sizes.

        Raises:
            InvalidInputError: There are no images or too many, one is not an RGB image, or the container is too small.
            DeviceMemoryError: The GPU is out of memory.
        """
        frames = self._frames(images)
        largest = (max(frame.network[0] for frame in frames), max(frame.network[1] for frame in frames))
        container = container or largest
        if container[0] < largest[0] or container[1] < largest[1]:
            raise InvalidInputError(
                f"the container must hold the largest network sizes, {largest[0]} x {largest[1]} pixels (height x "
                f"width); got {container[0]} x {container[1]}"
            )
        self.stage(images, stream)
        output = self._output.of(self.form.size(len(frames), container))
        self.launch(stream, output, len(frames), container)
        return Prepared(output, self.form.shape(len(frames), container), frames)

    def stage(self, images: Sequence[Source], stream: Stream) -> list[Frame]:
        """Queue copies of a batch's sources to the GPU and set them up for `launch`.

        Images of an `ImagePool` are copied from where they are, others from staging memory. It waits for the previous
        batch, whose memory it reuses. It must not be captured.

        Returns:
            The frame of each image.

        Raises:
            InvalidInputError: There are no images or too many, or one is not an RGB image.
            DeviceMemoryError: The GPU is out of memory.
        """
        frames = self._frames(images)
        self.finish()
        self._stream = stream
        self._held = list(images)
        # Tiles of one image share its copy.
        wholes = {id(whole): whole for whole in map(_whole, images)}
        offsets = np.cumsum([0, *(_staged_bytes(whole) for whole in wholes.values())]).tolist()
        if offsets[-1]:
            pixels = self._pixels.of(offsets[-1])
        places: dict[int, tuple[int, int, int]] = {}
        for (key, whole), offset in zip(wholes.items(), offsets[:-1], strict=True):
            if isinstance(whole, DeviceImage):
                places[key] = whole.pointer, whole.row_step, 0
            else:
                # With the spare bytes, which are read, though unused: they must be initialised.
                part = locked_bytes(whole)
                if part is None:
                    part = self._staging.of(offsets[-1])[offset : offset + whole.size + SPARE_BYTES]
                    np.copyto(part[: whole.size].reshape(whole.shape), whole)
                stream.to_device(pixels, part, offset)
                places[key] = pixels.pointer + offset, 3 * whole.shape[1], SPARE_BYTES
        self._sources[:] = np.zeros((), _SOURCE)
        for index, (image, frame) in enumerate(zip(images, frames, strict=True)):
            (pointer, pitch, spare), left, top = places[id(_whole(image))], 0, 0
            whole_frame = frame
            if isinstance(image, Tile):
                whole_frame = image.frame
                left, top = whole_frame.boxes[image.index, :2]
            scales = _scales(whole_frame)
            filled = frame.network if self.policy.is_elongated(*whole_frame.source) else frame.content
            self._sources[index] = (
                *(pointer, pitch, *scales, *whole_frame.source, *frame.content, *filled),
                *(spare, top, left, 0),
            )
        return frames

    def launch(self, stream: Stream, output: Buffer, count: int, container: tuple[int, int]) -> None:
        """Queue the kernel for what was staged last; it may be captured.

        Args:
            stream: The stream that the sources were staged on.
            output: Where the batch goes (see `OutputForm`).
            count: Images of the batch; those not staged become black.
            container: Height and width of the batch in pixels; what does not fit is cropped.

        Raises:
            InvalidInputError: The count is out of its range, or the buffer too small.
        """
        height, width = container
        needed = self.form.size(count, container)
        if not 1 <= count <= self.max_batch:
            raise InvalidInputError(f"a batch must be of 1 to {self.max_batch} images; got {count}")
        if min(container) < 1 or output.size < needed:
            raise InvalidInputError(
                f"a batch of {count} x {height} x {width} needs a buffer of {needed} bytes; got {output.size}"
            )
        stream.to_device(self._device_sources, self._sources)
        grid = (-(-width // TILE_WIDTH), -(-height // TILE_HEIGHT), count)
        arguments = [self._device_sources, output, np.int32(height), np.int32(width), *self.form._arguments()]
        stream.launch(self._kernel, grid, (THREADS, 1, 1), arguments)

    def finish(self) -> None:
        """Wait for the batch in flight, and let go of its images."""
        if self._stream is not None:
            self._stream.synchronize()
        self._stream = None
        self._held = []

    def close(self) -> None:
        """Wait for the batch in flight and release all memory; call it before its stream is closed.

        Calling it again does nothing.
        """
        self.finish()
        for part in (self._device_sources, self._staging, self._pixels, self._output):
            part.close()

    def _frames(self, images: Sequence[Source]) -> list[Frame]:
        if not 1 <= len(images) <= self.max_batch:
            raise InvalidInputError(f"a batch must be of 1 to {self.max_batch} images; got {len(images)}")
        return [self._frame(image) for image in images]

    def _frame(self, image: Source) -> Frame:
        if isinstance(image, Tile):
            return image.part
        if isinstance(image, np.ndarray):
            check_rgb(image)
        frame = Frame.of(*size_of(image), self.policy)
        if frame.tiles > 1:
            raise InvalidInputError(
                f"an image of {frame.source[0]} x {frame.source[1]} pixels (height x width) is taken in tiles only; "
                "pass what `sources_of` returns"
            )
        return frame


def bytes_moved(form: OutputForm, frames: Sequence[Frame], container: tuple[int, int]) -> int:
    """Least bytes that the kernel must read and write: each relevant source row once, each result once."""
    rows = [(min(frame.source[0], 2 * frame.content[0]), frame.source[1]) for frame in frames]
    return sum(3 * height * width for height, width in rows) + form.size(len(frames), container)


def _whole(image: Source) -> NDArray[np.uint8] | DeviceImage:
    return image.image if isinstance(image, Tile) else image


def _staged_bytes(image: NDArray[np.uint8] | DeviceImage) -> int:
    return 0 if isinstance(image, DeviceImage) else -(-(image.size + SPARE_BYTES) // _ALIGNMENT) * _ALIGNMENT


def _scales(frame: Frame) -> tuple[float, float]:
    """Source pixels per content pixel, (x, y), rounded as in OpenCV: not always the quotient."""
    return 1.0 / (frame.content[1] / frame.source[1]), 1.0 / (frame.content[0] / frame.source[0])
