# SPDX-License-Identifier: Apache-2.0
"""The registry of actions, and what an action gets and returns.

An action is a function `run(spec, context) -> ActionResult` in a module of this package, imported on demand. It raises
an `OcdserveError` that names the remedy; `run_action` writes the first and last line of the status, the experiment file
and the exit code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module
from pathlib import Path

from ocdserve.builder.progress import Progress
from ocdserve.builder.tao.spec import EXPERIMENT, MANDATORY, Spec, SpecError
from ocdserve.builder.tao.status import StatusLog


@dataclass(frozen=True)
class Context:
    """What an action works with, apart from its spec.

    Attributes:
        results_dir: Folder of its results; it exists and equals `spec.results_dir`.
        status: For status lines between the first and the last.
        progress: Shows the progress of the work.
        say: Prints a line for the user (standard output).
        warn: Prints a warning (standard error).
    """

    results_dir: Path
    status: StatusLog
    progress: Progress
    say: Callable[[str], None]
    warn: Callable[[str], None]


@dataclass(frozen=True)
class ActionResult:
    """What an action has done.

    Attributes:
        message: One sentence.
        kpi: Figures for the last line of the status, numbers as numbers.
    """

    message: str
    kpi: Mapping[str, float | int | str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Action:
    """One row of the registry.

    Attributes:
        name: What the user types.
        module: Module of this package with `run`.
        mandatory: Dotted keys without which it cannot start.
        help: One line.
        needs_file: Whether a spec file must be given.
    """

    name: str
    module: str
    mandatory: tuple[str, ...]
    help: str
    needs_file: bool = True

    def run(self, spec: Spec, context: Context) -> ActionResult:
        """Import the action and run it."""
        module = import_module(f"ocdserve.builder.tao.{self.module}")
        result: ActionResult = module.run(spec, context)
        return result

    def check_mandatory(self, spec: Spec) -> None:
        """Raise SpecError if a mandatory key has no value."""
        missing = [key for key in self.mandatory if not is_given(reduce(getattr, key.split("."), spec))]
        if missing:
            raise SpecError(
                f"{self.name} needs {' and '.join(missing)}; set {'it' if len(missing) == 1 else 'them'} in the spec "
                f"or on the command line, for example {missing[0]}=..."
            )


ACTIONS = {
    action.name: action
    for action in (
        Action(
            "gen_trt_engine",
            "engine.gen_trt_engine",
            ("gen_trt_engine.onnx_file", "gen_trt_engine.trt_engine"),
            "build an engine (or a quantised ONNX) from an exported ONNX",
        ),
        Action(
            "evaluate",
            "evaluate.evaluate",
            ("evaluate.trt_engine", "dataset.validate_dataset.data_path"),
            "measure precision, recall and hmean of an engine, ONNX or bundle",
        ),
        Action(
            "inference",
            "infer.inference",
            ("inference.trt_engine", "inference.input_folder"),
            "find the text in the images of a folder",
        ),
        Action(
            "default_specs",
            "actions",
            (),
            "write experiment.yaml with all keys and their defaults",
            needs_file=False,
        ),
    )
}


def run(spec: Spec, context: Context) -> ActionResult:
    """The action `default_specs`: names the experiment file, which is written before every action."""
    return ActionResult(f"wrote all keys with their defaults to {context.results_dir / EXPERIMENT}")


def is_given(value: object) -> bool:
    """Whether a text or list has a value: neither empty nor `???`."""
    return value not in ("", MANDATORY, (), None)
