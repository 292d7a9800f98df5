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
from typing import Any, Literal

from ocdserve.builder.progress import Progress
from ocdserve.builder.tao.spec import EXPERIMENT, MANDATORY, Spec, SpecError, plain
from ocdserve.builder.tao.status import StatusLog
from ocdserve.builder.train.prerequisites import check_prerequisites, warn_of_unused_cuda


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
        module: Module of this package that holds it.
        mandatory: Dotted keys without which it cannot start.
        help: One line.
        needs_file: Whether a spec file must be given.
        section: Section of the spec whose `results_dir` is its own; empty: the action's name.
        folder: Its folder below the spec's `results_dir`; empty: that folder itself.
        image: TAO's image that has it, which decides the status messages.
        function: Its name in the module.
        of_checkpoint: The row that takes its place where the spec has a checkpoint and no engine.
    """

    name: str
    module: str
    mandatory: tuple[str, ...]
    help: str
    needs_file: bool = True
    section: str = ""
    folder: str = ""
    image: Literal["deploy", "training"] = "deploy"
    function: str = "run"
    of_checkpoint: "Action | None" = None

    def run(self, spec: Spec, context: Context) -> ActionResult:
        """Import the action and run it.

        Raises:
            UnavailableError: A package of the extra `train` is missing.
        """
        row = self.chosen(plain(spec))
        try:
            function = getattr(import_module(f"ocdserve.builder.tao.{row.module}"), row.function)
        except ModuleNotFoundError:
            if row.image == "training":
                check_prerequisites(context.warn)
            raise
        if row.image == "training":
            warn_of_unused_cuda(context.warn)
        result: ActionResult = function(spec, context)
        return result

    def chosen(self, values: Mapping[str, Any]) -> "Action":
        """Return the row for a spec, given as a mapping that need not be valid."""
        section = values.get(self.name)
        if self.of_checkpoint is None or not isinstance(section, Mapping) or is_given(section.get("trt_engine", "")):
            return self
        return self.of_checkpoint if is_given(section.get("checkpoint", "")) else self

    def check_mandatory(self, spec: Spec) -> None:
        """Raise SpecError if a mandatory key has no value."""
        row = self.chosen(plain(spec))
        missing = [key for key in row.mandatory if not is_given(reduce(getattr, key.split("."), spec))]
        if missing:
            either = f"{self.name}.trt_engine" if self.of_checkpoint else ""
            named = [f"{key} or {self.name}.checkpoint" if key == either else key for key in missing]
            raise SpecError(
                f"{self.name} needs {' and '.join(named)}; set {'it' if len(missing) == 1 else 'them'} in the spec "
                f"or on the command line, for example {missing[0]}=..."
            )

    @property
    def started(self) -> str:
        """TAO's first message of the status."""
        if self.image == "training":
            return f"Starting OCDNet {self.folder}."
        return f"Starting ocdnet {self.folder or self.name}."

    @property
    def finished(self) -> str:
        """TAO's last message of the status."""
        return f"{(self.folder or self.name).capitalize()} finished successfully."


_DATA = ("dataset.train_dataset.data_path", "dataset.validate_dataset.data_path")

ACTIONS = {
    action.name: action
    for action in (
        Action(
            "gen_trt_engine",
            "engine.gen_trt_engine",
            ("gen_trt_engine.onnx_file", "gen_trt_engine.trt_engine"),
            "build an engine (or a quantised ONNX) from an exported ONNX",
            folder="gen_trt_engine",
        ),
        Action(
            "evaluate",
            "evaluate.evaluate",
            ("evaluate.trt_engine", _DATA[1]),
            "measure precision, recall and hmean of an engine, ONNX, bundle or checkpoint",
            folder="trt_evaluate",
            of_checkpoint=Action(
                "evaluate",
                "training.checkpoint",
                ("evaluate.checkpoint", _DATA[1]),
                "measure precision, recall and hmean of a checkpoint",
                folder="evaluate",
                image="training",
                function="run_evaluate",
            ),
        ),
        Action(
            "inference",
            "infer.inference",
            ("inference.trt_engine", "inference.input_folder"),
            "find the text in the images of a folder",
            folder="trt_inference",
            of_checkpoint=Action(
                "inference",
                "training.checkpoint",
                ("inference.checkpoint", "inference.input_folder"),
                "find the text in the images of a folder with a checkpoint",
                folder="inference",
                image="training",
                function="run_inference",
            ),
        ),
        Action(
            "default_specs",
            "actions",
            (),
            "write experiment.yaml with all keys and their defaults",
            needs_file=False,
        ),
        Action(
            "train",
            "training.train",
            _DATA,
            "train a network",
            folder="train",
            image="training",
        ),
        Action(
            "retrain",
            "training.train",
            (*_DATA, "model.pruned_graph_path"),
            "train a pruned network: train with model.load_pruned_graph=true",
            section="train",
            folder="train",
            image="training",
        ),
        Action(
            "export",
            "training.export",
            ("export.checkpoint",),
            "convert a checkpoint to ONNX",
            folder="export",
            image="training",
        ),
        Action(
            "prune",
            "training.prune",
            ("prune.checkpoint",),
            "remove channels from a checkpoint",
            folder="prune",
            image="training",
        ),
        Action(
            "quantize",
            "training.quantize",
            ("quantize.model_path",),
            "quantise a checkpoint or an ONNX file",
            folder="quantize",
            image="training",
        ),
        Action(
            "automl",
            "training.automl",
            _DATA,
            "search the learning rate and the weight decay by training",
            folder="automl",
            image="training",
        ),
    )
}


def run(spec: Spec, context: Context) -> ActionResult:
    """The action `default_specs`: names the experiment file, which is written before every action."""
    return ActionResult(f"wrote all keys with their defaults to {context.results_dir / EXPERIMENT}")


def is_given(value: object) -> bool:
    """Whether a text or list has a value: neither empty nor `???`."""
    return value not in ("", MANDATORY, (), None)
