# SPDX-License-Identifier: Apache-2.0
"""Both detectors against the real server, over every transport."""

import asyncio
import io
import json
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from ocdserve.backend import Detector
from ocdserve.backend.serve import TritonServer
from ocdserve.client import (
    AccessError,
    AsyncTextDetector,
    DeadlineError,
    InvalidInputError,
    Retry,
    SharedMemory,
    TextDetector,
    UnavailableError,
)
from ocdserve.perf.inputs.pictures import street
from ocdserve.results import second_look
from ocdserve.results.detections import Detections

pytestmark = pytest.mark.triton

PICTURE = street().png()
PIXELS = np.asarray(Image.open(io.BytesIO(PICTURE)).convert("RGB"))
PROTOCOLS = ("grpc", "http")


@pytest.fixture(scope="module")
def expected(default_detector: Detector) -> Detections:
    return default_detector.detect(PICTURE)


def memory_of(server: TritonServer) -> SharedMemory:
    return SharedMemory(regions=2, token=server.options.shared_memory)


def url_of(server: TritonServer, protocol: str) -> str:
    return server.grpc_url if protocol == "grpc" else server.http_url


def assert_same(found: Detections, expected: Detections) -> None:
    assert (found.width, found.height) == (expected.width, expected.height)
    assert found.quads.tobytes() == expected.quads.tobytes()
    assert found.scores.tobytes() == expected.scores.tobytes()


def segments() -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"ocdserve-client-{os.getpid()}-")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_second_look_through_the_server_finds_what_it_finds_in_process(
    default_server: TritonServer, default_detector: Detector, protocol: str
) -> None:
    page = Image.new("RGB", (1600, 1600), "white")
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 24)
    ImageDraw.Draw(page).text((244, 376), "Invoice number 7731", "black", font=font)
    pixels = np.asarray(page)
    with TextDetector(url_of(default_server, protocol)) as detector:
        assert len(detector.detect(pixels)) == 0
        found = second_look(detector.detect, pixels)
    assert len(found) == 1
    assert_same(found, second_look(default_detector.detect, pixels))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_both_detectors_return_the_in_process_detectors_result(
    default_server: TritonServer, protocol: str, compression: Any, expected: Detections
) -> None:
    url = url_of(default_server, protocol)
    with TextDetector(url, compression=compression) as detector:
        assert_same(detector.detect(PICTURE), expected)
        assert_same(detector.detect(PIXELS), expected)
        assert_same(detector.detect(np.ascontiguousarray(PIXELS[..., ::-1]), bgr=True), expected)

    async def ask() -> None:
        async with AsyncTextDetector(url, compression=compression) as detector:
            assert_same(await detector.detect(PICTURE), expected)
            assert_same(await detector.detect(PIXELS), expected)

    asyncio.run(ask())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_batch_of_files_and_pixels_is_answered_in_its_order(
    default_server: TritonServer, protocol: str, expected: Detections
) -> None:
    blank = np.full((240, 320, 3), 255, np.uint8)
    with TextDetector(url_of(default_server, protocol)) as detector:
        found = detector.detect_batch([PICTURE, blank, PIXELS, blank])
        with pytest.raises(InvalidInputError, match=r"image 2 of 3 \(counted from 0\)"):
            detector.detect_batch([blank, PICTURE, b"no image"])
    assert [len(one) for one in found] == [len(expected), 0, len(expected), 0]
    assert_same(found[2], expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pixels_are_sent_through_shared_memory_which_is_reused_and_released(
    default_server: TritonServer, protocol: str, expected: Detections
) -> None:
    with TextDetector(url_of(default_server, protocol), shared_memory=memory_of(default_server)) as detector:
        for _ in range(3):
            assert_same(detector.detect(PIXELS), expected)
        assert len(segments()) == 1
        outcomes = list(detector.detect_many([PIXELS] * 5, concurrency=4))
        assert len(segments()) <= 2
    for outcome in outcomes:
        assert_same(outcome.result(), expected)
    assert segments() == []

    async def ask() -> None:
        async with AsyncTextDetector(
            url_of(default_server, protocol), shared_memory=memory_of(default_server)
        ) as detector:
            assert_same(await detector.detect(PIXELS), expected)
            assert len(segments()) == 1

    asyncio.run(ask())
    assert segments() == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shared_memory_without_the_token_is_refused_with_the_remedy(
    default_server: TritonServer, protocol: str
) -> None:
    with (
        TextDetector(url_of(default_server, protocol), shared_memory=SharedMemory(token="wrong")) as detector,
        pytest.raises(AccessError, match=r"serve --shared-memory FILE`, and pass SharedMemory\(token=Path\(FILE\)\)"),
    ):
        detector.detect(PIXELS)
    assert segments() == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_capabilities_of_the_real_server(default_server: TritonServer, protocol: str) -> None:
    url = url_of(default_server, protocol)
    with TextDetector([url, f"{protocol}://127.0.0.1:9"]) as detector:
        found = detector.capabilities()
        health = detector.health()
    assert (found.url, found.server, found.version) == (url, "triton", "2.51.0")
    reading = ["ocr", "ocr_raw", "ocr_fused"]
    assert [model.name for model in found.models] == ["ocdnet", "ocdnet_raw", "ocdnet_fused", *reading]
    assert found.encoded and found.pixels and found.polygons
    assert "system" in found.shared_memory
    assert found.models[0].inputs == {"IMAGE": ("BYTES", (-1, 1))}
    assert health.ready
    assert [server.ready for server in health.servers] == [True, False]
    assert health.servers[1].reason is not None and "onnect" in health.servers[1].reason

    async def ask() -> Any:
        async with AsyncTextDetector([url, f"{protocol}://127.0.0.1:9"]) as detector:
            return await detector.capabilities(), await detector.health()

    assert asyncio.run(ask())[0] == found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_of_the_real_server_are_mapped(default_server: TritonServer, protocol: str) -> None:
    url = url_of(default_server, protocol)
    with TextDetector(url, retry=Retry(attempts=1)) as detector:
        with pytest.raises(InvalidInputError) as bad:
            detector.detect(b"no image", request_id="mine")
        assert (bad.value.url, bad.value.request_id, bad.value.retryable) == (url, "mine", False)
    with TextDetector(url, model="unheard_of") as detector:
        with pytest.raises(UnavailableError, match="unheard_of") as unknown:
            detector.detect(PICTURE)
        assert not unknown.value.retryable
        assert not detector.ready()
    with TextDetector(url, timeout_s=0.02) as detector, pytest.raises(DeadlineError, match=r"within 0\.0\d* s"):
        detector.detect(PICTURE)


def test_shared_memory_is_registered_again_after_a_restart(
    tmp_path: Path, running_server: Callable[..., AbstractContextManager[TritonServer]], expected: Detections
) -> None:
    from ocdserve.backend.publish.repository import PublishOptions, publish

    repository = publish(PublishOptions(tmp_path / "repository"))
    patient = Retry(attempts=40, longest_s=1.0)
    with (
        running_server(repository, shared_memory=tmp_path / "token") as server,
        TextDetector(server.grpc_url, shared_memory=memory_of(server), retry=patient) as detector,
    ):
        assert_same(detector.detect(PIXELS), expected)
        assert server.pid is not None
        # The launcher restarts it.
        os.kill(server.pid, signal.SIGKILL)
        assert_same(detector.detect(PIXELS), expected)
        assert len(segments()) == 1
    assert segments() == []


@pytest.mark.long
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_command_line_limits_sides_in_process_and_served_alike(
    protocol: str, default_server: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ocdserve.cli import main
    from ocdserve.perf.inputs.pictures import demo_pictures

    files = []
    for picture in demo_pictures():
        files.append(str(tmp_path / f"{picture.name}.png"))
        Path(files[-1]).write_bytes(picture.png())
    url = default_server.grpc_url if protocol == "grpc" else default_server.http_url
    answers = []
    for options in (["--max-side", "600"], ["--max-side", "600", "--url", url], []):
        assert main(["detect", *files, "--json", "-", *options]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        answers.append([{**line, "ms": 0} for line in lines])
    in_process, served, unlimited = answers
    assert in_process == served
    assert [(line["width"], line["height"]) for line in served] == [
        (line["width"], line["height"]) for line in unlimited
    ]
    assert served != unlimited
