# SPDX-License-Identifier: Apache-2.0
"""Images in any accepted form to pixels, and how many of them form a batch."""

import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Device
from ocdserve.backend.gpu.decode import Decoded, DecoderKind, make_decoder
from ocdserve.backend.gpu.device_image import DeviceImage, size_of
from ocdserve.contract import Downloads, InvalidInputError, Limits, UnavailableError
from ocdserve.results import images as host_images
from ocdserve.results.pages import check_only_page

_T = TypeVar("_T")

# See `batches_of`.
_LEAST_FILL = 0.6

# What the client takes, or uint8 (H, W, 3) RGB on the GPU.
Image: TypeAlias = host_images.Image | DeviceImage


class ImageReader:
    """Reads, decodes and checks images; thread-safe.

    Args:
        device: The GPU.
        limits: Limits of decoding.
        decoder: See `decode.make_decoder`.
        threads: Images that the CPU decodes at the same time; None: one per core of this process.
        downloads: How images given by URL are fetched; None: they are refused.
    """

    def __init__(
        self,
        device: Device,
        limits: Limits,
        decoder: DecoderKind,
        threads: int | None,
        downloads: Downloads | None = None,
    ) -> None:
        self._limits = limits
        self._downloads = downloads
        self._decoder = make_decoder(decoder, device, limits, threads)
        # Files that are worth decoding at the same time, besides those of the batches in work.
        self.files_ahead = self._decoder.files_ahead
        self._stream = device.stream()

    def read(
        self, images: Sequence[Image], pages: Sequence[int | None] | None = None, *, bgr: bool = False
    ) -> list[Decoded]:
        """Upright RGB of each image, uint8 (H, W, 3), complete on the host or the GPU; or the error of this image.

        Args:
            images: The images.
            pages: Page of each, see `ocdserve.backend.stages.image.decode`; None: none is chosen.
            bgr: Whether arrays hold BGR pixels.
        """
        pages = pages or [None] * len(images)
        results: list[Decoded | None] = [None] * len(images)
        files: dict[int, bytes] = {}
        for index, image in enumerate(images):
            try:
                if not isinstance(image, DeviceImage):
                    image = host_images.load_image(image, bgr=bgr, downloads=self._downloads)
                if isinstance(image, bytes):
                    files[index] = image
                    continue
                check_only_page(pages[index])
                self._limits.check(*size_of(image)[::-1])
                results[index] = image
            except (InvalidInputError, UnavailableError) as error:
                results[index] = error
        if files:
            decoded = self._decoder.decode(list(files.values()), [pages[index] for index in files])
            for index, each in zip(files, decoded, strict=True):
                results[index] = each
        return [result for result in results if result is not None]

    def read_valid(
        self, images: Sequence[Image], page: int | None = None, *, bgr: bool = False
    ) -> list[NDArray[np.uint8] | DeviceImage]:
        """As `read`, where no image may be wrong; `page` is that of every encoded image.

        Raises:
            InvalidInputError: An image is not valid; the message names its index where there are several.
            UnavailableError: The server of a URL cannot be reached, or the GPU is out of memory or has failed.
        """
        return host_images.for_each(_checked, self.read(images, [page] * len(images), bgr=bgr))

    def probe(self) -> None:
        """Check that the GPU works.

        Raises:
            DeviceError: It does not.
        """
        self._stream.synchronize()

    def close(self, healthy: bool = True) -> None:
        """Release the threads and, while the GPU is healthy, what is on it."""
        self._decoder.close()
        if healthy:
            self._stream.close()


def _checked(decoded: Decoded) -> NDArray[np.uint8] | DeviceImage:
    if isinstance(decoded, InvalidInputError | UnavailableError):
        raise decoded
    return decoded


class BatchQueue(Generic[_T]):
    """Items that wait, those that may share a batch in one group; thread-safe.

    Args:
        most: Most items of a batch.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._groups: dict[tuple[int, int], list[tuple[int, _T]]] = {}
        self._arrivals = itertools.count()
        self._lock = threading.Lock()

    def put(self, groups: Mapping[tuple[int, int], Sequence[_T]]) -> int:
        """Add items; returns how many batches they would be by themselves."""
        with self._lock:
            for group, items in groups.items():
                self._groups.setdefault(group, []).extend(zip(self._arrivals, items, strict=False))
        return sum(len(batches_of(items, self._most)) for items in groups.values())

    def take(self) -> list[_T]:
        """A batch of the group whose first item has waited longest, see `batches_of`; empty if nothing waits."""
        with self._lock:
            if not self._groups:
                return []
            group = min(self._groups, key=lambda name: self._groups[name][0][0])
            items = self._groups.pop(group)
            batch = batches_of(items, self._most)[0]
            if len(batch) < len(items):
                self._groups[group] = items[len(batch) :]
        return [item for _, item in batch]


def batches_of(items: Sequence[_T], most: int) -> list[Sequence[_T]]:
    """Items in batches of `most`, the rest in powers of two; the last may be padded to its `bucket_of`.

    A batch that fills more than 60 % of its bucket is padded, which takes less time than another execution.
    """
    batches = []
    while items:
        size = min(len(items), most)
        if size <= _LEAST_FILL * bucket_of(size, most):
            size = bucket_of(size, most) // 2
        batches.append(items[:size])
        items = items[size:]
    return batches


def bucket_of(count: int, most: int) -> int:
    """Images of the batch that `count` images are computed in: the next power of two, at most `most`."""
    return min(1 << (count - 1).bit_length(), most)


def buckets(most: int) -> list[int]:
    """All values of `bucket_of`, the largest first."""
    return sorted({bucket_of(count, most) for count in range(1, most + 1)}, reverse=True)
