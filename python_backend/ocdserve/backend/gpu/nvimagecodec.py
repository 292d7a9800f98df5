# SPDX-License-Identifier: Apache-2.0
"""JPEG by NVIDIA's nvImageCodec (wheel `nvidia-nvimgcodec-cu12`, 30 MB, and `nvidia-nvjpeg-cu12`, 5 MB).

Verified on a machine without a GPU (0.9.0): it imports, and its CPU decoder, libjpeg-turbo, returns Pillow's pixels for
baseline, progressive and grey files and all EXIF orientations. Its GPU decoders are neither tested nor measured yet.
"""

import importlib
import logging
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Device, Stream
from ocdserve.backend.gpu.device_image import DeviceImage
from ocdserve.contract import InvalidInputError, UnavailableError, install_command

_logger = logging.getLogger(__name__)


class NvImageCodec:
    """A `decode.Codec`; thread-safe, one batch at a time.

    Args:
        device: The GPU; None takes nvImageCodec's CPU decoder, whose images stay on the host (for tests).

    Raises:
        UnavailableError: It is not installed, or does not start.
    """

    def __init__(self, device: Device | None) -> None:
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
        self._lock = threading.Lock()
        library = self._library
        self._parameters = library.DecodeParams(apply_exif_orientation=True, sample_format=library.SampleFormat.I_RGB)
        try:
            self._decoder: Any = self._start()
        except RuntimeError as error:
            raise UnavailableError(f"nvImageCodec {library.__version__} does not start: {error}") from error

    def decode(self, files: Sequence[bytes], stream: Stream) -> list[NDArray[np.uint8] | DeviceImage | None]:
        """See `decode.Codec`."""
        try:
            streams = [self._library.CodeStream(data) for data in files]
            with self._lock:
                if self._device is None:
                    images = self._decoder.decode(streams, params=self._parameters)
                    return [None if image is None else np.asarray(image) for image in images]
                with self._device.current():
                    images = self._decoder.decode(streams, params=self._parameters, cuda_stream=stream.handle)
            return [None if image is None else DeviceImage.of(image) for image in images]
        except (InvalidInputError, RuntimeError) as error:
            _logger.warning("nvImageCodec failed at %d images, the CPU decodes them: %s", len(files), error)
            return [None] * len(files)

    def close(self) -> None:
        """Release the decoder; calling it again does nothing."""
        with self._lock:
            self._decoder = None

    def _start(self) -> Any:
        library = self._library
        if self._device is None:
            only = [library.Backend(library.BackendKind.CPU_ONLY)]
            return library.Decoder(device_id=library.NVIMGCODEC_DEVICE_CPU_ONLY, backends=only)
        with self._device.current():
            return library.Decoder(device_id=library.NVIMGCODEC_DEVICE_CURRENT)
