# SPDX-License-Identifier: Apache-2.0
"""How the launcher learns that a process cannot serve any more, though it is alive.

A GPU that failed stays failed for the process that used it, and a process may be stopped or deadlocked. Triton 2.51
asks no model whether it is ready. So a model writes a note to a directory of the launcher when it fails, and a thread
of it touches a file there as long as it runs; the launcher kills the process and reloads the model.
"""

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ocdserve.backend.files import write_atomically
from ocdserve.backend.serve.process.processes import ProcessStat

# Set by the launcher for the server and all of its Python processes.
DIRECTORY_VARIABLE = "OCDSERVE_HEALTH_DIRECTORY"
# Set in NVIDIA's images too.
TRITON_VERSION_VARIABLE = "TRITON_SERVER_VERSION"


# A process hangs that has been stopped by a signal, or that has not touched its file, for longer than this. The second
# is long, because a busy process is none that hangs: work in C may keep Python's threads waiting.
STOPPED_S = 1.0
SILENT_S = 60.0
_BEAT_S = 1.0
_BEAT = "beat-"
_IN_FLIGHT = "in-flight-"
_COUNT_BYTES = 8


def report_failure(reason: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Write a note about this process; returns whether there is a launcher to read it."""
    directory = environment.get(DIRECTORY_VARIABLE)
    if not directory:
        return False
    try:
        write_atomically(Path(directory) / str(os.getpid()), reason.encode())
    except OSError:
        # The launcher has ended or is about to, and Triton with it.
        return False
    return True


def take_failures(directory: Path) -> dict[int, str]:
    """Read and remove the notes: reasons by process id."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for note in directory.iterdir():
            if note.name.isdigit():
                found[int(note.name)] = note.read_text("utf-8")
                note.unlink()
    return found


def start_heartbeat(environment: Mapping[str, str] = os.environ, then: Callable[[], None] | None = None) -> None:
    """Touch a file of this process once per second, in a thread of its own, as long as there is a launcher.

    Args:
        environment: Names the directory of the launcher.
        then: Called each time, without a launcher too; must not wait.
    """
    directory = environment.get(DIRECTORY_VARIABLE)
    if directory or then:
        beat = Path(directory) / f"{_BEAT}{os.getpid()}" if directory else None
        threading.Thread(target=_beat, args=(beat, then), name="heartbeat", daemon=True).start()


def _beat(beat: Path | None, then: Callable[[], None] | None) -> None:
    # The directory goes with the launcher; on a full disk the next touch may succeed.
    while beat is None or beat.parent.is_dir():
        if beat:
            with contextlib.suppress(OSError):
                beat.touch()
        if then:
            then()
        time.sleep(_BEAT_S)


class InFlight:
    """How many requests this process has taken and not answered, in a file that outlives it.

    Triton 2.51 answers the requests that are inside of `execute` when a process dies. Those that a model took to answer
    them from threads of its own, it never answers.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """None yet; without a launcher nobody is shown."""
        self._lock = threading.Lock()
        self._count = 0
        self._shown: mmap.mmap | None = None
        directory = environment.get(DIRECTORY_VARIABLE)
        if directory:
            # Allocated, since writing a page for which the disk has no room kills the process.
            name = f"{_IN_FLIGHT}{os.getppid()}-{os.getpid()}"
            with contextlib.suppress(OSError), open(Path(directory) / name, "w+b") as file:
                os.posix_fallocate(file.fileno(), 0, _COUNT_BYTES)
                self._shown = mmap.mmap(file.fileno(), _COUNT_BYTES)

    def add(self, change: int) -> None:
        """Count requests that were taken (positive) or answered (negative)."""
        with self._lock:
            self._count += change
            if self._shown is not None:
                self._shown[:] = self._count.to_bytes(_COUNT_BYTES, "little")


def take_lost(directory: Path, server_pid: int) -> dict[int, int | None]:
    """How many requests each dead process of a server has left without an answer; their files are removed.

    Args:
        directory: Where `InFlight` counts them.
        server_pid: The parent of the processes. What others' have left went with them.

    Returns:
        Numbers by process id, without zeros; None for an unknown number, since there was no room to count.
    """
    found: dict[int, int | None] = {}
    with contextlib.suppress(FileNotFoundError):
        for file in directory.glob(f"{_IN_FLIGHT}*"):
            parent, pid = map(int, file.name.removeprefix(_IN_FLIGHT).split("-"))
            stat = ProcessStat.read(pid)
            if stat is None or not stat.alive:
                shown = file.read_bytes()
                file.unlink()
                count = int.from_bytes(shown, "little") if shown else None
                if parent == server_pid and count != 0:
                    found[pid] = count
    return found


class HangWatch:
    """Notices processes that hang."""

    def __init__(self) -> None:
        # By process: its last sign of life, the time of its file or "stopped", and since when it has not changed.
        self._seen: dict[int, tuple[int | str, float]] = {}

    def hanging(self, directory: Path, pids: Iterable[int], now: float) -> dict[int, str]:
        """What is wrong with those of the processes that hang; to be called often.

        Args:
            directory: Where models touch their files; processes without a file are only watched for being stopped.
            pids: The processes.
            now: Monotonic seconds.
        """
        signs = {pid: sign for pid in pids if (sign := _sign(directory, pid)) is not None}
        known, self._seen = self._seen, {}
        for pid, sign in signs.items():
            last = known.get(pid)
            self._seen[pid] = last if last is not None and last[0] == sign else (sign, now)
        found = {}
        for pid, (sign, since) in self._seen.items():
            if sign == "stopped" and now - since > STOPPED_S:
                found[pid] = "it was stopped by a signal"
            elif sign != "stopped" and now - since > SILENT_S:
                found[pid] = f"it has not run for {SILENT_S:g} s"
        return found


def _sign(directory: Path, pid: int) -> int | str | None:
    """The time of a process' file, or "stopped"; None if it is dead or has no file."""
    beat = directory / f"{_BEAT}{pid}"
    stat = ProcessStat.read(pid)
    if stat is None or not stat.alive:
        beat.unlink(missing_ok=True)
        return None
    if stat.state == "T":
        return "stopped"
    try:
        return beat.stat().st_mtime_ns
    except FileNotFoundError:
        return None
