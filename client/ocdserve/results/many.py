# SPDX-License-Identifier: Apache-2.0
"""Bounded concurrency over any number of images, for threads and for asyncio.

At most twice as many images as concurrent calls are read ahead of the consumer: a slow consumer slows reading down, and
a slow image delays the ordered outcomes, but does not let memory grow.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ocdserve.contract import OcdserveError
from ocdserve.results.detections import Detections

Item = TypeVar("Item")

# Images read per concurrent call: one in progress and one waiting.
_AHEAD = 2


@dataclass(frozen=True, eq=False)
class Outcome(Generic[Item]):
    """Outcome of one image of `detect_many`; exactly one of `detections` and `error` is set.

    Attributes:
        index: Index of the image in the iterable, from 0.
        image: The image as it was given.
        detections: The result.
        error: Why the image failed.
    """

    index: int
    image: Item
    detections: Detections | None = None
    error: OcdserveError | None = None

    def result(self) -> Detections:
        """The detections.

        Raises:
            OcdserveError: The image failed; this is `error`.
        """
        if self.detections is None:
            raise self.error or OcdserveError(f"image {self.index} has neither detections nor an error")
        return self.detections


def outcomes(
    items: Iterable[Item],
    detect: Callable[[Item, threading.Event], Detections],
    concurrency: int,
    ordered: bool,
    kind: type[Outcome[Any]] = Outcome,
) -> Generator[Outcome[Item], None, None]:
    """Detect in threads.

    Args:
        items: The images; read in the caller's thread.
        detect: One call; aborts when the event is set.
        concurrency: Number of concurrent calls.
        ordered: Whether outcomes come in the order of the images, else as they complete.
        kind: Class of the outcomes.
    """
    stop = threading.Event()
    finished: queue.SimpleQueue[Future[Outcome[Item]]] = queue.SimpleQueue()
    pending: deque[Future[Outcome[Item]]] = deque()
    futures: set[Future[Outcome[Item]]] = set()

    def work(index: int, item: Item) -> Outcome[Item]:
        try:
            return kind(index, item, detections=detect(item, stop))
        except OcdserveError as error:
            return kind(index, item, error=error)

    def next_outcome() -> Outcome[Item]:
        future = pending.popleft() if ordered else finished.get()
        futures.discard(future)
        return future.result()

    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="ocdserve-detect")
    failure: BaseException | None = None
    try:
        numbered = enumerate(items)
        while True:
            # Completed outcomes are not held back by a slow iterable.
            while futures and (pending[0].done() if ordered else not finished.empty()):
                yield next_outcome()
            try:
                index, item = next(numbered)
            except StopIteration:
                break
            except Exception as error:
                # Images read before are still answered.
                failure = error
                break
            future = pool.submit(work, index, item)
            futures.add(future)
            if ordered:
                pending.append(future)
            else:
                future.add_done_callback(finished.put)
            if len(futures) == _AHEAD * concurrency:
                yield next_outcome()
        while futures:
            yield next_outcome()
        if failure is not None:
            raise failure
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def numbered(
    found: Generator[Outcome[Item], None, None], pages: Sequence[int] | None
) -> Generator[Detections, None, None]:
    """The results for the pages of a file with their numbers, `pages` or from 1 on; the first error ends it."""
    with closing(found):
        for outcome in found:
            yield replace(outcome.result(), page=outcome.index + 1 if pages is None else pages[outcome.index])


async def numbered_async(
    found: AsyncGenerator[Outcome[Item], None], pages: Sequence[int] | None
) -> AsyncGenerator[Detections, None]:
    """As `numbered`."""
    async with aclosing(found):
        async for outcome in found:
            yield replace(outcome.result(), page=outcome.index + 1 if pages is None else pages[outcome.index])


async def outcomes_async(
    items: Iterable[Item] | AsyncIterable[Item],
    detect: Callable[[Item], Awaitable[Detections]],
    concurrency: int,
    ordered: bool,
    kind: type[Outcome[Any]] = Outcome,
) -> AsyncGenerator[Outcome[Item], None]:
    """Detect in tasks; closing the iterator cancels them.

    Args:
        items: The images.
        detect: One call.
        concurrency: Number of concurrent calls.
        ordered: Whether outcomes come in the order of the images, else as they complete.
        kind: Class of the outcomes.
    """
    places = asyncio.Semaphore(concurrency)
    finished: asyncio.Queue[asyncio.Task[Outcome[Item]]] = asyncio.Queue()
    pending: deque[asyncio.Task[Outcome[Item]]] = deque()
    tasks: set[asyncio.Task[Outcome[Item]]] = set()

    async def work(index: int, item: Item) -> Outcome[Item]:
        async with places:
            try:
                return kind(index, item, detections=await detect(item))
            except OcdserveError as error:
                return kind(index, item, error=error)

    async def next_outcome() -> Outcome[Item]:
        task = pending.popleft() if ordered else await finished.get()
        outcome = await task
        tasks.discard(task)
        return outcome

    failure: BaseException | None = None
    index = 0
    source = _as_async(items)
    try:
        while True:
            # Completed outcomes are not held back by a slow iterable.
            while tasks and (pending[0].done() if ordered else not finished.empty()):
                yield await next_outcome()
            try:
                item = await source.__anext__()
            except StopAsyncIteration:
                break
            except Exception as error:
                failure = error
                break
            task = asyncio.create_task(work(index, item))
            index += 1
            tasks.add(task)
            if ordered:
                pending.append(task)
            else:
                task.add_done_callback(finished.put_nowait)
            if len(tasks) == _AHEAD * concurrency:
                yield await next_outcome()
        while tasks:
            yield await next_outcome()
        if failure is not None:
            raise failure
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _as_async(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    for item in items:
        yield item
