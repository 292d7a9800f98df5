# SPDX-License-Identifier: Apache-2.0
"""Run an action: spec, result folder, experiment.yaml, status.json and the exit code, whatever fails in between."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ocdserve.builder.progress import Progress, TerminalProgress
from ocdserve.builder.tao.actions import Action, Context, is_given
from ocdserve.builder.tao.inputs.dataset import check_data
from ocdserve.builder.tao.spec import Spec, SpecError, load_spec, plain, read_spec_file, write_experiment
from ocdserve.builder.tao.status import StatusLog
from ocdserve.contract import OcdserveError

DONE, FAILED, INTERRUPTED, TERMINATED = 0, 1, 130, 143


class _Terminated(BaseException):
    """SIGTERM arrived, as when a container is stopped."""


def run_action(action: Action, file: Path | None, overrides: Sequence[str], progress: Progress | None = None) -> int:
    """Load the spec and run the action; nothing is raised.

    The status begins as soon as the result folder is known, even if the rest of the spec is invalid, and ends with
    SUCCESS or FAILURE unless the process is killed.

    Returns:
        The exit code.
    """
    status: StatusLog | None = None
    try:
        with _raise_on_sigterm():
            known = _early(file, overrides, action)
            status = None if known is None else _started(action, *known)
            loaded = load_spec(file, overrides)
            folder = results_dir(loaded.spec, action)
            status = status or _started(action, folder, plain(loaded.spec))
            for note in loaded.notes:
                warn(note)
            # Written back, as TAO does.
            spec = replace(_as_run(loaded.spec, action), results_dir=str(folder))
            action.check_mandatory(spec)
            row = action.chosen(plain(spec))
            if row.image == "training":
                check_data(spec.dataset)
            if status.is_written:
                write_experiment(spec, folder)
            progress = progress or TerminalProgress(sys.stderr)
            result = action.run(spec, Context(folder, status, progress, say, warn))
            # TAO's last line, which watchers wait for; then ours.
            status.write("RUNNING", row.finished)
            status.write("SUCCESS", result.message, kpi=result.kpi)
            say(result.message)
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
            # A full disk or a read-only file needs no traceback.
            sys.stderr.write(f"ocdnet {action.name}: {error}\n")
        else:
            traceback.print_exc()
        return _failed(status, f"{type(error).__name__}: {error}", FAILED)


def results_dir(spec: Spec, action: Action) -> Path:
    """Return the result folder of an action: `<action>.results_dir`, else the action's folder in `results_dir`.

    Raises:
        SpecError: Neither is set.
    """
    folder = _results_dir(plain(spec), action)
    if folder is None:
        section = action.section or action.name
        own = f"{section}.results_dir or " if hasattr(spec, section) else ""
        raise SpecError(f"no folder for the results: set {own}results_dir, for example results_dir=results")
    return folder


def _as_run(spec: Spec, action: Action) -> Spec:
    """The spec as the action reads it: retrain is train from a pruned network."""
    return replace(spec, model=replace(spec.model, load_pruned_graph=True)) if action.name == "retrain" else spec


def _results_dir(values: Mapping[str, Any], action: Action) -> Path | None:
    """The same for a mapping that need not be a valid spec; None where neither is set."""
    section = values.get(action.section or action.name)
    own = section.get("results_dir") if isinstance(section, Mapping) else None
    if isinstance(own, str) and is_given(own):
        return Path(own)
    parent = values.get("results_dir")
    return Path(parent) / action.chosen(values).folder if isinstance(parent, str) and is_given(parent) else None


def _early(file: Path | None, overrides: Sequence[str], action: Action) -> tuple[Path, Mapping[str, Any]] | None:
    """Result folder of the action, and as much of the spec as can be read; None where that sets no folder."""
    for source in (file, None):
        try:
            values = read_spec_file(source, overrides)[0]
        except SpecError:
            continue
        folder = _results_dir(values, action)
        return None if folder is None else (folder, values)
    return None


def _started(action: Action, folder: Path, values: Mapping[str, Any]) -> StatusLog:
    row = action.chosen(values)
    try:
        status = StatusLog(folder, row.image == "training", is_written=not _is_further_machine(action, values))
        status.write("STARTED", row.started)
    except OSError as error:
        raise SpecError(f"the folder {str(folder)!r} for the results cannot be written: {error.strerror}") from error
    return status


def _is_further_machine(action: Action, values: Mapping[str, Any]) -> bool:
    """Whether this is one of several machines that train together, and not the first: that one writes the files."""
    train = values.get("train")
    nodes = train.get("num_nodes") if isinstance(train, Mapping) else None
    trains = "train" in (action.name, action.section)
    return trains and isinstance(nodes, int) and nodes > 1 and os.environ.get("NODE_RANK", "0") != "0"


def _failed(status: StatusLog | None, message: str, code: int) -> int:
    if status is not None:
        try:
            status.write("FAILURE", message, verbosity="ERROR")
        except OSError as error:
            sys.stderr.write(f"the failure could not be written to {status.path}: {error}\n")
    return code


@contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that drafts are removed and the status gets its last line."""
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


def say(message: str) -> None:
    """Print a line for the user."""
    try:
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone, the work goes on; without this, Python reports the broken pipe again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(message: str) -> None:
    """Print a warning."""
    sys.stderr.write(f"warning: {message}\n")
