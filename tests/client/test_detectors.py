# SPDX-License-Identifier: Apache-2.0
"""Behaviour common to both detectors, and with threads, forks, event loops and cancellation."""

import asyncio
import gc
import inspect
import io
import os
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from ocdserve.client import (
    AsyncMockTransport,
    AsyncTextDetector,
    Hooks,
    InferRequest,
    InvalidInputError,
    MockTransport,
    Retry,
    SharedMemory,
    TextDetector,
    Timeout,
    Tls,
    UnavailableError,
)

URL = "grpc://server:8001"


def one_box(request: InferRequest) -> Mapping[str, NDArray[Any]]:
    images = len(request)
    return {
        "QUADS": np.tile(np.array([[[1, 2], [11, 2], [11, 7], [1, 7]]], np.float32), (images, 1, 1, 1)),
        "SCORES": np.full((images, 1), 0.5, np.float32),
        "COUNT": np.ones((images, 1), np.int32),
        "SIZE": np.tile(np.array([[20, 30]], np.int32), (images, 1)),
    }


def public(kind: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(kind, callable) if not name.startswith("_")}


def test_both_detectors_have_the_same_methods_with_the_same_arguments() -> None:
    plain, awaited = public(TextDetector), public(AsyncTextDetector)
    assert list(plain) == list(awaited)
    assert {"capabilities", "close", "detect", "detect_batch", "detect_many", "health", "ready"} <= set(plain)
    assert inspect.signature(TextDetector) == inspect.signature(AsyncTextDetector)
    for name in plain:
        ours, theirs = inspect.signature(plain[name]), inspect.signature(awaited[name])
        for (own, parameter), (other, async_parameter) in zip(
            ours.parameters.items(), theirs.parameters.items(), strict=True
        ):
            assert (own, parameter.kind, parameter.default) == (other, async_parameter.kind, async_parameter.default)
            # An asynchronous iterable is accepted as well.
            annotation = str(async_parameter.annotation).replace(" | collections.abc.AsyncIterable[~AnyImage]", "")
            assert str(parameter.annotation) == annotation
        is_async = inspect.iscoroutinefunction(awaited[name])
        assert is_async == (name not in ("detect_many", "detect_pages"))
        if is_async:
            assert ours.return_annotation == theirs.return_annotation


def test_a_call_reports_latency_and_request_id_and_accepts_the_callers_ids() -> None:
    transport = MockTransport(one_box)
    detector = TextDetector(URL, transport=transport, token="secret", headers={"X-Tenant": "a"})
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    found = detector.detect(b"jpeg", request_id="mine", traceparent=trace)
    other = detector.detect(b"jpeg")
    assert found.request_id == "mine"
    assert found.latency_ms is not None and 0 < found.latency_ms < 1000
    assert other.request_id is not None and len(other.request_id) == 16
    assert [request.request_id for request in transport.requests] == ["mine", other.request_id]
    assert transport.requests[0].headers == {
        "x-request-id": "mine",
        "x-tenant": "a",
        "authorization": "Bearer secret",
        "traceparent": trace,
    }
    assert "traceparent" not in transport.requests[1].headers
    detector.detect(b"jpeg", request_id="a\nb")  # no header can hold it
    assert "x-request-id" not in transport.requests[2].headers


def test_opentelemetrys_trace_is_propagated(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    context = SimpleNamespace(is_valid=True, trace_id=0xABC, span_id=0xDEF, trace_flags=1)
    span = SimpleNamespace(get_span_context=lambda: context)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", SimpleNamespace(get_current_span=lambda: span))
    transport = MockTransport(one_box)
    TextDetector(URL, transport=transport).detect(b"jpeg")
    assert transport.requests[0].headers["traceparent"] == f"00-{'0' * 29}abc-{'0' * 13}def-01"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"url": []}, "url must name at least one server"),
        ({"timeout": lambda: Timeout(connect=0)}, "Timeout.connect must be a finite number of seconds above 0; got 0"),
        ({"retry": lambda: Retry(attempts=0)}, "Retry.attempts must be a whole number of at least 1; got 0"),
        ({"retry": lambda: Retry(jitter=2)}, "Retry.jitter must be a number from 0 to 1; got 2"),
        ({"tls": lambda: Tls(cert="a.pem")}, "Tls.cert and Tls.key belong together; Tls.key is missing"),
        ({"tls": lambda: Tls(ca="none.pem")}, "Tls.ca: cannot read 'none.pem': No such file or directory"),
        ({"shared_memory": lambda: SharedMemory("gpu")}, 'must be "system" or "cuda"; got \'gpu\''),  # type: ignore[arg-type]
        ({"shared_memory": lambda: SharedMemory(token=Path("no-such"))}, "SharedMemory.token: cannot read 'no-such'"),
        ({"shared_memory": lambda: SharedMemory(token="a b")}, "SharedMemory.token must be printable ASCII"),
        ({"headers": {"a b": "c"}}, "header 'a b' must have a name of letters"),
        ({"headers": {"a": "b\nc"}}, "a printable text"),
        ({"token": "x", "headers": {"Authorization": "y"}}, "give one of them"),
        ({"compression": "br"}, 'compression must be "gzip", "deflate" or None; got \'br\''),
        ({"transport": [MockTransport(one_box)] * 2}, "one for each of the 1 URLs; got 2"),
    ],
)
def test_an_invalid_option_is_refused_by_name(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason.replace("(", r"\(")):
        TextDetector(**{"url": URL, **{name: made() if callable(made) else made for name, made in options.items()}})


def test_an_invalid_traceparent_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="traceparent must be"):
        TextDetector(URL, transport=MockTransport(one_box)).detect(b"jpeg", traceparent="abc")


def test_a_batch_shares_requests_by_kind_and_keeps_the_order() -> None:
    transport = MockTransport(one_box)
    small, large = np.zeros((2, 3, 3), np.uint8), np.zeros((4, 3, 3), np.uint8)
    with TextDetector(URL, transport=transport) as detector:
        found = detector.detect_batch([b"a", small, *[b"b"] * 9, large, small])
        assert detector.detect_batch([]) == []
    assert len(found) == 13
    assert [(request.input_name, request.array.shape) for request in transport.requests] == [
        ("IMAGE", (8, 1)),
        ("IMAGE", (2, 1)),
        ("PIXELS", (2, 2, 3, 3)),
        ("PIXELS", (1, 4, 3, 3)),
    ]


def test_a_refused_image_of_a_batch_is_reported_with_the_callers_index() -> None:
    def refuse(request: InferRequest) -> Mapping[str, NDArray[Any]]:
        raise InvalidInputError("in ensemble 'ocdnet', image 1 of 2 (counted from 0): truncated")

    detector = TextDetector(URL, transport=MockTransport(refuse))
    with pytest.raises(InvalidInputError, match=r"image 2 of 3 \(counted from 0\): truncated"):
        detector.detect_batch([b"a", np.zeros((1, 1, 3), np.uint8), b"b"])
    with pytest.raises(InvalidInputError, match=r"image 1 of 2 "):
        detector.detect_batch([b"a", b"b"])


def test_one_detector_is_used_by_many_threads() -> None:
    transport = MockTransport(one_box)
    with TextDetector(URL, transport=transport) as detector, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: detector.detect(b"jpeg"), range(400)))
    assert len({one.request_id for one in found}) == 400
    assert len(transport.requests) == 400


def in_child(work: Any) -> str:
    """The result of `work` in a forked child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = str(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_only_an_unused_detector_works_after_a_fork() -> None:
    transport = MockTransport(one_box)
    with TextDetector(URL, transport=transport) as detector:
        assert in_child(lambda: len(detector.detect(b"jpeg"))) == "1"
        detector.detect(b"jpeg")
        said = in_child(lambda: detector.detect(b"jpeg"))
        assert said.startswith(
            f"UnavailableError: this TextDetector('grpc://server:8001') was used in process {os.getpid()}"
        )
        assert "Make one in each process" in said
        # Closing the child's copy does not affect the parent's connections.
        assert in_child(lambda: (detector.close(), transport.closed)[1]) == "False"
        detector.detect(b"jpeg")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_free_the_parents_shared_memory() -> None:
    def segments() -> list[str]:
        return [name for name in os.listdir("/dev/shm") if f"client-{os.getpid()}-" in name]

    detector = TextDetector(URL, transport=MockTransport(one_box), shared_memory=SharedMemory())
    detector.detect(np.zeros((20, 30, 3), np.uint8))
    before = segments()
    assert len(before) == 1
    in_child(detector.close)
    assert segments() == before
    detector.close()
    assert segments() == []


def test_shared_memory_of_an_unclosed_detector_is_freed() -> None:
    detector = TextDetector(URL, transport=MockTransport(one_box), shared_memory=SharedMemory())
    detector.detect(np.zeros((20, 30, 3), np.uint8))
    assert [name for name in os.listdir("/dev/shm") if f"client-{os.getpid()}-" in name] != []
    del detector
    gc.collect()
    assert [name for name in os.listdir("/dev/shm") if f"client-{os.getpid()}-" in name] == []


def test_a_failing_hook_leaves_no_request_in_flight() -> None:
    def broken(event: object) -> None:
        raise RuntimeError("broken hook")

    with TextDetector(URL, transport=MockTransport(one_box), hooks=Hooks(on_request=broken)) as detector:
        with pytest.raises(RuntimeError, match="broken hook"):
            detector.detect(b"jpeg")
        assert detector.health().servers[0].under_way == 0


def test_an_async_detector_works_in_successive_loops() -> None:
    detector = AsyncTextDetector(URL, transport=AsyncMockTransport(one_box))
    for _ in range(2):
        assert len(asyncio.run(detector.detect(b"jpeg"))) == 1
    asyncio.run(detector.close())
    with pytest.raises(UnavailableError, match=r"AsyncTextDetector.*is closed"):
        asyncio.run(detector.detect(b"jpeg"))


def test_files_are_read_off_the_event_loop(tmp_path: Path) -> None:
    threads: list[str] = []

    class File:
        def read(self, size: int = -1, /) -> bytes:
            threads.append(threading.current_thread().name)
            return b"jpeg"

    async def run() -> None:
        async with AsyncTextDetector(URL, transport=AsyncMockTransport(one_box)) as detector:
            await detector.detect(File())

    asyncio.run(run())
    assert threads != [threading.main_thread().name]


def test_a_cancelled_call_ends_at_once_and_frees_the_server() -> None:
    async def run() -> None:
        started = asyncio.Event()

        async def never(request: InferRequest) -> Mapping[str, NDArray[Any]]:
            started.set()
            await asyncio.Event().wait()
            return {}

        async with AsyncTextDetector(URL, transport=AsyncMockTransport(never)) as detector:
            task = asyncio.create_task(detector.detect(b"jpeg"))
            await started.wait()
            assert (await detector.health()).servers[0].under_way == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await detector.health()).servers[0].under_way == 0

    asyncio.run(run())


def test_closing_wakes_a_pausing_call() -> None:
    def overloaded(request: InferRequest) -> Mapping[str, NDArray[Any]]:
        error = UnavailableError("queue full")
        error.retryable = True
        raise error

    transport = MockTransport(overloaded)
    detector = TextDetector(URL, transport=transport, retry=Retry(backoff_s=30, longest_s=30))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(detector.detect, b"jpeg")
        while not transport.requests:
            time.sleep(0.005)
        start = time.monotonic()
        detector.close()
        with pytest.raises(UnavailableError, match="closed during a call"):
            call.result()
    assert time.monotonic() - start < 2


def test_health_reports_a_silent_server_and_capabilities_come_from_one_that_answers() -> None:
    def silent(model: str) -> bool:
        raise UnavailableError("connection refused")

    transports = [MockTransport(one_box, ready=silent), MockTransport(one_box)]
    with TextDetector([URL, "http://other:8000"], transport=transports) as detector:
        health = detector.health()
        capabilities = detector.capabilities()
        assert detector.ready()
    assert health.ready
    assert [(row.url, row.ready, row.reason) for row in health.servers] == [
        (URL, False, "connection refused"),
        ("http://other:8000", True, None),
    ]
    names = [model.name for model in capabilities.models]
    assert names == ["ocdnet", "ocdnet_raw", "ocdnet_fused", "ocr", "ocr_raw", "ocr_fused"]
    assert all(transport.closed for transport in transports)


@pytest.mark.usefixtures("no_socket_left")
def test_an_interrupted_connection_leaves_no_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with TextDetector(url, timeout_s=0.1) as detector, pytest.raises(UnavailableError):
            detector.detect(b"jpeg")

        async def run() -> None:
            async with AsyncTextDetector(url) as detector:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(detector.detect(b"jpeg"), 0.1)

        asyncio.run(run())


def test_the_token_of_shared_memory_is_read_from_its_file_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    memory = SharedMemory(token=tmp_path / "token")
    assert memory.token == "s3cret" and "s3cret" not in repr(memory)


class TestLargestSide:
    """`max_side`: larger images are scaled down before they are sent; results are in pixels of the original."""

    @staticmethod
    def encoded(width: int, height: int, *more: tuple[int, int]) -> bytes:
        """A PNG file, or a TIFF file of several pages."""
        stream = io.BytesIO()
        first, *rest = (PIL.Image.new("RGB", size, "white") for size in ((width, height), *more))
        first.save(stream, "TIFF" if rest else "PNG", **({"save_all": True, "append_images": rest} if rest else {}))
        return stream.getvalue()

    @staticmethod
    def answer(request: InferRequest) -> Mapping[str, NDArray[Any]]:
        """A box over the left half of an image of 80 x 40 pixels."""
        sizes = [[40, 80]] * len(request)
        quad = [[0, 0], [40, 0], [40, 40], [0, 40]]
        return {**one_box(request), "QUADS": np.float32([[quad]] * len(request)), "SIZE": np.int32(sizes)}

    def test_applies_to_each_kind_of_call(self) -> None:
        transport = MockTransport(self.answer)
        large, small = self.encoded(160, 80), self.encoded(80, 40)
        with TextDetector(URL, transport=transport) as detector:
            calls = [
                [detector.detect(large, max_side=80)],
                detector.detect_batch([large, small], max_side=80),
                [one.result() for one in detector.detect_many([small, large], max_side=80)],
                list(detector.detect_pages(large, max_side=80)),
            ]
        for found in (found for call in calls for found in call):
            scale = found.width // 80
            assert (found.width, found.height) in ((160, 80), (80, 40))
            assert found.quads[0].tolist() == [
                [0, 0],
                [40 * scale, 0],
                [40 * scale, 40 * scale],
                [0, 40 * scale],
            ]
        assert [[one.width for one in call] for call in calls] == [[160], [160, 80], [80, 160], [160]]
        pixels = [request.array.shape for request in transport.requests if request.array.dtype == np.uint8]
        assert pixels == [(1, 40, 80, 3)] * 4
        assert [request.array.item() for request in transport.requests if request.array.dtype != np.uint8] == [
            small
        ] * 2

    def test_decodes_the_chosen_page(self) -> None:
        transport = MockTransport(self.answer)
        pages = self.encoded(10, 10, (160, 80))
        with TextDetector(URL, transport=transport) as detector:
            found = detector.detect(pages, page=2, max_side=80, box_thresh=0.5)
            assert (found.page, found.width, found.height) == (2, 160, 80)
            assert detector.detect(pages, page=1, max_side=80).page == 1
        assert [request.array.shape for request in transport.requests] == [(1, 40, 80, 3), (1, 10, 10, 3)]
        assert transport.requests[0].parameters == {"box_thresh": 0.5}

    def test_is_checked_before_an_image_is_read(self) -> None:
        with TextDetector(URL, transport=MockTransport(one_box)) as detector:
            one, several = (detector.detect, detector.detect_pages), (detector.detect_batch, detector.detect_many)
            for call in (*(partial(each, b"x") for each in one), *(partial(each, [b"x"]) for each in several)):
                with pytest.raises(InvalidInputError, match="max_side must be a whole number of at least 32; got 9"):
                    call(max_side=9)

    def test_applies_with_asyncio(self) -> None:
        async def run() -> list[int]:
            async with AsyncTextDetector(URL, transport=AsyncMockTransport(self.answer)) as detector:
                large = self.encoded(160, 80)
                found = [await detector.detect(large, max_side=80), *await detector.detect_batch([large], max_side=80)]
                found += [one.result() async for one in detector.detect_many([large], max_side=80)]
                found += [one async for one in detector.detect_pages(large, max_side=80)]
                return [one.width for one in found]

        assert asyncio.run(run()) == [160] * 4
