# SPDX-License-Identifier: Apache-2.0
"""The process between the launcher and tritonserver, which outlives a launcher that is killed.

It starts tritonserver in its own session and then waits for one of two events:

- the server ends: whatever it left behind (Python stubs, shared memory) is removed;
- the launcher closes its end of the pipe, sends a signal, or dies: the server is stopped first.

Run by path with `python -I -S`, so it imports the standard library only and starts in some 30 ms.
Standard input carries one line of JSON (the fields of `GuardSpec`) and stays open; standard output answers with the
server's process id.
A parent-death signal would not be enough: it is tied to the thread that forked, and Triton's own stop can hang.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

SHARED_MEMORY = Path("/dev/shm")
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_CHILD_SUBREAPER = 36
_REAP_TIMEOUT_S = 2.0
_SEGMENT_POLL_S = 0.1


def main() -> int:
    """Run the server that standard input describes; returns its exit status, 128 + N when signal N ended it."""
    wakeups = _signals_as_bytes()
    # Stubs that outlive the server become children of this process, so that it can wait for them.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    line = _read_line(0)
    if not line:
        return 1
    spec = json.loads(line)
    os.chdir(spec["directory"])
    server = _spawn(spec, spec["command"], os.open(os.devnull, os.O_RDONLY))
    os.write(1, f"{server}\n".encode())
    try:
        _wait(server, wakeups, spec)
    finally:
        # The unreaped leader prevents its group's id from being reused.
        kill_group(server)
        status = _reap(server)
        remove_segments(spec["segment_prefix"])
        if _launcher_is_gone():
            shutil.rmtree(spec["workspace"], ignore_errors=True)
    return status


def remove_segments(prefix: str, directory: Path = SHARED_MEMORY) -> list[str]:
    """Unlink every shared memory segment whose name starts with prefix; returns the names."""
    names = [name for name in _names(directory) if name.startswith(prefix)] if prefix else []
    for name in names:
        (directory / name).unlink(missing_ok=True)
    return names


def restrict_segments(prefix: str, done: set[str], directory: Path = SHARED_MEMORY) -> None:
    """Deny other users the new shared memory segments whose name starts with prefix; `done` collects the names.

    Triton's stubs make them readable by everyone, whatever the umask.
    """
    for name in [name for name in _names(directory) if name.startswith(prefix) and name not in done]:
        with contextlib.suppress(FileNotFoundError):
            (directory / name).chmod(0o600)
        done.add(name)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _signals_as_bytes() -> int:
    """Turn signals into bytes on a pipe and return its reading end, so that no signal is lost before a wait."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (*_STOP_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reader


def _spawn(spec: dict[str, Any], command: list[str], standard_input: int) -> int:
    """Start a command that reads a descriptor, which is closed here; its output goes to the log."""
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        command[0],
        command,
        spec["environment"],
        file_actions=[
            (os.POSIX_SPAWN_DUP2, standard_input, 0),
            (os.POSIX_SPAWN_OPEN, 1, spec["log"], log_flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=(*_STOP_SIGNALS, signal.SIGCHLD, signal.SIGPIPE),
    )
    os.close(standard_input)
    return pid


def _wait(server: int, wakeups: int, spec: dict[str, Any]) -> None:
    """Return when the server has ended (it is not reaped), or its time to stop is over."""
    deadline: float | None = None
    segments: set[str] = set()
    while os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        restrict_segments(spec["segment_prefix"], segments)
        timeout = _SEGMENT_POLL_S if deadline is None else min(_SEGMENT_POLL_S, deadline - time.monotonic())
        if timeout <= 0:
            return
        sources = [wakeups] if deadline is not None else [wakeups, 0]
        ready, _, _ = select.select(sources, [], [], timeout)
        asked = 0 in ready
        if wakeups in ready:
            asked = any(number in _STOP_SIGNALS for number in os.read(wakeups, 512)) or asked
        if asked and deadline is None:
            _ask_to_stop(server, spec)
            deadline = time.monotonic() + float(spec["stop_timeout_s"])


def _ask_to_stop(server: int, spec: dict[str, Any]) -> None:
    if not spec["stop_input"]:
        os.kill(server, signal.SIGTERM)
        return
    reader, writer = os.pipe()
    os.write(writer, spec["stop_input"].encode())
    os.close(writer)
    _spawn(spec, spec["command"][:1], reader)


def kill_group(leader: int) -> None:
    """Kill a process and its group; a group that has ended is left alone."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _kill_children() -> None:
    """Kill orphans that have left the server's group; they are children of this process."""
    with contextlib.suppress(OSError):
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii").split():
            os.kill(int(pid), signal.SIGKILL)


def _reap(server: int) -> int:
    """Collect the server and every orphan it left; returns the server's exit status."""
    status = 1
    deadline = time.monotonic() + _REAP_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == server:
            code = os.waitstatus_to_exitcode(raw)
            status = code if code >= 0 else 128 - code
        elif pid == 0:
            _kill_children()
            time.sleep(0.01)
    return status


def _read_line(descriptor: int) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return b""
        data += chunk
    return data


def _launcher_is_gone() -> bool:
    ready, _, _ = select.select([0], [], [], 0)
    return bool(ready)


if __name__ == "__main__":
    sys.exit(main())
