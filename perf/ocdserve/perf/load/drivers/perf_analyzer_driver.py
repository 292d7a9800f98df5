# SPDX-License-Identifier: Apache-2.0
"""Load by NVIDIA's perf_analyzer, whose profile export has the times of every request.

Its own figures are not used: it divides by windows of whole seconds, and measures an open loop's latency from when a
request was sent. Here throughput is measured from the first request to the last answer, and an open loop's latency from
when the request was due.
"""

import base64
import itertools
import mmap
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ocdserve.contract import GRPC_HEADER_PREFIX, SHARED_MEMORY_HEADER, UnavailableError
from ocdserve.perf.load.drivers.payloads import Payload, Target
from ocdserve.perf.load.loads import Answer, LoadResult
from ocdserve.perf.load.perf_analyzer import INPUT, input_data, workspace

# The export repeats the request's raw bytes, so it is not always UTF-8 and can be large: it is not parsed as JSON.
# Quotes within its strings are escaped, so a quoted key is a key.
_REQUEST = re.compile(rb'"timestamp"\s*:\s*(\d+)|"response_timestamps"\s*:\s*\[([\d,\s]*)\]')
# Shared memory for an output of variable size must be sized in advance; 1,000 boxes take 32 kB.
_OUTPUT_BYTES = 1 << 20
_NS = 1e9
# A duration is divided into the number of windows that perf_analyzer needs to call a measurement stable.
_WINDOWS = 3
# Rarely it ends well, with its summary, but leaves no export, or an empty one, over which it does not write.
_TRIES = 2


def run(target: Target) -> LoadResult:
    """Run the scenario once; see `ocdserve.perf.load.drivers.run_load`.

    Raises:
        UnavailableError: The program cannot be fetched, or ended without a result: it gives up on the first error of
            the server. The message has its last lines of output.
    """
    scenario = target.scenario
    dues = scenario.arrivals_s() if scenario.is_open else None
    with workspace(input_document(target), lambda message: print(message, file=sys.stderr)) as (  # noqa: T201
        program,
        folder,
        environment,
    ):
        if dues is not None:
            (folder / "intervals.txt").write_text("".join(f"{us}\n" for us in intervals_us(dues)), "ascii")
        export = folder / "export.json"
        for _ in range(_TRIES):
            export.unlink(missing_ok=True)
            done = subprocess.run(
                [str(program), *arguments(target, folder)],
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
            )
            is_written = export.is_file() and export.stat().st_size > 0
            if done.returncode or is_written:
                break
        if done.returncode or not is_written:
            # After an error in its arguments, hundreds of lines say how to use it.
            said = re.split(r"^Usage:", done.stdout + done.stderr, maxsplit=1, flags=re.MULTILINE)[0]
            lines = [line for line in said.splitlines() if line.strip()][-3:]
            raise UnavailableError(f"perf_analyzer ended with status {done.returncode}: {' '.join(lines)}")
        with export.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            times = requests_in(content)
    if scenario.duration_s is not None and not scenario.is_open:
        # Its windows begin once the load is steady, so it runs for longer.
        last = times[0][0] + round(scenario.duration_s * _NS) if times else 0
        times = [time for time in times if time[0] < last]
    if not times:
        raise UnavailableError("perf_analyzer's export holds no request that was answered")
    return LoadResult("perf_analyzer", scenario, target.images.digest, answers_of(times, dues))


def arguments(target: Target, folder: Path) -> list[str]:
    """The program's arguments; its files in the folder are images.json, intervals.txt and export.json."""
    scenario = target.scenario
    given = ["-m", scenario.model, "-i", scenario.protocol, "-u", target.address, "-b", str(scenario.batch)]
    given += ["--input-data", str(folder / INPUT), "--profile-export-file", str(folder / "export.json")]
    if not scenario.takes_pixels:
        # Pixels have their shapes in the document.
        given += ["--shape", "IMAGE:1"]
    if scenario.shared_memory != "none":
        given += [f"--shared-memory={scenario.shared_memory}", f"--output-shared-memory-size={_OUTPUT_BYTES}"]
        if target.token is not None:
            prefix = GRPC_HEADER_PREFIX if scenario.protocol == "grpc" else ""
            given += ["-H", f"{prefix}{SHARED_MEMORY_HEADER}:{target.token.read_text('ascii')}"]
    if scenario.is_open:
        # Without --async a thread that waits for an answer sends its next request late.
        requests = len(scenario.arrivals_s())
        return [*given, "--async", "--request-intervals", str(folder / "intervals.txt"), f"--request-count={requests}"]
    given += ["--concurrency-range", str(scenario.concurrency)]
    if scenario.requests is not None:
        return [*given, f"--request-count={scenario.requests}"]
    assert scenario.duration_s is not None
    window_ms = max(1, round(1000 * scenario.duration_s / _WINDOWS))
    return [*given, f"--measurement-interval={window_ms}", f"--max-trials={_WINDOWS}", "--stability-percentage=100000"]


def input_document(target: Target) -> dict[str, Any]:
    """Document for --input-data: one entry per image, from which it takes batches in order."""
    if not target.scenario.takes_pixels:
        return input_data([image.encoded for image in target.images.images])
    return {"data": [{"PIXELS": _pixels(payload)} for payload in target.payloads]}


def intervals_us(dues_s: Sequence[float]) -> list[int]:
    """Whole microseconds before each request, for --request-intervals; rounding errors do not add up."""
    at = [round(due * 1e6) for due in dues_s]
    return [max(1, after - before) for before, after in itertools.pairwise([0, *at])]


def requests_in(export: "bytes | mmap.mmap") -> list[tuple[int, int]]:
    """Begin and last response of each answered request of a profile export, in nanoseconds, sorted by begin."""
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
        times: As `requests_in` returns them.
        dues_s: Open loop: when each request was due, in seconds from an unknown start. No request can have been sent
            before it was due, so the start is chosen so that the most punctual request was on time.
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
