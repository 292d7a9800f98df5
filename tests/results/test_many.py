# SPDX-License-Identifier: Apache-2.0
"""`detect_many` of both detectors on mocks: exactly once, ordered or not, bounded, without leaks."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.client import (
    AsyncMockTransport,
    AsyncTextDetector,
    InferRequest,
    InvalidInputError,
    MockTransport,
    Outcome,
    Retry,
    TextDetector,
    UnavailableError,
)

URL = "grpc://server:8001"
Many = Callable[..., list[Outcome[Any]]]


def answer(request: InferRequest) -> Mapping[str, NDArray[Any]]:
    """An empty response whose width is the number in the image plus one."""
    width = int(request.array[0, 0])
    if width % 10 == 3:
        raise InvalidInputError(f"image {width} is bad")
    time.sleep(0.002 * (width % 4))
    return {
        "QUADS": np.zeros((1, 0, 4, 2), np.float32),
        "SCORES": np.zeros((1, 0), np.float32),
        "COUNT": np.array([[0]], np.int32),
        "SIZE": np.array([[1, width + 1]], np.int32),
    }


def many(images: Any, handler: Any = answer, **options: Any) -> list[Outcome[Any]]:
    with TextDetector(URL, transport=MockTransport(handler)) as detector:
        return list(detector.detect_many(images, **options))


def many_async(images: Any, handler: Any = answer, **options: Any) -> list[Outcome[Any]]:
    async def run() -> list[Outcome[Any]]:
        async with AsyncTextDetector(URL, transport=AsyncMockTransport(handler)) as detector:
            return [outcome async for outcome in detector.detect_many(images, **options)]

    return asyncio.run(run())


both = pytest.mark.parametrize("run", [many, many_async])


def numbered(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


@both
@pytest.mark.parametrize("ordered", [True, False])
def test_every_image_is_answered_or_reported_exactly_once(run: Many, ordered: bool) -> None:
    images = numbered(50)
    found = run(images, concurrency=5, ordered=ordered)
    if ordered:
        assert [outcome.index for outcome in found] == list(range(50))
    assert sorted(outcome.index for outcome in found) == list(range(50))
    for outcome in found:
        assert outcome.image == images[outcome.index]
        if outcome.index % 10 == 3:
            assert outcome.detections is None
            with pytest.raises(InvalidInputError, match=f"image {outcome.index} is bad"):
                outcome.result()
        else:
            assert outcome.error is None
            assert outcome.result().width == outcome.index + 1


@both
def test_no_images_yield_no_outcomes(run: Many) -> None:
    assert run([]) == []


@both
@pytest.mark.parametrize("concurrency", [0, -1, True, 2.0])
def test_an_invalid_concurrency_is_refused(run: Many, concurrency: Any) -> None:
    with pytest.raises(InvalidInputError, match="concurrency must be a whole number of at least 1"):
        run([b"1"], concurrency=concurrency)


@both
def test_images_before_a_failing_iterable_are_answered_first(run: Many) -> None:
    seen: list[int] = []

    def images() -> Iterator[bytes]:
        yield from numbered(3)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        {many: _collect, many_async: _collect_async}[run](images(), seen)
    assert seen == [0, 1, 2]


def _collect(images: Any, seen: list[int]) -> None:
    with TextDetector(URL, transport=MockTransport(answer)) as detector:
        seen.extend(outcome.index for outcome in detector.detect_many(images))


def _collect_async(images: Any, seen: list[int]) -> None:
    async def run() -> None:
        async with AsyncTextDetector(URL, transport=AsyncMockTransport(answer)) as detector:
            async for outcome in detector.detect_many(images):
                seen.append(outcome.index)

    asyncio.run(run())


def test_concurrency_and_read_ahead_are_bounded() -> None:
    lock, at_once, most, taken = threading.Lock(), [0], [0], [0]

    def counting(request: InferRequest) -> Mapping[str, NDArray[Any]]:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.005)
        with lock:
            at_once[0] -= 1
        return answer(request)

    def images() -> Iterator[bytes]:
        for image in numbered(60):
            taken[0] += 1
            yield b"1" + image[:0]

    with TextDetector(URL, transport=MockTransport(counting)) as detector:
        for number, _ in enumerate(detector.detect_many(images(), concurrency=4)):
            assert taken[0] - number <= 8
            time.sleep(0.001)
    assert most[0] == 4


def test_concurrency_is_bounded_with_asyncio() -> None:
    at_once, most, taken = [0], [0], [0]

    async def counting(request: InferRequest) -> Mapping[str, NDArray[Any]]:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        await asyncio.sleep(0.002)
        at_once[0] -= 1
        return answer(request)

    async def images() -> AsyncIterator[bytes]:
        for _ in range(60):
            taken[0] += 1
            yield b"1"

    async def run() -> None:
        async with AsyncTextDetector(URL, transport=AsyncMockTransport(counting)) as detector:
            number = 0
            async for _ in detector.detect_many(images(), concurrency=4):
                assert taken[0] - number <= 8
                number += 1
            assert number == 60

    asyncio.run(run())
    assert most[0] == 4


def test_unordered_outcomes_come_as_they_complete() -> None:
    release = threading.Event()

    def slow_first(request: InferRequest) -> Mapping[str, NDArray[Any]]:
        if request.array[0, 0] == b"0":
            release.wait(10)
        return answer(request)

    with TextDetector(URL, transport=MockTransport(slow_first)) as detector:
        outcomes = detector.detect_many(numbered(3), concurrency=3, ordered=False)
        assert sorted(next(outcomes).index for _ in range(2)) == [1, 2]
        release.set()
        assert next(outcomes).index == 0


def test_an_outcome_is_not_held_back_by_a_slow_iterable() -> None:
    first = threading.Event()

    def images() -> Iterator[bytes]:
        yield b"1"
        deadline = time.monotonic() + 10
        while not first.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)
            yield b"2"

    with TextDetector(URL, transport=MockTransport(answer)) as detector:
        for outcome in detector.detect_many(images(), concurrency=500):
            if outcome.index == 0:
                first.set()
        assert outcome.index < 900


def test_closing_early_stops_threads_and_cancels_tasks() -> None:
    before = threading.active_count()

    def overloaded(request: InferRequest) -> Mapping[str, NDArray[Any]]:
        error = UnavailableError("queue full")
        error.retryable = True
        if request.array[0, 0] != b"0":
            raise error
        return answer(request)

    with TextDetector(URL, retry=Retry(backoff_s=30, longest_s=30), transport=MockTransport(overloaded)) as detector:
        outcomes = detector.detect_many(numbered(20), concurrency=4)
        assert next(outcomes).index == 0
        start = time.monotonic()
        outcomes.close()  # type: ignore[attr-defined]
        assert time.monotonic() - start < 2
    assert threading.active_count() == before

    async def run() -> None:
        transport = AsyncMockTransport(overloaded)
        async with AsyncTextDetector(URL, retry=Retry(backoff_s=30, longest_s=30), transport=transport) as detector:
            outcomes = detector.detect_many(numbered(20), concurrency=4)
            assert (await outcomes.__anext__()).index == 0
            await outcomes.aclose()  # type: ignore[attr-defined]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
