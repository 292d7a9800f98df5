# SPDX-License-Identifier: Apache-2.0
"""JPEG by NVIDIA's nvImageCodec (wheel `nvidia-nvimgcodec-cu12`, 30 MB, and `nvidia-nvjpeg-cu12`, 5 MB).

Verified on a machine without a GPU (0.9.0): it imports, and its CPU decoder, libjpeg-turbo, returns Pillow's pixels for
baseline, progressive and grey files and all EXIF orientations. Its GPU decoders are neither tested nor measured yet.
"""

import importlib
import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.cores import core_count
from ocdserve.backend.device.protocol import Device, Event
from ocdserve.backend.gpu.device_image import DeviceImage
from ocdserve.contract import InvalidInputError, UnavailableError, install_command

_logger = logging.getLogger(__name__)

_Image = NDArray[np.uint8] | DeviceImage | None

# Files of one call of the library: the hardware decoders, up to seven of several cores, work on a batch at once.
_MOST_FILES = 64
# Together they take 3 bytes per pixel of the GPU's memory.
_MOST_PIXELS = 1 << 27
# Of a batch, to begin with, for the hardware decoders; the library adapts it. The rest is for the GPU's cores.
_HARDWARE_SHARE = 0.75


@dataclass
class _File:
    """A file that waits for its batch; its answer is an image and the event behind which it is complete."""

    stream: Any
    pixels: int
    answer: "Future[tuple[_Image, Event | None]]" = field(default_factory=Future)


class NvImageCodec:
    """A `decode.Codec`; thread-safe.

    The files of all calls share batches, because the hardware decoders gain by large ones only: a thread decodes what
    waits, and what arrives meanwhile forms the next batch. So a file never waits for others while the decoder is idle.

    Attributes:
        files_ahead: See `decode.Codec`: half of them are decoded while the other half waits.

    Args:
        device: The GPU; None takes nvImageCodec's CPU decoder, whose images stay on the host (for tests).
        threads: Threads of the library that prepare files for the GPU; None: one per core of this process.

    Raises:
        UnavailableError: It is not installed, or does not start.
    """

    files_ahead = _MOST_FILES

    def __init__(self, device: Device | None, threads: int | None = None) -> None:
        # It writes a line to stderr for each image that it does not decode; the CPU code reports what is wrong.
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
        try:
            self._library: Any = importlib.import_module("nvidia.nvimgcodec")
        except ImportError as error:
            raise UnavailableError(
                f"decoding on the GPU needs nvImageCodec: {install_command('ocdserve[gpu-jpeg]')}; or choose the "
                "decoder cpu"
            ) from error
        self._device = device
        library = self._library
        self._parameters = library.DecodeParams(apply_exif_orientation=True, sample_format=library.SampleFormat.I_RGB)
        try:
            self._decoder: Any = self._start(threads or core_count())
        except RuntimeError as error:
            raise UnavailableError(f"nvImageCodec {library.__version__} does not start: {error}") from error
        # Its images are allocated, decoded and freed in the order of this stream.
        self._stream = device.stream() if device else None
        self._waiting: deque[_File] = deque()
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="nvimagecodec")

    def decode(self, files: Sequence[bytes]) -> list[NDArray[np.uint8] | DeviceImage | None]:
        """See `decode.Codec`."""
        opened = [self._opened(data) for data in files]
        waiting = [file for file in opened if file is not None]
        with self._lock:
            self._waiting.extend(waiting)
            self._worker.submit(self._decode_waiting)
        answers = [file.answer.result() if file else (None, None) for file in opened]
        for event in {id(event): event for _, event in answers if event is not None}.values():
            event.synchronize()
        return [image for image, _ in answers]

    def close(self) -> None:
        """Decode what waits, then release the decoder; calling it again does nothing."""
        self._worker.shutdown()
        self._decoder = None
        if self._stream is not None and self._device is not None and not self._device.failed:
            self._stream.close()

    def _opened(self, data: bytes) -> _File | None:
        """A file whose header the library reads; None: it does not, which would fail a whole batch."""
        try:
            stream = self._library.CodeStream(data)
            return _File(stream, int(stream.height * stream.width))
        except RuntimeError:
            return None

    def _decode_waiting(self) -> None:
        """Decode batches until no file waits; the files of a call that waits for this one may be among them."""
        while batch := self._next_batch():
            try:
                answers = list(zip(batch, self._decoded(batch), strict=True))
            except Exception as error:
                for file in batch:
                    file.answer.set_exception(error)
                continue
            for file, answer in answers:
                file.answer.set_result(answer)

    def _next_batch(self) -> list[_File]:
        """Files in order of arrival, at least one if any waits."""
        batch: list[_File] = []
        pixels = 0
        with self._lock:
            while self._waiting and len(batch) < _MOST_FILES:
                pixels += self._waiting[0].pixels
                if batch and pixels > _MOST_PIXELS:
                    break
                batch.append(self._waiting.popleft())
        return batch

    def _decoded(self, batch: Sequence[_File]) -> list[tuple[_Image, Event | None]]:
        """Images of a batch; each part of one that fails as a whole is tried by itself."""
        streams = [file.stream for file in batch]
        try:
            if self._device is None or self._stream is None:
                images = self._decoder.decode(streams, params=self._parameters)
                return [(None if image is None else np.asarray(image), None) for image in images]
            with self._device.current():
                images = self._decoder.decode(streams, params=self._parameters, cuda_stream=self._stream.handle)
            event = self._stream.record()
            return [(_on_device(image), event) for image in images]
        except UnavailableError:
            # The GPU has failed, not the library.
            raise
        except RuntimeError as error:
            if len(batch) > 1:
                half = len(batch) // 2
                return [*self._decoded(batch[:half]), *self._decoded(batch[half:])]
            _logger.warning("nvImageCodec failed at %d images, the CPU decodes them: %s", len(batch), error)
            return [(None, None)] * len(batch)

    def _start(self, threads: int) -> Any:
        library = self._library
        if self._device is None:
            only = [library.Backend(library.BackendKind.CPU_ONLY)]
            return library.Decoder(device_id=library.NVIMGCODEC_DEVICE_CPU_ONLY, backends=only)
        with self._device.current():
            return library.Decoder(
                device_id=library.NVIMGCODEC_DEVICE_CURRENT, max_num_cpu_threads=threads, backends=gpu_backends(library)
            )


def gpu_backends(library: Any) -> list[Any]:
    """The library's decoders, in the order in which it tries them; not its CPU's: ours has the pixels of the CPU path.

    With a share of less than one, the GPU's cores decode what the hardware decoders have no time for.
    """
    kinds = library.BackendKind
    adaptive = library.LoadHintPolicy.ADAPTIVE_MINIMIZE_IDLE_TIME
    return [
        library.Backend(kinds.HW_GPU_ONLY, load_hint=_HARDWARE_SHARE, load_hint_policy=adaptive),
        library.Backend(kinds.GPU_ONLY),
        library.Backend(kinds.HYBRID_CPU_GPU),
    ]


def _on_device(image: Any) -> DeviceImage | None:
    """The library's image, unless it is none, or none that the GPU's stages take."""
    try:
        return None if image is None else DeviceImage.of(image)
    except InvalidInputError:
        return None
