# SPDX-License-Identifier: Apache-2.0
"""Count the instructions of calls, which unlike their time hardly depend on the load of the machine.

The calls are made in a child process, which is this module run as a program. They are counted by the processor's own
counter through Linux's `perf stat` if that is permitted, else on Valgrind's simulated processor. Instructions of the
kernel, of the start of Python and of the preparation are not counted. Instructions are not time: cache misses and
branch mispredictions cost more.
"""

import ctypes
import gc
import importlib
import json
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ocdserve.contract import InvalidInputError, OcdserveError

Tool = Literal["perf", "callgrind"]

EVENT = "instructions:u"

_SECONDS = 300
_SECONDS_OF_A_TRIAL = 20
# The same order of sets of strings in each run, and no instructions of waiting helper threads.
_CHILD_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "LC_ALL": "C",
}
_DUMP = re.compile(r"^desc: Trigger: Client Request: (.+)$", re.MULTILINE)
_TOTAL = re.compile(r"^totals: (\d+)$", re.MULTILINE)

# A client request of Valgrind (see its manual): four rotations and an exchange that together do nothing, which its
# simulated processor recognises; the arguments' address is in rax, the answer in rdx.
_CLIENT_REQUEST = bytes.fromhex(
    "48 89 f8"  # mov rax, rdi
    "31 d2"  # xor edx, edx
    "48 c1 c7 03"  # rol rdi, 3
    "48 c1 c7 0d"  # rol rdi, 13
    "48 c1 c7 3d"  # rol rdi, 61
    "48 c1 c7 33"  # rol rdi, 51
    "48 87 db"  # xchg rbx, rbx
    "48 89 d0"  # mov rax, rdx
    "c3"  # ret
)
_CALLGRIND = int.from_bytes(b"CT", "big") << 16
_ZERO, _DUMP_AT, _START, _STOP = _CALLGRIND + 1, _CALLGRIND + 3, _CALLGRIND + 4, _CALLGRIND + 5


class InstructionsError(OcdserveError):
    """The child process failed, or its count could not be read."""


@dataclass(frozen=True)
class Counted:
    """A call whose instructions are counted.

    Attributes:
        name: Its name in the result.
        prepare: Prepares and returns the call; a module-level function, so that the child process can import it.
        arguments: Arguments of `prepare`, of JSON types.
    """

    name: str
    prepare: Callable[..., Callable[[], object]]
    arguments: tuple[object, ...] = ()


@dataclass(frozen=True)
class InstructionCounts:
    """Instructions of calls.

    Attributes:
        tool: The tool that counted; None if none works here.
        per_call: Instructions of one call in user space, by name; empty without a tool.
        reason: Why no tool works; None if one does.
    """

    tool: Tool | None
    per_call: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


def count_instructions(
    counted: Sequence[Counted], calls: int = 1, warm_up: int = 2, tool: Tool | None = None
) -> InstructionCounts:
    """Count the instructions of each call, all with the same tool.

    Args:
        counted: The calls, with distinct names.
        calls: Counted repetitions of each.
        warm_up: Repetitions before them, not counted.
        tool: The tool (None: the first that works here, in the order of `Tool`).

    Raises:
        InvalidInputError: An argument is out of its range.
        InstructionsError: The child process failed.
    """
    if calls < 1 or warm_up < 0:
        raise InvalidInputError(f"calls must be at least 1 and warm_up at least 0; got {calls} and {warm_up}")
    if len({one.name for one in counted}) < len(counted):
        raise InvalidInputError(f"each counted call needs a name of its own; got {[one.name for one in counted]}")
    reasons = {}
    for candidate in get_args(Tool) if tool is None else (tool,):
        reason = why_not(candidate)
        if reason is None:
            jobs = [_job(one, calls, warm_up) for one in counted]
            return InstructionCounts(candidate, _with_perf(jobs) if candidate == "perf" else _with_callgrind(jobs))
        reasons[candidate] = reason
    return InstructionCounts(None, reason="; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def why_not(tool: Tool) -> str | None:
    """Why a tool cannot count instructions here; None if it can."""
    if not shutil.which("perf" if tool == "perf" else "valgrind"):
        return "not installed"
    if tool == "callgrind":
        # `_CLIENT_REQUEST` is machine code for this processor.
        is_known = platform.machine() == "x86_64"
        return (
            None if is_known else f"counting a part of a program is known for x86_64 only, this is {platform.machine()}"
        )
    try:
        trial = subprocess.run(
            ["perf", "stat", "-x,", "-e", EVENT, "--", "true"],
            capture_output=True,
            text=True,
            timeout=_SECONDS_OF_A_TRIAL,
            env=os.environ | {"LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return f"perf stat did not end within {_SECONDS_OF_A_TRIAL} s"
    count = trial.stderr.strip().partition(",")[0]
    if trial.returncode == 0 and count.isdecimal():
        return None
    return f"perf stat counts no {EVENT}: {' '.join((count or trial.stderr).split())[:200]}"


def perf_count(job: dict[str, object], event: str) -> float:
    """One job's count of a perf event during its calls.

    Raises:
        InstructionsError: The child process failed.
    """
    with tempfile.TemporaryDirectory(prefix="ocdserve-perf-") as folder:
        control, acknowledged, output = (Path(folder, name) for name in ("control", "acknowledged", "output"))
        os.mkfifo(control)
        os.mkfifo(acknowledged)
        fifos = f"{control},{acknowledged}"
        # The child starts and stops the counter.
        options = ["-x,", "-e", event, "-o", str(output), "--delay", "-1", "--control", f"fifo:{fifos}"]
        _execute(["perf", "stat", *options, "--"], [job], Path(folder), fifos)
        lines = [line for line in output.read_text("utf-8").splitlines() if line and not line.startswith("#")]
        try:
            return float(lines[0].split(",")[0])
        except (IndexError, ValueError) as error:
            raise InstructionsError(f"perf stat wrote no count of {event}, but {lines}") from error


def _job(counted: Counted, calls: int, warm_up: int) -> dict[str, object]:
    prepare = counted.prepare
    if "." in prepare.__qualname__:
        raise InvalidInputError(f"prepare must be a function of a module; got {prepare.__qualname__}")
    return {
        "name": counted.name,
        "module": prepare.__module__,
        "function": prepare.__qualname__,
        "arguments": list(counted.arguments),
        "calls": calls,
        "warm_up": warm_up,
    }


def _with_perf(jobs: Sequence[dict[str, object]]) -> dict[str, float]:
    return {str(job["name"]): perf_count(job, EVENT) / float(str(job["calls"])) for job in jobs}


def _with_callgrind(jobs: Sequence[dict[str, object]]) -> dict[str, float]:
    """Count all jobs in one child, which takes seconds to start on the simulated processor."""
    with tempfile.TemporaryDirectory(prefix="ocdserve-callgrind-") as folder:
        output = Path(folder, "callgrind.out")
        options = ["--tool=callgrind", "--instr-atstart=no", "--quiet", f"--callgrind-out-file={output}"]
        _execute(["valgrind", *options], jobs, Path(folder), "")
        dumps = [path.read_text("utf-8", "replace") for path in Path(folder).glob("callgrind.out*")]
    totals = {
        name[1]: float(total[1]) for dump in dumps if (name := _DUMP.search(dump)) and (total := _TOTAL.search(dump))
    }
    try:
        return {str(job["name"]): totals[str(index)] / float(str(job["calls"])) for index, job in enumerate(jobs)}
    except KeyError as error:
        raise InstructionsError(f"callgrind left no count of call {error}; it left {totals}") from error


def _execute(under: Sequence[str], jobs: Sequence[dict[str, object]], folder: Path, fifos: str) -> None:
    """Execute jobs in a child process under a tool; `fifos` as in `main`."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs), "utf-8")
    command = [*under, sys.executable, "-m", __name__, str(file), fifos]
    try:
        child = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env=os.environ | _CHILD_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    except subprocess.TimeoutExpired as error:
        raise InstructionsError(f"counting took longer than {_SECONDS} s; count fewer or shorter calls") from error
    if child.returncode:
        raise InstructionsError(f"{' '.join(command)} failed with {child.returncode}: {child.stderr.strip()[-2000:]}")


class _Callgrind:
    """Switches Callgrind's instrumentation; has no effect outside Valgrind."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(_CLIENT_REQUEST)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._request = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)
        self._start, self._stop, self._zero = (self._arguments(code) for code in (_START, _STOP, _ZERO))

    def begin(self) -> None:
        self._request(self._start)
        self._request(self._zero)

    def end(self) -> None:
        self._request(self._stop)

    def write(self, name: str) -> None:
        """Write the count to a file that contains the name."""
        text = ctypes.create_string_buffer(name.encode())
        self._request(self._arguments(_DUMP_AT, ctypes.addressof(text)))

    @staticmethod
    def _arguments(code: int, argument: int = 0) -> Any:
        return (ctypes.c_uint64 * 6)(code, argument)


class _Perf:
    """Switches the counter of perf stat through its FIFOs."""

    def __init__(self, control: str, acknowledged: str) -> None:
        self._control = open(control, "wb", buffering=0)  # noqa: SIM115 - held until the process ends
        self._acknowledged = open(acknowledged, "rb", buffering=0)  # noqa: SIM115

    def begin(self) -> None:
        self._say(b"enable\n")

    def end(self) -> None:
        self._say(b"disable\n")

    def write(self, name: str) -> None:
        """Nothing: perf writes the one count when this process ends."""

    def _say(self, command: bytes) -> None:
        self._control.write(command)
        self._acknowledged.read(16)


def main(jobs: str, fifos: str) -> None:
    """Run in the child process: prepare, warm up and make the counted calls of each job.

    Args:
        jobs: Path of the JSON file of jobs.
        fifos: Paths of perf's control and acknowledgement FIFOs, comma-separated; empty under Callgrind.
    """
    counter = _Perf(*fifos.split(",")) if fifos else _Callgrind()
    for index, job in enumerate(json.loads(Path(jobs).read_text("utf-8"))):
        prepare = getattr(importlib.import_module(job["module"]), job["function"])
        call: Callable[[], object] = prepare(*job["arguments"])
        for _ in range(job["warm_up"]):
            call()
        gc.collect()
        # A collection would depend on what earlier jobs left behind.
        gc.disable()
        counter.begin()
        for _ in range(job["calls"]):
            call()
        counter.end()
        gc.enable()
        counter.write(str(index))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
