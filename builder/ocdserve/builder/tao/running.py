# SPDX-License-Identifier: Apache-2.0
"""Running an action: spec, experiment.yaml, status.json and the exit code, whatever happens in between."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ocdserve.builder.progress import Progress, TerminalProgress
from ocdserve.builder.tao.actions import Action, ActionResult, Context
from ocdserve.builder.tao.results import results_dir, results_dir_of, with_results_dir
from ocdserve.builder.tao.spec import Spec, SpecError, load_spec, read_spec_file, write_experiment
from ocdserve.builder.tao.status import StatusLog
from ocdserve.contract import OcdserveError

DONE, FAILED, INTERRUPTED, TERMINATED = 0, 1, 130, 143


class _Terminated(BaseException):
    """The process was asked to end, as containers are when they are stopped."""


def run_action(action: Action, file: Path | None, overrides: Sequence[str], progress: Progress | None = None) -> int:
    """Load the spec and run the action; nothing is raised.

    The status begins as soon as the result folder is known, also where the rest of the spec turns out to be wrong, and
    ends with SUCCESS or FAILURE in every case that leaves the process alive for it.

    Returns:
        The exit code.
    """
    status: StatusLog | None = None
    try:
        with _terminations():
            known = _results_dir_early(file, overrides, action)
            status = None if known is None else _started(known, action)
            loaded = load_spec(file, overrides)
            folder = results_dir(loaded.spec, action.name)
            status = status or _started(folder, action)
            for note in loaded.notes:
                _warn(note)
            spec = with_results_dir(loaded.spec, folder)
            result = _run(action, spec, status, folder, progress or TerminalProgress(sys.stderr))
            # TAO's last line, for watchers that wait for it; then ours.
            status.write("RUNNING", f"{action.title} finished successfully.")
            status.write("SUCCESS", result.message, kpi=result.kpi)
            _say(result.message)
            return DONE
    except KeyboardInterrupt:
        return _failed(status, "interrupted by the user", INTERRUPTED)
    except _Terminated:
        return _failed(status, "terminated by a signal", TERMINATED)
    except OcdserveError as error:
        sys.stderr.write(f"ocdnet {action.name}: {error}\n")
        return _failed(status, str(error), FAILED)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None:
            # A full disk or a file that cannot be written says enough by itself.
            sys.stderr.write(f"ocdnet {action.name}: {error}\n")
        else:
            traceback.print_exc()
        return _failed(status, f"{type(error).__name__}: {error}", FAILED)


def _run(action: Action, spec: Spec, status: StatusLog, folder: Path, progress: Progress) -> ActionResult:
    action.check_mandatory(spec)
    write_experiment(spec, folder)
    return action.run(spec, Context(folder, status, progress, _say, _warn))


def _results_dir_early(file: Path | None, overrides: Sequence[str], action: Action) -> Path | None:
    """The result folder from what of the spec can be read; None where that does not tell it."""
    for source in (file, None):
        try:
            return results_dir_of(read_spec_file(source, overrides)[0], action.name)
        except SpecError:
            continue
    return None


def _started(folder: Path, action: Action) -> StatusLog:
    try:
        status = StatusLog(folder)
        status.write("STARTED", f"Starting OCDNet {action.name}.")
    except OSError as error:
        raise SpecError(f"the folder {str(folder)!r} for the results cannot be written: {error.strerror}") from error
    return status


def _failed(status: StatusLog | None, message: str, code: int) -> int:
    if status is not None:
        try:
            status.write("FAILURE", message, verbosity="ERROR")
        except OSError as error:
            sys.stderr.write(f"the failure could not be written to {status.path}: {error}\n")
    return code


@contextmanager
def _terminations() -> Iterator[None]:
    """SIGTERM as an exception, so that drafts are removed and the status gets its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(message: str) -> None:
    try:
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Its reader has gone, and the work goes on; without this, Python complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _warn(message: str) -> None:
    sys.stderr.write(f"warning: {message}\n")
