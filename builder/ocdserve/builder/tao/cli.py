# SPDX-License-Identifier: Apache-2.0
"""The `ocdnet` command, as TAO Deploy spells it.

    ocdnet gen_trt_engine -e spec.yaml [dotted.key=value ...]
    ocdnet evaluate       -e spec.yaml [dotted.key=value ...]
    ocdnet inference      -e spec.yaml [dotted.key=value ...]
    ocdnet default_specs  results_dir=DIR
    ocdnet schema ACTION

Exit codes: 0 done, 1 failed, 130 interrupted (the last line of status.json is a FAILURE then).
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ocdserve.builder.progress import SILENT, Progress, TerminalProgress
from ocdserve.builder.tao.actions import ACTIONS, Action, ActionResult, Context
from ocdserve.builder.tao.results import results_dir, results_dir_of, with_results_dir
from ocdserve.builder.tao.spec import Spec, SpecError, load_spec, read_spec_file, write_experiment
from ocdserve.builder.tao.status import StatusLog
from ocdserve.contract import OcdserveError

_DONE, _FAILED, _INTERRUPTED = 0, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="ocdnet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=list(ACTIONS))
    parser.add_argument("-e", "--experiment_spec_file", metavar="FILE", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(arguments)
    action = ACTIONS[args.action]
    if args.experiment_spec_file is None:
        print(f"ocdnet {action.name}: name the spec file: ocdnet {action.name} -e spec.yaml", file=sys.stderr)
        return _FAILED
    code = run_action(action, args.experiment_spec_file, args.overrides)
    print(f"Execution status: {'PASS' if code == _DONE else 'FAIL'}")
    return code


def run_action(action: Action, file: Path, overrides: Sequence[str], progress: Progress | None = None) -> int:
    """Load the spec, run the action, leave experiment.yaml and status.json; returns the exit code."""
    status: StatusLog | None = None
    try:
        values, _ = read_spec_file(file, overrides)
        known = results_dir_of(values, action.name)
        if known is not None:
            status = _started(known, action)
        loaded = load_spec(file, overrides)
        folder = results_dir(loaded.spec, action.name)
        status = status or _started(folder, action)
        spec = with_results_dir(loaded.spec, folder)
        for note in loaded.notes:
            _warn(note)
        result = _run(action, spec, status, folder, progress or TerminalProgress(sys.stderr))
    except KeyboardInterrupt:
        return _failed(status, action, "interrupted", _INTERRUPTED)
    except OcdserveError as error:
        print(f"ocdnet {action.name}: {error}", file=sys.stderr)
        return _failed(status, action, str(error), _FAILED)
    except BaseException as error:
        traceback.print_exc()
        return _failed(status, action, f"{type(error).__name__}: {error}", _FAILED)
    status.write("RUNNING", f"{action.title} finished successfully.")
    status.write("SUCCESS", result.message, kpi=result.kpi)
    print(result.message)
    return _DONE


def _run(action: Action, spec: Spec, status: StatusLog, folder: Path, progress: Progress) -> ActionResult:
    action.check_mandatory(spec)
    write_experiment(spec, folder)
    return action.run(spec, Context(action.name, folder, status, progress, print, _warn))


def _started(folder: Path, action: Action) -> StatusLog:
    try:
        status = StatusLog(folder)
        status.write("STARTED", f"Starting OCDNet {action.name}.")
    except OSError as error:
        raise SpecError(f"the folder {str(folder)!r} for the results cannot be written: {error.strerror}") from error
    return status


def _failed(status: StatusLog | None, action: Action, message: str, code: int) -> int:
    if status is not None:
        status.write("FAILURE", message, verbosity="ERROR")
    return code


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


__all__ = ["SILENT", "main", "run_action"]
