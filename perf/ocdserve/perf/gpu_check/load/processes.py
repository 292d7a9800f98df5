# SPDX-License-Identifier: Apache-2.0
"""JPEG to quads in several processes on one GPU, which take turns on it, or share it by CUDA's MPS.

All processes are started and warm before the first load, in which one, then two and so on take part.
`python -m ocdserve.perf.gpu_check.load.processes BUNDLE [DATA]` is one of them: it writes `ready`, and for each line
with a number of seconds how many images per second it detected.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from ocdserve.backend import Bundle
from ocdserve.backend.serve.process.mps import MpsDaemon
from ocdserve.contract import UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext, Values
from ocdserve.perf.gpu_check.load.in_process import SECTION, call_of, load_s, name_of, open_detector
from ocdserve.perf.gpu_check.maps import drawn_photograph
from ocdserve.perf.inputs.data_sets import photographs
from ocdserve.perf.inputs.image_sets import PHOTOGRAPHS
from ocdserve.perf.load.drivers.sdk import closed_loop

_MODULE = "ocdserve.perf.gpu_check.load.processes"
_CALLERS = 32
_READY = "ready"
# Of an answer, beyond the seconds of the load.
_PATIENCE_S = 10.0
_STOP_S = 5.0
_ERROR_CHARACTERS = 300


def measure_processes(context: CheckContext, bundle: Bundle, command: Sequence[str] | None = None) -> None:
    """Measure all numbers of processes in turns, then by MPS if it is installed.

    Args:
        context: The part.
        bundle: The detector.
        command: Starts one process; None: this module.
    """
    data = [str(context.files.data)] if context.files.data else []
    command = command or [sys.executable, "-m", _MODULE, str(bundle.model_path.parent), *data]
    for sharing in ("taking turns", "by MPS"):
        what = f"{name_of(bundle)}, several processes {sharing}"
        context.checkpoint(what)
        try:
            with _environment(sharing) as environment:
                _measure(context, name_of(bundle), sharing, command, environment)
        except UnavailableError as error:
            context.absent(what, error)


def _measure(
    context: CheckContext, name: str, sharing: str, command: Sequence[str], environment: Mapping[str, str]
) -> None:
    numbers = context.effort.processes
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_Process(command, environment)) for _ in range(max(numbers))]
        for process in processes:
            process.expect(_READY, context.deadline.left_s / 2)
        for number in numbers:
            context.checkpoint(f"{name}, {number} processes {sharing}")
            seconds = load_s(context)
            for process in processes[:number]:
                process.tell(f"{seconds}")
            rates = [float(process.expect("", seconds + _PATIENCE_S)) for process in processes[:number]]
            factors: Values = {"processes": number, "GPU": sharing, "concurrency": number * _CALLERS, "batch": 1}
            context.add(name, PHOTOGRAPHS, "images/s", [sum(rates)], factors, section=SECTION)


@contextlib.contextmanager
def _environment(sharing: str) -> Iterator[Mapping[str, str]]:
    """The environment of the processes, for as long as they run."""
    if sharing == "taking turns":
        yield os.environ
        return
    with tempfile.TemporaryDirectory(prefix="ocdserve-mps-") as folder:
        daemon = MpsDaemon(Path(folder) / "mps", os.environ, f"ocdserve-check-{os.getpid()}")
        daemon.start()
        try:
            yield {**os.environ, **daemon.environment}
        finally:
            daemon.stop()


class _Process:
    """One process, ended with the `with` block."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by __exit__
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()

    def tell(self, line: str) -> None:
        """Write a line to it.

        Raises:
            UnavailableError: It has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failure() from error

    def expect(self, text: str, seconds: float) -> str:
        """The next line that it writes, without its end.

        Raises:
            UnavailableError: It is another one, or does not come in time.
        """
        assert self._process.stdout is not None
        timer = threading.Timer(max(seconds, 1.0), self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline().strip()
        finally:
            timer.cancel()
        if not line or text not in line:
            raise self._failure()
        return line

    def _failure(self) -> UnavailableError:
        self._process.kill()
        code = self._process.wait()
        self._errors.seek(0)
        said = " / ".join(self._errors.read()[-_ERROR_CHARACTERS:].split("\n")).strip(" /")
        return UnavailableError(f"a process ended with status {code} or was too slow: {said or 'it wrote nothing'}")


def answer(call: Callable[[int], object], lines: Iterator[str], output: IO[str]) -> None:
    """Answer lines with numbers of seconds by images per second, until there are no more."""
    for line in lines:
        seconds = float(line)
        count = len(closed_loop(call, _CALLERS, None, seconds, stop_on_error=True))
        output.write(f"{count / seconds}\n")
        output.flush()


def main(arguments: Sequence[str]) -> None:
    """Be one process."""
    from ocdserve.backend.device.cuda import open_device

    bundle, *data = arguments
    images = [encoded for _, encoded in photographs(Path(data[0]) if data else None)] or [drawn_photograph()]
    with open_detector(Bundle.load(bundle), open_device()) as detector:
        call = call_of(detector, images, 1)
        closed_loop(call, _CALLERS, 2 * _CALLERS, stop_on_error=True)
        sys.stdout.write(f"{_READY}\n")
        sys.stdout.flush()
        answer(call, sys.stdin, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
