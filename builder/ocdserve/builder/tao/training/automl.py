# SPDX-License-Identifier: Apache-2.0
"""The action `automl`: train several times with other learning rates and weight decays, and keep the best.

The first trial has the spec's own values, so the result is not worse than these. Then a Tree-structured Parzen
Estimator (Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011) proposes the values, and a
trial whose training loss is above the median of the others at the same epoch is stopped. The state of the search is in
the result folder: run again, it goes on where it was interrupted, with the proposals of a search that was not.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.engine import URL

from ocdserve.builder.tao.actions import ActionResult, Context
from ocdserve.builder.tao.spec import Spec, SpecError, plain, write_experiment
from ocdserve.builder.tao.status import StatusLog
from ocdserve.builder.tao.training.automl_report import BEST_SPEC, Outcome, write_report
from ocdserve.builder.tao.training.automl_space import Parameter, space, with_values
from ocdserve.builder.tao.training.train import run as run_train
from ocdserve.builder.tao.training.train import train
from ocdserve.contract import OcdserveError

STUDY_FILE = "study.db"
# Trials by chance, the default included, before the estimator proposes and the median stops.
_STARTUP_TRIALS = 3
# Keys that may change between an interrupted search and its continuation.
_NOT_COMPARED = ("automl_trials", "automl_timeout_s")


class _StoppedError(Exception):
    """The trial is not worth its remaining epochs."""


@dataclass(frozen=True)
class _Search:
    """A search: its study, what it varies, and the spec of its trials."""

    study: Any
    parameters: tuple[Parameter, ...]
    spec: Spec
    context: Context

    @property
    def metric(self) -> str:
        """Name of the figure among those of an epoch."""
        return "hmean" if self.spec.ocdserve.automl_metric == "hmean" else "train_loss"

    @property
    def done(self) -> list[Any]:
        """Trials that have ended, in order."""
        return [trial for trial in self.study.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]

    @property
    def best(self) -> Any:
        """The best trial that was trained to its end; None if there is none yet."""
        with suppress(ValueError):
            return self.study.best_trial
        return None

    def folder(self, trial: Any) -> Path:
        """The result folder of a trial."""
        return self.context.results_dir / "trials" / f"{trial.user_attrs['trial']:03d}"


def run(spec: Spec, context: Context) -> ActionResult:
    """Search, and write `report.json`, `trials.png` and the best spec.

    Raises:
        SpecError: A key cannot be varied, or the folder holds the search of another spec.
        OcdserveError: No trial could be trained to its end.
    """
    options = spec.ocdserve
    if options.automl_policy == "off":
        return run_train(spec, context)
    parameters, trial_spec = space(spec), _trial_spec(spec, context)
    began = time.monotonic()
    with _study(trial_spec, context) as study:
        search = _Search(study, parameters, trial_spec, context)
        with context.progress.task("AutoML", options.automl_trials) as task:
            task.advance(len(search.done))
            while len(search.done) < options.automl_trials:
                if options.automl_timeout_s and time.monotonic() - began > options.automl_timeout_s:
                    context.warn(
                        f"no further trial begins: ocdserve.automl_timeout_s={options.automl_timeout_s} is over"
                    )
                    break
                _run_trial(search)
                task.advance()
        return _conclude(search, spec)


def _trial_spec(spec: Spec, context: Context) -> Spec:
    """The spec of a trial, but for the varied values and the result folder."""
    train = spec.train
    if train.num_gpus > 1 or train.num_nodes > 1:
        raise SpecError(
            f"a trial of automl trains in one process; got train.num_gpus={train.num_gpus} and train.num_nodes="
            f"{train.num_nodes}: set both to 1, and train the best spec on all GPUs"
        )
    if train.resume_training_checkpoint_path:
        raise SpecError("a trial of automl trains from the start: set train.resume_training_checkpoint_path to null")
    epochs = train.num_epochs
    scheduler = train.lr_scheduler
    if epochs == 1 and scheduler.args.warmup_epoch:
        context.warn("a trial of one epoch trains without warm-up: train.lr_scheduler.args.warmup_epoch=0")
        scheduler = replace(scheduler, args=replace(scheduler.args, warmup_epoch=0))
    train = replace(
        train,
        checkpoint_interval=epochs,
        checkpoint_interval_unit="epoch",
        validation_interval=epochs,
        lr_scheduler=scheduler,
    )
    return replace(spec, train=train)


@contextmanager
def _study(spec: Spec, context: Context) -> Iterator[Any]:
    """Open the study in the result folder, or begin it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = context.results_dir / STUDY_FILE
    options = spec.ocdserve
    storage = optuna.storages.RDBStorage(str(URL.create("sqlite", database=str(path.resolve()))))
    try:
        study = optuna.create_study(
            storage=storage,
            study_name="automl",
            direction="maximize" if options.automl_metric == "hmean" else "minimize",
            pruner=optuna.pruners.MedianPruner(_STARTUP_TRIALS, spec.train.lr_scheduler.args.warmup_epoch),
            load_if_exists=True,
        )
        subject = _subject(spec)
        if study.user_attrs.setdefault("subject", subject) != subject:
            raise SpecError(f"{path} is the search of another spec; choose another results_dir, or remove that folder")
        study.set_user_attr("subject", subject)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _subject(spec: Spec) -> str:
    """A digest of what the trials of a search have in common."""
    values = plain(spec)
    for section, names in (
        (values, ("results_dir",)),
        (values["train"], ("results_dir",)),
        (values["ocdserve"], _NOT_COMPARED),
    ):
        for name in names:
            del section[name]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _run_trial(search: _Search) -> None:
    number = len(search.done) + 1
    seed = search.spec.train.seed
    # A sampler forgets its random state when the process ends: seeded by the number of the trial, it proposes the same
    # after an interruption.
    search.study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=_STARTUP_TRIALS, seed=None if seed < 0 else (seed * 1_000_003 + number) % 2**32
    )
    if number == 1 and not search.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        search.study.enqueue_trial({one.key: one.start for one in search.parameters})
    trial = search.study.ask()
    values = {
        one.key: one.value(trial.suggest_float(one.key, one.low, one.high, log=True)) for one in search.parameters
    }
    trial.set_user_attr("trial", number)
    trial.set_user_attr("values", values)
    shown = ", ".join(f"{name}={value:g}" for name, value in values.items())
    search.context.status.write("RUNNING", f"Trial {number} of {search.spec.ocdserve.automl_trials}: {shown}")
    began = time.monotonic()
    figures, ended = _trained(search, trial, values)
    trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
    trial.set_user_attr("ended", ended)
    if ended == "finished":
        search.study.tell(trial, figures[search.metric])
    else:
        search.study.tell(trial, state=TrialState.PRUNED)
    _keep_only_the_best(search)
    best = "" if search.best is None else f"; best: {search.best.value:.6g} of trial {search.best.user_attrs['trial']}"
    search.context.status.write(
        "RUNNING",
        f"Trial {number} {ended}: {search.metric} {figures.get(search.metric, math.nan):.6g}{best}",
        kpi=figures,
    )


def _trained(search: _Search, trial: Any, values: Mapping[str, float]) -> tuple[dict[str, float], str]:
    """Train; returns the figures of the last epoch, and how the trial ended."""
    folder = search.folder(trial)
    shutil.rmtree(folder, ignore_errors=True)
    spec = replace(with_values(search.spec, values), results_dir=str(folder))
    status = StatusLog(folder)
    write_experiment(spec, folder)
    figures: dict[str, float] = {}

    def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
        figures.update(metrics)
        loss = metrics["train_loss"]
        if not math.isfinite(loss):
            raise _StoppedError("diverged")
        # hmean is only known after the last epoch: a search for it stops trials by their loss too.
        trial.report(-loss if search.metric == "hmean" else loss, epoch)
        if epoch + 1 < spec.train.num_epochs and trial.should_prune():
            raise _StoppedError("stopped")

    try:
        train(spec, replace(search.context, results_dir=folder, status=status), on_epoch)
    except _StoppedError as stop:
        return figures, str(stop)
    if search.metric not in figures:
        raise OcdserveError(f"trial {folder.name} has no {search.metric}: see {status.path}")
    return figures, "finished"


def _keep_only_the_best(search: _Search) -> None:
    """Remove the checkpoints of all other trials: each is as large as the network and its optimizer."""
    for trial in search.done:
        if search.best is None or trial.number != search.best.number:
            for path in search.folder(trial).glob("*.pth"):
                path.unlink()


def _conclude(search: _Search, spec: Spec) -> ActionResult:
    best = search.best
    if best is None:
        raise OcdserveError(
            f"none of {len(search.done)} trials was trained to its end: their losses are infinite; lower "
            "train.optimizer.args.lr"
        )
    values: dict[str, float] = best.user_attrs["values"]
    outcome = Outcome(search.metric, spec.train.seed, search.parameters, tuple(search.done), best, search.folder(best))
    write_report(outcome, with_values(spec, values), search.context.results_dir)
    shown = " ".join(f"{name}={value:g}" for name, value in values.items())
    number = best.user_attrs["trial"]
    return ActionResult(
        f"trial {number} of {len(search.done)} is the best, {search.metric} {best.value:.6g}: {shown}; train with "
        f"{search.context.results_dir / BEST_SPEC}",
        {search.metric: best.value, "trial": number, **values},
    )
