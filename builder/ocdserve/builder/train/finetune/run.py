# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a detector: gather pictures, train, judge, and write a bundle if it is better and has not forgotten."""

import copy
import hashlib
import json
from dataclasses import asdict, replace
from itertools import starmap
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from ocdserve.backend import Bundle
from ocdserve.backend.evaluation.figures import total
from ocdserve.backend.files import draft_folder, install_folder
from ocdserve.backend.network.protocols import Network
from ocdserve.builder.build import build
from ocdserve.builder.config import BuildConfig
from ocdserve.builder.graph.describe import Description, describe
from ocdserve.builder.progress import SILENT, Progress
from ocdserve.builder.state import GateError
from ocdserve.builder.train.distil import map_of, overlap
from ocdserve.builder.train.finetune.crops import read_picture
from ocdserve.builder.train.finetune.judge import (
    Tuned,
    above,
    best_threshold,
    compared,
    counts_of,
    detected,
    least_score,
    network_of,
)
from ocdserve.builder.train.finetune.material import Material, gathered, listed
from ocdserve.builder.train.finetune.options import FineTuneOptions, Schedule
from ocdserve.builder.train.finetune.report import html_report, origin_of, refusal
from ocdserve.builder.train.finetune.sources import CropBatches
from ocdserve.builder.train.finetune.training import has_bfloat16, train
from ocdserve.builder.train.graph_module import GraphModule, write_back
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections

_MODEL, _REPORT, _PAGE = "finetuned.onnx", "report.json", "report.html"
# Checks of the held-aside pictures in the second half of the training, and how many without progress end it.
_CHECKS, _PATIENCE = 5, 3
# Share of what an overlap of maps has gained that is lost by chance from state to state.
_SLACK = 0.1
# Shares of the way from the old weights to the new ones, tried in this order until the detector has not forgotten
# (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022).
_SHARES = (1.0, 0.7, 0.5, 0.35)


def finetune(options: FineTuneOptions, progress: Progress = SILENT) -> Bundle:
    """Fine-tune a detector and write its bundle; a failure or an interruption leaves nothing at `options.output`.

    Raises:
        InvalidInputError: The detector cannot be trained, or pictures or labels cannot be used; the message says why.
        GateError: The result is no better, or has forgotten too much; the message has the figures.
    """
    samples = listed(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    with draft_folder(options.output.absolute().parent, f".{options.output.name}-") as draft:
        bundle, description = opened(options)
        maps = Path(draft, "maps")
        original = network_of(description.model, description.spec, options.threads)
        material = gathered(options, samples, bundle, original, maps, progress)
        judge = _Judge(options, description, material, original)
        tuned = tuned_network(options, description, material, judge, progress)
        if not tuned.is_better() or tuned.forgets(options.most_lost):
            raise GateError(refusal(tuned, options))
        return _written(options, description, material, tuned, draft)


def opened(options: FineTuneOptions) -> tuple[Bundle, Description]:
    """The detector that is trained further, and its network in normal form.

    Raises:
        InvalidInputError: Its network is none that can be trained.
    """
    name = options.bundle
    if name is not None and str(name) not in Bundle.built_in and Path(name).is_file():
        description = describe(Path(name), options.preset)
        return Bundle(description.spec, Path(name)), description
    bundle = Bundle.load(name)
    spec = bundle.spec
    if options.preset is not None:
        raise InvalidInputError(f"preset: it describes an ONNX file; the bundle {name or 'default'} describes itself")
    is_exact = spec.precision in ("fp32", "bf16")  # the latter is a way to compute an FP32 network
    if not is_exact or spec.network.folded:
        kind = "folded" if is_exact else spec.precision
        raise InvalidInputError(
            f"bundle: the network of {name} is {kind}, which cannot be trained: give the FP32 bundle or the ONNX that "
            "it was built from, and build the result again"
        )
    description = describe(bundle.model_path, detector=spec, name=spec.name)
    return Bundle(description.spec, bundle.model_path), description


def tuned_network(
    options: FineTuneOptions, description: Description, material: Material, judge: "_Judge", progress: Progress
) -> Tuned:
    """Train, choose among the checked states, and judge."""
    spec, schedule = description.spec, options.schedule
    module = GraphModule(description.model)
    original = copy.deepcopy(module).eval()
    best = _Best(judge, schedule)
    size = _crop_size(schedule, description)
    batches = CropBatches(material, spec, schedule, size, options.seed)
    one_by_one = description.batch == 1
    train(module, batches, schedule, progress, check=best.check, one_by_one=one_by_one, bfloat16=has_bfloat16())
    tuned = None
    with progress.task("judging") as task:
        for share in _SHARES:
            candidate = judge.judged(write_back(_between(original, best.state, share)), share)
            tuned = tuned or candidate
            task.advance(note=f"gain {candidate.change.gain:+.2f} points")
            if not candidate.forgets(options.most_lost):
                return candidate if candidate.is_better() else tuned
    assert tuned is not None
    return tuned


class _Judge:
    """Judges networks on the held-aside pictures, against the original one."""

    def __init__(
        self, options: FineTuneOptions, description: Description, material: Material, original: Network
    ) -> None:
        self._threads, self._spec = options.threads, description.spec
        self._bundle = Bundle(description.spec, Path(_MODEL))
        self._own = description.spec.postprocess.box_thresh
        self._pages = {"held": material.held, **material.kept}
        self._teacher, self._policy = material.teacher, replace(description.spec.resize, tiles=False)
        self._agreed = self._overlap(original)
        self._before = {kind: above(self._found(original, kind), self._own) for kind in self._pages}

    def _network(self, model: onnx.ModelProto) -> Network:
        return network_of(model, self._spec, self._threads)

    def _found(self, network: Network, kind: str) -> list[Detections]:
        return detected(self._bundle, network, self._pages[kind], least_score(self._own))

    def _overlap(self, network: Network) -> float | None:
        """Mean overlap of a network's maps with the teacher's on the held-aside pictures; None with labels."""
        if self._teacher.labelled:
            return None
        pictures = [read_picture(Path(str(page.source))) for page in self._pages["held"]]
        maps = ((map_of(network, self._policy, picture), self._teacher.map(picture)) for picture in pictures)
        return sum(starmap(overlap, maps)) / len(pictures)

    def score(self, model: onnx.ModelProto) -> float:
        """On the held-aside pictures: the overlap with the teacher; with labels hmean at the own threshold."""
        network = self._network(model)
        agreed = self._overlap(network)
        if agreed is not None:
            return agreed
        return total(counts_of(above(self._found(network, "held"), self._own), self._pages["held"])).hmean

    def slack(self, best: float) -> float:
        """How much less than the best score is as good; later states, at lower rates, are less a matter of chance."""
        return 0.0 if self._agreed is None else _SLACK * max(0.0, best - self._agreed)

    def judged(self, model: onnx.ModelProto, share: float) -> Tuned:
        """All figures of a network."""
        network = self._network(model)
        found = {kind: self._found(network, kind) for kind in self._pages}
        # The teacher's boxes are those above its own threshold, which says nothing about the student's scores.
        labelled = self._teacher.labelled
        threshold = best_threshold(found["held"], self._pages["held"], self._own) if labelled else self._own
        after = {kind: above(each, threshold) for kind, each in found.items()}
        changes = {kind: compared(self._before[kind], after[kind], pages) for kind, pages in self._pages.items()}
        change = changes.pop("held")
        agreed = self._overlap(network)
        overlaps = None if self._agreed is None or agreed is None else (self._agreed, agreed)
        before, found_now = tuple(self._before["held"]), tuple(after["held"])
        return Tuned(model, threshold, share, change, changes, before, found_now, overlaps)


class _Best:
    """The best of the states that are checked in the second half of a training; the first half often is a detour."""

    def __init__(self, judge: _Judge, schedule: Schedule) -> None:
        self._judge = judge
        self._marks = {round(schedule.steps * (0.5 + 0.5 * mark / _CHECKS)) for mark in range(1, _CHECKS + 1)}
        self._score, self._without = -1.0, 0
        self.state: dict[str, Tensor] = {}

    def check(self, step: int, averaged: nn.Module) -> bool:
        """Remember the averaged network if it is the best so far; returns whether to go on."""
        if step not in self._marks:
            return True
        assert isinstance(averaged, GraphModule)
        score = self._judge.score(write_back(averaged))
        if score >= self._score - self._judge.slack(self._score):
            self._score, self._without = max(score, self._score), 0
            self.state = {name: value.detach().clone() for name, value in averaged.state_dict().items()}
        else:
            self._without += 1
        return self._without < _PATIENCE


def _between(original: GraphModule, state: dict[str, Tensor], share: float) -> GraphModule:
    """The network whose weights are on the way from the original to a state."""
    result = copy.deepcopy(original)
    old = original.state_dict()
    result.load_state_dict(
        # Whole numbers are counters of batch normalisations.
        {name: torch.lerp(value, state[name], share) for name, value in old.items() if value.is_floating_point()},
        strict=False,
    )
    return result


def _crop_size(schedule: Schedule, description: Description) -> tuple[int, int]:
    """Height and width of crops that the network takes."""
    if description.size is not None:
        return description.size
    stride = description.spec.resize.stride
    side = max(1, round(schedule.crop / stride)) * stride
    return side, side


def _written(
    options: FineTuneOptions, description: Description, material: Material, tuned: Tuned, draft: Path
) -> Bundle:
    """Build the bundle in a draft folder, add the reports, and move it to its place."""
    source, folder = draft / _MODEL, draft / "bundle"
    onnx.save(tuned.model, str(source))
    spec = description.spec
    spec = replace(spec, postprocess=replace(spec.postprocess, box_thresh=tuned.box_thresh))
    name = options.name or f"{description.spec.name}-finetuned"
    # No trial: the network has been judged, and one that joins the words of a line, as its labels do, fails there.
    config = BuildConfig(source, folder, detector=spec, name=name, gate=False, trial=False, threads=options.threads)
    built = build(config)
    teacher = material.teacher.bundle
    report = json.loads((folder / _REPORT).read_text("utf-8"))
    settings = {**asdict(options.schedule), "seed": options.seed, "self_distil": options.self_distil}
    settings["bfloat16"] = has_bfloat16()
    report["finetuning"] = {
        "weights": origin_of(options.bundle, description.sha256),
        "teacher": origin_of(material.teacher.name, hashlib.sha256(teacher.model_path.read_bytes()).hexdigest()),
        "data": material.record(),
        "settings": settings,
        "box_thresh": {"before": description.spec.postprocess.box_thresh, "after": tuned.box_thresh},
        "share_of_change": tuned.share,
        "held_aside": tuned.change.to_dict(),
        "overlap_with_teacher": tuned.overlap,
        "forgetting": {kind: change.to_dict() for kind, change in tuned.forgetting.items()},
    }
    (folder / _REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    (folder / _PAGE).write_text(html_report(name, report["finetuning"], material.held, tuned), "utf-8")
    Bundle(built.spec, built.model_path).write_manifest()
    install_folder(folder, options.output)
    return Bundle.load(options.output)
