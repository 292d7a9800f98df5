# SPDX-License-Identifier: Apache-2.0
"""Running the parts one after the other, each within its own time, and keeping what each has found."""

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ocdserve.contract import OcdserveError, UnavailableError
from ocdserve.perf.gpu_check.check_context import Deadline, OutOfTimeError, Setting
from ocdserve.perf.gpu_check.record import Record, write_json

# A part gets this much more to end by itself; then it is killed. Less is not worth beginning a part.
_GRACE_S = 20.0
_LEAST_S = 5.0
_ERROR_LINES = 6
_LOG_END = 4000


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Attributes:
        name: On the command line and in the result.
        title: What it is about.
        run: Does it; raises OutOfTimeError when its time is up.
        most_s: Seconds that it may take at most.
    """

    name: str
    title: str
    run: Callable[[Setting], None]
    most_s: float


# A part, its seconds, and the file that it writes to: to its record.
RunPart = Callable[[Part, float, Path], Record]


def run_parts(
    parts: Sequence[Part], total: Deadline, work: Path, run: RunPart, keep: Callable[[Sequence[Record]], None]
) -> list[Record]:
    """Run the parts in their order, as long as there is time.

    Args:
        parts: The most important first.
        total: The time of all parts together.
        work: Folder for their records.
        run: Runs one.
        keep: Is given all records after each part.
    """
    records: list[Record] = []
    for part in parts:
        seconds = min(part.most_s, total.left_s - _GRACE_S)
        if seconds < _LEAST_S:
            records.append(Record(part.name, "stopped", "no time was left for it"))
        else:
            records.append(run(part, seconds, work / f"{part.name}.json"))
        keep(records)
    return records


def run_here(part: Part, setting: Setting) -> Record:
    """Run one part in this process; whatever it raises ends up in its record."""
    record = setting.record
    try:
        part.run(setting)
        record.state = "complete"
    except OutOfTimeError as error:
        record.state, record.reason = "stopped", f"its {setting.deadline.seconds:.0f} s were over before: {error}"
    except UnavailableError as error:
        record.state, record.reason = "not available", str(error)
    except OcdserveError as error:
        record.state, record.reason = "failed", str(error)
    except Exception as error:  # a part that breaks must not hide the others
        place = traceback.extract_tb(error.__traceback__)[-1]
        record.state = "failed"
        record.reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
    record.seconds = setting.deadline.spent_s
    setting.keep()
    return record


def run_apart(part: Part, seconds: float, path: Path, arguments: Sequence[str], prefix: Sequence[str] = ()) -> Record:
    """Run one part in a process of its own, which is killed when it hangs.

    Args:
        part: The part.
        seconds: Its time.
        path: Where it writes its record; what it wrote counts, however it ends.
        arguments: Of the command line, for all parts.
        prefix: A tool that runs the process, such as compute-sanitizer.
    """
    path.unlink(missing_ok=True)
    command = [*prefix, sys.executable, "-m", "ocdserve.perf.gpu_check", *arguments]
    command += ["--part", part.name, "--seconds", f"{seconds:.1f}", "--record", str(path)]
    log = path.with_suffix(".log")
    code = _run(command, log, seconds + _GRACE_S)
    record = Record.load(path, part.name)
    if record.state == "running":
        end = f"killed: it hung for {_GRACE_S:.0f} s after its time" if code is None else _end_of(code)
        record.state, record.reason = "failed", f"{end}; {_last_lines(log)}"
    record.log = log.read_text("utf-8", "replace")[-_LOG_END:]
    write_json(path, record.to_json())
    return record


def _run(command: Sequence[str], log: Path, seconds: float) -> int | None:
    """The exit code of a process; None if it was killed, with all that it had started, when its time was up."""
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # What it left behind would disturb the next part.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _end_of(code: int) -> str:
    return f"its process was ended by signal {-code}" if code < 0 else f"its process ended with exit code {code}"


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return " / ".join(lines[-_ERROR_LINES:]) or "it said nothing"
