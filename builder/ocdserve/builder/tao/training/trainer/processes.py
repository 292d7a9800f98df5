# SPDX-License-Identifier: Apache-2.0
"""Run a function in one process for each device, with the environment by which Lightning joins them."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from ocdserve.contract import OcdserveError

_T = TypeVar("_T")

# How long the first process may take to write its checkpoint after it was asked to stop.
_STOP_S = 120.0


def run_in_processes(function: Callable[[], _T], count: int) -> _T:
    """Run a function, which is pickled, in `count` new processes of this machine and return what the first one returns.

    SIGINT and SIGTERM reach the first process only, which may end its work; the others are killed when it has ended.

    Raises:
        OcdserveError: A process failed, for any reason.
    """
    context = multiprocessing.get_context("spawn")
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared = {name: os.environ.get(name, value) for name, value in environment.items()}
    ends = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_child, args=(function, {**shared, "LOCAL_RANK": str(rank)}, end))
        for rank, (_, end) in enumerate(ends)
    ]
    try:
        for process, (_, end) in zip(processes, ends, strict=True):
            process.start()
            end.close()
        return _result([end for end, _ in ends])
    except BaseException:
        _stop(processes[0])
        raise
    finally:
        for process in processes:
            if process.pid is not None:  # started
                process.kill()
                process.join()


def _result(ends: list[Connection]) -> Any:
    """The first process's result; raises as soon as any process fails."""
    running = dict(enumerate(ends))
    while running:
        ready = wait(list(running.values()))
        for rank, end in [(rank, end) for rank, end in running.items() if end in ready]:
            try:
                kind, value = end.recv()
            except EOFError:
                kind, value = "failed", f"process {rank} of the training ended without a result"
            if kind != "done":
                raise OcdserveError(value)
            if rank == 0:
                return value
            del running[rank]
    raise OcdserveError("the first process of the training ended without a result")


def _stop(first: Any) -> None:
    if first.is_alive():
        os.kill(first.pid, signal.SIGTERM)
        first.join(_STOP_S)


def _child(function: Callable[[], Any], environment: dict[str, str], end: Any) -> None:
    os.environ.update(environment)
    rank = int(environment["LOCAL_RANK"])
    # A terminal sends SIGINT to all: the parent passes it on to the first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if rank:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    else:
        signal.signal(signal.SIGTERM, _raise)
    try:
        end.send(("done", function()))
    except OcdserveError as error:
        end.send(("failed", str(error)))
    except BaseException as error:
        end.send(("failed", f"process {rank} of the training: {type(error).__name__}: {error}"))


def _raise(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
