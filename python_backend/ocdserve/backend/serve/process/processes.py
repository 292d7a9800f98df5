# SPDX-License-Identifier: Apache-2.0
"""Triton's Python stubs, as /proc shows them."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ocdserve.backend.serve.process.guard import SHARED_MEMORY

PROC = Path("/proc")
_POLL_S = 0.1
STUB = "triton_python_backend_stub"
# Triton starts a stub at once and notices within 2 s that it died while loading, when it has no siblings that load; the
# rest is a margin for a busy machine.
NO_STUB_S = 4.0
ALL_DEAD_S = 3.0
ONE_DEAD_S = 8.0


@dataclass(frozen=True)
class ProcessStat:
    """The fields of /proc/PID/stat that supervision needs."""

    pid: int
    name: str
    state: str
    parent: int
    start_time: int

    @property
    def alive(self) -> bool:
        """False for a zombie too: Triton keeps a dead stub unreaped until its model is unloaded."""
        return self.state not in "ZXx"

    @classmethod
    def parse(cls, text: str) -> "ProcessStat":
        """Read one line of /proc/PID/stat; the name is in parentheses and may itself contain any of " ()"."""
        head, _, tail = text.rpartition(")")
        pid, _, name = head.partition("(")
        fields = tail.split()
        return cls(int(pid), name, fields[0], int(fields[1]), int(fields[19]))

    @classmethod
    def read(cls, pid: int, proc: Path = PROC) -> "ProcessStat | None":
        """State of a process; None when there is no such process."""
        try:
            return cls.parse((proc / str(pid) / "stat").read_text(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            return None


@dataclass(frozen=True)
class Stub:
    """One Python process of a model instance.

    Attributes:
        pid: Process id.
        start_time: Start in clock ticks since boot; with the pid it identifies the process uniquely.
        model: Name of the model it runs.
        segment: Name of its shared memory segment.
    """

    pid: int
    start_time: int
    model: str
    segment: str

    def alive(self, proc: Path = PROC) -> bool:
        """Whether this process, not another with its pid, still runs."""
        stat = ProcessStat.read(self.pid, proc)
        return stat is not None and stat.alive and stat.start_time == self.start_time


def find_stubs(server_pid: int, proc: Path = PROC) -> tuple[Stub, ...]:
    """The living stubs of a tritonserver process, by pid."""
    found = []
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        stat = ProcessStat.read(int(entry.name), proc)
        if stat is None or stat.parent != server_pid or not stat.alive:
            continue
        identity = parse_stub_arguments(_arguments(entry))
        if identity is not None:
            found.append(Stub(stat.pid, stat.start_time, *identity))
    return tuple(sorted(found, key=lambda stub: stub.pid))


def find_dead(server_pid: int, known: Container[int], proc: Path = PROC) -> tuple[Stub, ...]:
    """Stubs that died before they were known by their pid; of what model they were can no longer be seen."""
    stats = [ProcessStat.read(int(entry.name), proc) for entry in proc.iterdir() if entry.name.isdigit()]
    return tuple(
        Stub(stat.pid, stat.start_time, "", "")
        for stat in stats
        if stat
        and not stat.alive
        and stat.parent == server_pid
        and STUB.startswith(stat.name)
        and stat.pid not in known
    )


def kill(stub: Stub) -> None:
    """Kill a stub, unless it is dead already: its process id may be another's by now."""
    if stub.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(stub.pid, signal.SIGKILL)


def retire(old: Collection[Stub], patience_s: float, stopping: threading.Event, health: Path) -> None:
    """Wait until the stubs of an unloaded model have ended, and kill what remains: Triton may never release it.

    Their notes in the directory `health` go too: another process with the same id would be judged by them. Only the
    number of requests that they have lost is left for `take_lost`.
    """
    deadline = time.monotonic() + patience_s
    while any(stub.alive() for stub in old) and time.monotonic() < deadline:
        if stopping.wait(_POLL_S):
            return
    for stub in old:
        kill(stub)
        (SHARED_MEMORY / stub.segment).unlink(missing_ok=True)
        (health / f"beat-{stub.pid}").unlink(missing_ok=True)


class LoadWatch:
    """Notices that Triton waits for a stub that died in its first milliseconds, which it does without a limit."""

    def __init__(self) -> None:
        # What is wrong, by stub or model, and since when.
        self._since: dict[Stub | tuple[str, bool], float] = {}

    def stuck(self, loading: Mapping[str, Sequence[Stub]], now: float) -> list[str]:
        """The models whose loading will not end; to be called often.

        Args:
            loading: The stubs of each model that is being loaded, dead or alive.
            now: Monotonic seconds.
        """
        limits: dict[Stub | tuple[str, bool], tuple[str, float]] = {}
        for model, stubs in loading.items():
            dead = [stub for stub in stubs if not stub.alive()]
            limits.update({stub: (model, ONE_DEAD_S) for stub in dead})
            if len(dead) == len(stubs):
                limits[model, bool(dead)] = (model, ALL_DEAD_S if dead else NO_STUB_S)
        self._since = {wrong: self._since.get(wrong, now) for wrong in limits}
        return sorted({model for wrong, (model, limit_s) in limits.items() if now - self._since[wrong] > limit_s})


def parse_stub_arguments(arguments: Sequence[str]) -> tuple[str, str] | None:
    """Model name and segment name of a stub's command line; None for other processes.

    Triton starts `STUB REPOSITORY/MODEL/VERSION/FILE SEGMENT SIZE GROWTH PARENT BACKENDS HANDLES INSTANCE RUNTIME`.
    INSTANCE begins with the instance group's name, which a configuration may choose, so the path names the model.
    """
    if len(arguments) < 9 or Path(arguments[0]).name != STUB:
        return None
    model = Path(arguments[1]).parent.parent.name
    return (model, arguments[2].lstrip("/")) if model else None


def _arguments(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
