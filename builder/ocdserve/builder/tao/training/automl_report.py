# SPDX-License-Identifier: Apache-2.0
"""Result files of a search: report.json, a plot of the trials, and the best spec."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ocdserve.backend.files import write_atomically
from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.tao.spec.write import spec_yaml
from ocdserve.builder.tao.training.automl_space import Parameter

REPORT_FILE, PLOT_FILE, BEST_SPEC = "report.json", "trials.png", "best_spec.yaml"
_COLOURS = {"finished": "tab:blue", "stopped": "tab:gray", "diverged": "tab:red"}


@dataclass(frozen=True)
class Outcome:
    """A finished search.

    Attributes:
        metric: What was searched for: `train_loss`, minimised, or `hmean`, maximised.
        seed: Seed of the training and of the proposals.
        parameters: What was varied.
        trials: All trials, in order, as Optuna's frozen trials.
        best: One of them.
        folder: Result folder of the best.
    """

    metric: str
    seed: int
    parameters: tuple[Parameter, ...]
    trials: tuple[Any, ...]
    best: Any
    folder: Path

    def report(self) -> dict[str, Any]:
        """Content of report.json."""
        sign = -1 if self.metric == "hmean" else 1
        return {
            "metric": self.metric,
            "direction": "maximize" if self.metric == "hmean" else "minimize",
            "seed": self.seed,
            "bounds": [asdict(one) for one in self.parameters],
            "note": "bounds from ocdserve are ours, where TAO's schema has none",
            "best": {
                "trial": self.best.user_attrs["trial"],
                self.metric: self.best.value,
                "overrides": self.best.user_attrs["values"],
                "folder": str(self.folder),
            },
            "trials": [
                {
                    "trial": one.user_attrs["trial"],
                    "values": one.user_attrs["values"],
                    "ended": one.user_attrs["ended"],
                    self.metric: one.value if one.user_attrs["ended"] == "finished" else None,
                    "train_loss_by_epoch": [sign * loss for _, loss in sorted(one.intermediate_values.items())],
                    "seconds": one.user_attrs["seconds"],
                }
                for one in self.trials
            ],
        }


def write_report(outcome: Outcome, best_spec: Spec, folder: Path) -> None:
    """Write the three files.

    Args:
        outcome: The search.
        best_spec: The user's spec with the best values.
        folder: Folder to write to.
    """
    write_atomically(folder / BEST_SPEC, spec_yaml(best_spec).encode())
    write_atomically(folder / REPORT_FILE, f"{json.dumps(outcome.report(), indent=2)}\n".encode())
    _plot(outcome, folder / PLOT_FILE)


def _plot(outcome: Outcome, path: Path) -> None:
    """Draw the figure of every trial against its number and against each parameter.

    A trial that was stopped has that of its last epoch; where that is not known, as with hmean, it is left out.
    """
    from matplotlib.figure import Figure

    points = [(one, height) for one in outcome.trials if (height := _height(outcome, one)) is not None]
    heights = [height for _, height in points]
    colours = [_COLOURS[one.user_attrs["ended"]] for one, _ in points]
    figure = Figure(figsize=(4.5 * (1 + len(outcome.parameters)), 4), layout="constrained")
    axes = figure.subplots(1, 1 + len(outcome.parameters), sharey=True)
    axes[0].scatter([one.user_attrs["trial"] for one, _ in points], heights, color=colours)
    axes[0].set(xlabel="trial", ylabel=outcome.metric)
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    for parameter, column in zip(outcome.parameters, axes[1:], strict=True):
        places = [max(one.user_attrs["values"][parameter.key], parameter.low) for one, _ in points]
        column.scatter(places, heights, color=colours)
        column.set(xlabel=parameter.key, xscale="log", xlim=(parameter.low / 2, parameter.high * 2))
    figure.suptitle(f"{outcome.metric} of {len(outcome.trials)} trials (grey: stopped early)")
    figure.savefig(path, dpi=120)


def _height(outcome: Outcome, trial: Any) -> float | None:
    if trial.user_attrs["ended"] == "finished":
        return float(trial.value)
    losses = trial.intermediate_values
    return float(losses[max(losses)]) if losses and outcome.metric == "train_loss" else None
