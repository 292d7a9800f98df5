# SPDX-License-Identifier: Apache-2.0
"""Load by NVIDIA's perf_analyzer; its profile export has the times of every request.

Its own figures are not used: it divides by windows of whole seconds, and counts an open loop's latency from when a
request was sent. Here throughput is over the time from the first request to the last answer, and an open loop's
latencies begin when requests were due.
"""

import base64
import itertools
import json
import mmap
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ocdserve.contract import UnavailableError
from ocdserve.perf.load.drivers.payloads import Payload, Target
from ocdserve.perf.load.loads import Answer, LoadResult
from ocdserve.perf.load.perf_analyzer import input_data, installed_program, link_libraries

__all__ = ["answers_of", "arguments", "input_document", "requests_in", "run"]

# The export repeats the request's bytes as they are, so it is not always UTF-8 and can be large: it is not read as
# JSON. Quotes within its strings are escaped, so a key in quotes is a key.
_REQUEST = re.compile(rb'"timestamp"\s*:\s*(\d+)|"response_timestamps"\s*:\s*\[([\d,\s]*)\]')
# A result of variable size through shared memory needs room that is known before; 1,000 boxes take 32 kB.
_OUTPUT_BYTES = 1 << 20
_NS = 1e9
# A duration is made of as many windows as perf_analyzer needs to call a measurement stable.
_WINDOWS = 3


def run(target: Target) -> LoadResult:
    """Run the scenario once; see `ocdserve.perf.load.drivers.run_load`.

    Raises:
        UnavailableError: The program cannot be had, or ended without a result: it gives up on the first error of the
            server. The message has its last words.
    """
    program = installed_program(lambda message: print(message, file=sys.stderr))  # noqa: T201
    scenario = target.scenario
    dues = scenario.arrivals_s() if scenario.is_open else None
    with tempfile.TemporaryDirectory(prefix="ocdserve-analyzer-") as name:
        folder = Path(name)
        link_libraries(folder)
        (folder / "images.json").write_text(json.dumps(input_document(target)), "ascii")
        if dues is not None:
            (folder / "intervals.txt").write_text("".join(f"{us}\n" for us in intervals_us(dues)), "ascii")
        done = subprocess.run(
            [str(program), *arguments(target, folder)],
            env={**os.environ, "LD_LIBRARY_PATH": name},
            capture_output=True,
            text=True,
            errors="replace",
        )
        export = folder / "export.json"
        if done.returncode or not export.is_file():
            words = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-3:]
            raise UnavailableError(f"perf_analyzer ended with status {done.returncode}: {' '.join(words)}")
        with export.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            times = requests_in(content)
    if scenario.duration_s is not None and not scenario.is_open:
        # Its windows begin when it is in full swing, and so it is at work for longer.
        last = times[0][0] + round(scenario.duration_s * _NS) if times else 0
        times = [time for time in times if time[0] < last]
    if not times:
        raise UnavailableError("perf_analyzer's export holds no request that was answered")
    return LoadResult("perf_analyzer", scenario, target.images.digest, answers_of(times, dues))


def arguments(target: Target, folder: Path) -> list[str]:
    """The program's arguments; its files are images.json, intervals.txt and export.json in the folder."""
    scenario = target.scenario
    given = ["-m", scenario.model, "-i", scenario.protocol, "-u", target.address, "-b", str(scenario.batch)]
    given += ["--input-data", str(folder / "images.json"), "--profile-export-file", str(folder / "export.json")]
    if not scenario.takes_pixels:
        # Pixels have the shapes that stand beside them.
        given += ["--shape", "IMAGE:1"]
    if scenario.shared_memory != "none":
        given += [f"--shared-memory={scenario.shared_memory}", f"--output-shared-memory-size={_OUTPUT_BYTES}"]
    if scenario.is_open:
        # Without --async a thread that waits for an answer would be late for its next request.
        requests = len(scenario.arrivals_s())
        return [*given, "--async", "--request-intervals", str(folder / "intervals.txt"), f"--request-count={requests}"]
    given += ["--concurrency-range", str(scenario.concurrency)]
    if scenario.requests is not None:
        return [*given, f"--request-count={scenario.requests}"]
    assert scenario.duration_s is not None
    window_ms = max(1, round(1000 * scenario.duration_s / _WINDOWS))
    return [*given, f"--measurement-interval={window_ms}", f"--max-trials={_WINDOWS}", "--stability-percentage=100000"]


def input_document(target: Target) -> dict[str, Any]:
    """What --input-data reads: an entry an image, of which it takes a batch, one after the other."""
    if not target.scenario.takes_pixels:
        return input_data([image.encoded for image in target.images.images])
    return {"data": [{"PIXELS": _pixels(payload)} for payload in target.payloads]}


def intervals_us(dues_s: Sequence[float]) -> list[int]:
    """Whole microseconds before each request, for --request-intervals; rounding does not add up."""
    at = [round(due * 1e6) for due in dues_s]
    return [max(1, after - before) for before, after in itertools.pairwise([0, *at])]


def requests_in(export: "bytes | mmap.mmap") -> list[tuple[int, int]]:
    """Begin and last response of each answered request in a profile export, nanoseconds of one clock, by begin."""
    times = []
    begin: int | None = None
    for match in _REQUEST.finditer(export):
        if match[1] is not None:
            begin = int(match[1])
        elif begin is not None and (ends := match[2].replace(b",", b" ").split()):
            times.append((begin, int(ends[-1])))
            begin = None
    return sorted(times)


def answers_of(times: Sequence[tuple[int, int]], dues_s: Sequence[float] | None) -> tuple[Answer, ...]:
    """Answers from begin and end of each request in nanoseconds.

    Args:
        times: As `requests_in` gives them.
        dues_s: Open loop: when each request was due, in seconds from a start that is not known: no request can have
            been sent before it was due, so the start is taken so that the most punctual one was on time.
    """
    if dues_s is None:
        start = times[0][0]
        return tuple(Answer((begin - start) / _NS, (end - begin) / 1e6) for begin, end in times)
    pairs = list(zip(times, dues_s, strict=False))
    start = min(begin - round(due * _NS) for (begin, _), due in pairs)
    return tuple(
        Answer(
            begin_s=due,
            latency_ms=(end - start) / 1e6 - due * 1000,
            late_ms=max(0.0, (begin - start) / 1e6 - due * 1000),
        )
        for (begin, end), due in pairs
    )


def _pixels(payload: Payload) -> dict[str, Any]:
    pixels = payload[0]
    assert not isinstance(pixels, bytes)
    return {"b64": base64.b64encode(pixels.tobytes()).decode("ascii"), "shape": list(pixels.shape)}
