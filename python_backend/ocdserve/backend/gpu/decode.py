# SPDX-License-Identifier: Apache-2.0
"""Decoding several images at a time: on the CPU in a pool of threads, JPEG optionally on the GPU.

The CPU decodes into page-locked memory, from where the GPU copies the pixels.

The GPU's JPEG decoders do not return libjpeg-turbo's pixels to the last bit, so detections may differ slightly from
those of the CPU path: the default is `cpu`. Limits and orientation follow `ocdserve.backend.stages.image` either way.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.cores import core_count
from ocdserve.backend.device.protocol import Device
from ocdserve.backend.gpu.device_image import DeviceImage, size_of
from ocdserve.backend.gpu.memory import ImagePool
from ocdserve.backend.gpu.nvimagecodec import NvImageCodec
from ocdserve.backend.stages.image import decode, open_image
from ocdserve.contract import InvalidInputError, Limits, UnavailableError, not_one_of
from ocdserve.results.decoding import upright_size

DecoderKind = Literal["auto", "cpu", "gpu"]
Decoded = NDArray[np.uint8] | DeviceImage | InvalidInputError | UnavailableError

_END_OF_JPEG = b"\xff\xd9"


class Codec(Protocol):
    """A JPEG decoder other than this package's CPU code.

    Attributes:
        files_ahead: Files that it gains by having in calls at the same time.
    """

    files_ahead: int

    def decode(self, files: Sequence[bytes]) -> list[NDArray[np.uint8] | DeviceImage | None]:
        """Upright RGB images uint8 (H, W, 3), complete; None for each that it cannot decode."""
        ...

    def close(self) -> None:
        """Release everything it holds; calling it again does nothing."""
        ...


class ImageDecoder:
    """Encoded images to upright RGB; thread-safe.

    Args:
        limits: What may be decoded; the default limits if None.
        threads: Images that the CPU decodes at the same time; None: one per core of this process.
        codec: Decodes ordinary JPEG files instead; None: the CPU decodes everything.
        memory: Where the CPU puts the pixels; None: ordinary memory.

    Attributes:
        files_ahead: Those of the codec.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        threads: int | None = None,
        codec: Codec | None = None,
        memory: ImagePool | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._memory = memory
        self._pool = ThreadPoolExecutor(threads or core_count(), thread_name_prefix="decode")
        self._codec = codec
        self.files_ahead = codec.files_ahead if codec else 0

    def decode(self, files: Sequence[bytes], pages: Sequence[int | None] | None = None) -> list[Decoded]:
        """Decode each file.

        Args:
            files: Whole files of the formats that `ocdserve.backend.stages.image.decode` takes.
            pages: Page of each file, see there; None: none is chosen.

        Returns:
            For each file uint8 (H, W, 3) RGB, complete on the host or on the GPU; or the error that
            `ocdserve.backend.stages.image.decode` would have raised.
        """
        results: list[Decoded | None] = [None] * len(files)
        pages = pages or [None] * len(files)
        chosen = list(map(self._shape_for_codec, files, pages)) if self._codec else [None] * len(files)
        waiting = {
            index: self._submit(files[index], pages[index]) for index, shape in enumerate(chosen) if shape is None
        }
        picked = [index for index, shape in enumerate(chosen) if shape is not None]
        if self._codec and picked:
            images = self._codec.decode([files[index] for index in picked])
            for index, image in zip(picked, images, strict=True):
                if image is None or size_of(image) != chosen[index]:
                    waiting[index] = self._submit(files[index], pages[index])
                else:
                    results[index] = image
        for index, future in waiting.items():
            results[index] = future.result()
        return [result for result in results if result is not None]

    def close(self) -> None:
        """Release the threads, the codec and the memory; calling it again does nothing."""
        self._pool.shutdown()
        for part in (self._codec, self._memory):
            if part:
                part.close()

    def _submit(self, data: bytes, page: int | None) -> "Future[Decoded]":
        return self._pool.submit(self._decode, data, page)

    def _decode(self, data: bytes, page: int | None) -> Decoded:
        try:
            return decode(data, self._limits, page, self._memory.array if self._memory else None)
        except InvalidInputError as error:
            return error

    def _shape_for_codec(self, data: bytes, page: int | None) -> tuple[int, int] | None:
        """Upright height and width of a file that the codec may decode; None leaves it, with any error, to the CPU.

        Only grey and YCbCr files with JPEG's end marker: the CPU code rejects truncated ones, while GPU decoders may
        return them half grey. (A truncated file with an end marker passes, unless the CPU decodes it.)
        """
        if not data.endswith(_END_OF_JPEG):
            return None
        try:
            image = open_image(data, self._limits, page)
        except InvalidInputError:
            return None
        if image.format != "JPEG" or image.mode not in ("L", "RGB"):
            return None
        return upright_size(image)


def decoder_kind(name: str) -> DecoderKind:
    """The kind of decoder of that name.

    Raises:
        InvalidInputError: There is no such decoder.
    """
    if name not in get_args(DecoderKind):
        raise not_one_of("decoder", name, get_args(DecoderKind))
    return cast(DecoderKind, name)


def make_decoder(
    kind: DecoderKind, device: Device, limits: Limits | None = None, threads: int | None = None
) -> ImageDecoder:
    """The decoder of that kind.

    Args:
        kind: `cpu`: the same pixels as everywhere else. `gpu`: JPEG by nvImageCodec. `auto`: `gpu` where
            nvImageCodec is installed and starts, else `cpu`.
        device: The GPU.
        limits: Limits of decoding.
        threads: See `ImageDecoder`.

    Raises:
        InvalidInputError: There is no such kind.
        UnavailableError: `gpu`, and nvImageCodec is not installed or does not start.
    """
    codec = None
    if decoder_kind(kind) != "cpu":
        try:
            codec = NvImageCodec(device, threads)
        except UnavailableError:
            if kind == "gpu":
                raise
    return ImageDecoder(limits, threads, codec, ImagePool(device))
