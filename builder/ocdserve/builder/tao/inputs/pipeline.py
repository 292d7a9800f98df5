# SPDX-License-Identifier: Apache-2.0
"""Pipeline of three concurrent stages: reading by several threads, the network, and post-processing of its maps."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.cores import core_count
from ocdserve.backend.network.protocols import Network
from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.backend.stages.image import decode
from ocdserve.backend.stages.preprocess import fit, preprocess
from ocdserve.builder.tao.actions import Context
from ocdserve.contract import InvalidInputError

_T = TypeVar("_T")

ImageMode = Literal["BGR", "RGB", "GRAY"]

# Reading an image takes a fraction of the network's time; more readers would only wait.
_MOST_AUTOMATIC_READERS = 4
# How many files a message names.
_NAMED = 5


@dataclass(frozen=True)
class ReadOptions:
    """How an image file becomes the network's pixels.

    Attributes:
        resize: Determines the network's size.
        mode: `BGR`, `RGB`: channel order of the network's input. `GRAY`: the luma in all channels.
        color: Channel order that the network was trained with.
        is_float: float32 pixels, resized with fractions as in TAO; else uint8 as served.
        keeps_source: Whether the decoded image is returned as well.
    """

    resize: ResizePolicy
    mode: ImageMode = "BGR"
    color: Literal["BGR", "RGB"] = "BGR"
    is_float: bool = False
    keeps_source: bool = False


@dataclass(frozen=True)
class LoaderOptions:
    """Batch size and number of reading threads.

    Attributes:
        batch_size: Images per call of the network.
        workers: Threads that read; 0: one per core, at most four.

    Raises:
        InvalidInputError: A number is out of range.
    """

    batch_size: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InvalidInputError(f"batch_size must be at least 1; got {self.batch_size}")
        if self.workers < 0:
            raise InvalidInputError(f"num_workers must be at least 0; got {self.workers}")

    @property
    def readers(self) -> int:
        """Number of threads that read."""
        return self.workers or min(_MOST_AUTOMATIC_READERS, core_count())


@dataclass(frozen=True)
class NetworkImage:
    """One input image of the network.

    Attributes:
        pixels: uint8 or float32 (h, w, 3), in the channel order that the bundle's network treats as RGB.
        frame: Position of the source image in the network's pixels.
        source: uint8 (H, W, 3) RGB, the decoded picture; None unless kept.
    """

    pixels: NDArray[Any]
    frame: Frame
    source: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read, and why."""

    path: Path
    reason: str


def read_image(path: Path, options: ReadOptions) -> NetworkImage | Unreadable:
    """Decode one image file and resize it to the network's size."""
    try:
        image = decode(path.read_bytes())
    except OSError as error:
        return Unreadable(path, error.strerror or str(error))
    except InvalidInputError as error:
        return Unreadable(path, str(error))
    source = image if options.keeps_source else None
    if options.mode == "GRAY":
        image = np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    elif options.mode != options.color:
        image = image[..., ::-1]
    if options.is_float:
        return NetworkImage(*fit(image.astype(np.float32), options.resize), source)
    return NetworkImage(*preprocess(np.ascontiguousarray(image), options.resize), source)


def run_pipeline(
    paths: Sequence[Path],
    read: Callable[[Path], NetworkImage | Unreadable],
    network: Network,
    finish: Callable[[int, NetworkImage, NDArray[Any]], _T],
    options: LoaderOptions,
    finishers: int = 1,
) -> Iterator[_T | Unreadable]:
    """Run images through the stages, with at most a few batches in memory.

    Args:
        paths: Image files.
        read: Reads one file; called in several threads.
        network: Called in this thread, batch by batch.
        finish: Returns the result for (index of the path, image, map); called in its own threads.
        options: Batch size and readers.
        finishers: Number of threads that call `finish`; a single one calls it in the order of the paths.

    Yields:
        One result per path, in their order.
    """
    ahead = 2 * options.batch_size + options.readers
    readers, finisher = ThreadPoolExecutor(options.readers), ThreadPoolExecutor(finishers)
    reading: deque[tuple[int, Future[NetworkImage | Unreadable]]] = deque()
    finishing: deque[Future[_T] | Unreadable] = deque()
    remaining = iter(enumerate(paths))
    try:
        while True:
            for index, path in remaining:
                reading.append((index, readers.submit(read, path)))
                if len(reading) >= ahead:
                    break
            if not reading:
                break
            batch = [(index, future.result()) for index, future in _take(reading, options.batch_size)]
            images = [image for _, image in batch if isinstance(image, NetworkImage)]
            maps = iter(network.infer([image.pixels for image in images]) if images else ())
            for index, image in batch:
                finishing.append(
                    image if isinstance(image, Unreadable) else finisher.submit(finish, index, image, next(maps))
                )
            yield from _drained(finishing, 2 * options.batch_size + finishers)
        yield from _drained(finishing, 0)
    finally:
        readers.shutdown(cancel_futures=True)
        finisher.shutdown(cancel_futures=True)


def with_progress(
    results: Iterator[_T | Unreadable], name: str, count: int, context: Context, unreadable: list[Unreadable]
) -> Iterator[_T]:
    """Yield the results of a pipeline with a progress bar; warn of unreadable images and collect them.

    Args:
        results: From `run_pipeline`.
        name: Of the progress bar.
        count: Number of images.
        context: Of the action.
        unreadable: Where to add the images that cannot be read.
    """
    with context.progress.task(name, count) as task:
        for result in results:
            if isinstance(result, Unreadable):
                unreadable.append(result)
                context.warn(f"{result.path} cannot be read: {result.reason}")
            else:
                yield result
            task.advance()


def named_unreadable(unreadable: Sequence[Unreadable], images: int) -> str:
    """Say in an error message how many images could not be read, and which."""
    named = "; ".join(f"{image.path} ({image.reason})" for image in unreadable[:_NAMED])
    more = f"; and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
    return f"{len(unreadable)} of {images} images could not be read: {named}{more}"


def _take(queue: deque[_T], most: int) -> list[_T]:
    return [queue.popleft() for _ in range(min(most, len(queue)))]


def _drained(queue: "deque[Future[_T] | Unreadable]", left: int) -> "Iterator[_T | Unreadable]":
    """Yield results of a queue until only `left` remain."""
    while len(queue) > left:
        entry = queue.popleft()
        yield entry if isinstance(entry, Unreadable) else entry.result()
