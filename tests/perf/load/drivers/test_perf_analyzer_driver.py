# SPDX-License-Identifier: Apache-2.0
"""Arguments of perf_analyzer, and how its profile export is read."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.contract import UnavailableError
from ocdserve.perf.inputs.image_sets import EncodedImage, ImageSet, draw_images
from ocdserve.perf.load.drivers.payloads import Target
from ocdserve.perf.load.drivers.perf_analyzer_driver import (
    answers_of,
    arguments,
    input_document,
    intervals_us,
    requests_in,
    run,
)
from ocdserve.perf.load.scenarios import Scenario

# As the program: it takes no file that exists for its export, says so before pages on its use, and at its first run
# leaves an empty one.
PROGRAM = """#!/bin/sh
cd "$(dirname "$0")"
if [ -e export.json ]; then printf 'Error: the path exists\\nUsage: me\\nmuch\\nmore\\nmost\\n' >&2; exit 99; fi
if [ -e ran ]; then echo '{"timestamp": 1, "response_timestamps": [2000001]}' >export.json; exit; fi
touch ran export.json
"""

IMAGES = ImageSet("two", (EncodedImage("a", b"abc"), EncodedImage("b", b"")))
# Begin, whatever an image may hold, response times.
REQUESTS = st.lists(
    st.tuples(st.integers(0, 2**62), st.text(max_size=20), st.lists(st.integers(0, 2**62), max_size=3)), max_size=5
)


def target(images: ImageSet = IMAGES, **fields: Any) -> Target:
    url = {"grpc": "grpc://127.0.0.1:9", "http": "http://127.0.0.1:8"}[fields.get("protocol", "grpc")]
    return Target(Scenario("x", **fields), images, url)


@given(requests=REQUESTS, indent=st.sampled_from([None, 1]))
def test_the_times_of_an_export_are_read_whatever_the_images_hold(
    requests: list[tuple[int, str, list[int]]], indent: int | None
) -> None:
    rows = [
        {"timestamp": begin, "request_inputs": {"IMAGE": text}, "response_timestamps": ends}
        for begin, text, ends in requests
    ]
    document = {"experiments": [{"experiment": {"mode": "concurrency", "value": 4}, "requests": rows}]}
    expected = sorted((begin, ends[-1]) for begin, _, ends in requests if ends)
    assert requests_in(json.dumps(document, indent=indent).encode()) == expected


def test_raw_bytes_and_keys_within_an_image_are_ignored() -> None:
    export = (
        b'{"requests":[{"timestamp":10,"request_inputs":{"IMAGE":"\xff\xd8 \\"timestamp\\":99 \\"response_timestamps'
        b'\\":[7]"},"response_timestamps":[25],"response_outputs":[{"COUNT":1}]}],"window_boundaries":[1,2]}'
    )
    assert requests_in(export) == [(10, 25)]


def test_latencies_of_a_closed_loop_begin_when_requests_were_sent() -> None:
    first, second = answers_of([(1_000_000_000, 1_020_000_000), (1_500_000_000, 1_530_000_000)], None)
    assert (first.begin_s, first.latency_ms) == (0.0, pytest.approx(20.0))
    assert (second.begin_s, second.latency_ms) == (pytest.approx(0.5), pytest.approx(30.0))


def test_latencies_of_an_open_loop_begin_when_requests_were_due() -> None:
    # Due after 1 and 2 s of a start at 4 s; the second is sent 0.25 s late and takes 0.5 s from then.
    first, second = answers_of([(5_000_000_000, 5_100_000_000), (6_250_000_000, 6_750_000_000)], (1.0, 2.0))
    assert (first.begin_s, first.latency_ms, first.late_ms) == (1.0, pytest.approx(100.0), pytest.approx(0.0))
    assert (second.begin_s, second.latency_ms, second.late_ms) == (2.0, pytest.approx(750.0), pytest.approx(250.0))


def test_intervals_are_whole_microseconds_that_add_up_to_the_arrivals() -> None:
    dues = tuple(float(due) for due in np.random.default_rng(1).exponential(0.01, 1000).cumsum())
    assert np.cumsum(intervals_us(dues)) == pytest.approx(np.array(dues) * 1e6, abs=20)
    assert intervals_us((0.5, 0.5)) == [500_000, 1]


def test_a_closed_loop_is_a_concurrency_and_an_open_one_a_file_of_intervals() -> None:
    closed = arguments(target(concurrency=3, requests=7, batch=2), Path("w"))
    assert closed[:10] == [
        "-m",
        "ocdnet",
        "-i",
        "grpc",
        "-u",
        "127.0.0.1:9",
        "-b",
        "2",
        "--input-data",
        "w/images.json",
    ]
    assert closed[10:] == [
        *("--profile-export-file", "w/export.json", "--shape", "IMAGE:1"),
        *("--concurrency-range", "3", "--request-count=7"),
    ]
    opened = arguments(target(rate=5.0, requests=9, protocol="http"), Path("w"))
    assert opened[-4:] == ["--async", "--request-intervals", "w/intervals.txt", "--request-count=9"]
    timed = arguments(target(concurrency=1, duration_s=6.0), Path("w"))
    assert timed[-3:] == ["--measurement-interval=2000", "--max-trials=3", "--stability-percentage=100000"]


def test_images_and_pixels_are_written_in_its_format() -> None:
    # 03 00 00 00 61 62 63, and 00 00 00 00.
    assert input_document(target(concurrency=1, requests=1)) == {
        "data": [{"IMAGE": {"b64": "AwAAAGFiYw=="}}, {"IMAGE": {"b64": "AAAAAA=="}}]
    }
    pixels = target(draw_images("tiny", 1, 0), model="ocdnet_raw", concurrency=1, requests=1, shared_memory="system")
    (entry,) = input_document(pixels)["data"]
    assert entry["PIXELS"]["shape"] == [48, 160, 3] and len(entry["PIXELS"]["b64"]) == 48 * 160 * 3 * 4 // 3
    given = arguments(pixels, Path("w"))
    assert "--shared-memory=system" in given and "--shape" not in given


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "program"
    path.write_text(PROGRAM, "ascii")
    path.chmod(0o755)
    started = nullcontext((path, tmp_path, dict(os.environ)))
    monkeypatch.setattr("ocdserve.perf.load.drivers.perf_analyzer_driver.workspace", lambda *_: started)
    return path


def test_an_empty_export_does_not_keep_the_second_try_from_writing_one(program: Path) -> None:
    assert run(target(concurrency=1, requests=1)).latencies_ms == pytest.approx([2.0])


def test_the_reason_is_what_comes_before_pages_on_its_use(program: Path) -> None:
    program.write_text(PROGRAM.replace("[ -e export.json ]", "true"), "ascii")
    with pytest.raises(UnavailableError, match=r"status 99: Error: the path exists$"):
        run(target(concurrency=1, requests=1))
