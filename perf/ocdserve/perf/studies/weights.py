# SPDX-License-Identifier: Apache-2.0
"""Train the weights of the built-in `fast` and `lite` detectors: the default network's maps are what they learn.

    python -m ocdserve.perf.studies.weights fast --receipts DIR --photographs DIR --output FOLDER

No labels are used. The default detector sees each picture whole at its own size; the student learns its map at the
smaller size of `fast`, in crops. `fast` is the default network; `lite` one with fewer channels. An interrupted training
continues where it was when the same command is given again. Receipts and scenes that nothing learns from judge the
result, and drawn pages of another seed.
"""

import argparse
import copy
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from ocdserve.backend import PRESETS, Bundle, DetectorSpec
from ocdserve.backend.evaluation.formats import load_labels
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.builder.calibration.images import photographs
from ocdserve.builder.graph.describe import describe
from ocdserve.builder.graph.execute import normalised
from ocdserve.builder.packed import pack
from ocdserve.builder.progress import TerminalProgress
from ocdserve.builder.train.data.augment import scaling, translation, warp
from ocdserve.builder.train.data.drawn import drawn_pages
from ocdserve.builder.train.distil import TeacherMaps, cut_map
from ocdserve.builder.train.finetune.crops import read_picture, strange_crop
from ocdserve.builder.train.finetune.judge import Page, compared, detected
from ocdserve.builder.train.finetune.options import Schedule
from ocdserve.builder.train.finetune.report import origin_of
from ocdserve.builder.train.finetune.training import Batch, Checkpoint, has_bfloat16, train
from ocdserve.builder.train.graph_module import GraphModule, write_back
from ocdserve.builder.train.losses import balanced_bce, dice_loss
from ocdserve.builder.train.prune import prune_layers, size_of
from ocdserve.perf.studies.finetune import judged_pages

# The scale at which pictures are learnt, and what pixels are normalised by.
_SPEC = PRESETS["ppocr-fast"]
# Layers of the default network, by number, that `lite` has fewer channels of, and the share that it loses: between the
# two layers of a block, where no other layer reads them, and in the neck.
_BLOCKS, _FEWER_IN_BLOCKS = (8, 11, 19, 22, 30, 33, 38, 41, 49, 52), 0.72
_NECK, _FEWER_IN_NECK = (54, 57, 60, 63, 67, 71, 75, 79, 82), 1 / 3
# Sizes of drawn pages, (height, width).
_PAGES = ((640, 640), (960, 720), (720, 1080))
_SIDE, _CROPS = 320, 4
# Scales of crops around the one at which the detector sees a picture.
_SCALES = (0.6, 1.6)
# Weight in the loss of crops that are unlike all that is learnt from: what was right on other pictures is to stay so.
# `lite` has none: it has to find the default network's answers anew.
_STRANGE_WEIGHT = 3.0


@dataclass(frozen=True)
class Plan:
    """How a detector is trained.

    Attributes:
        spec: How it is served.
        steps: Steps of the optimiser.
        rate: Largest learning rate, of AdamW.
        strange: Crops of a step on which the student is to answer as the default network does at the same size.
    """

    spec: DetectorSpec
    steps: int
    rate: float
    strange: int


_FAST = replace(_SPEC, precision="bf16")
_LITE = replace(_FAST, name="ppocr-lite", resize=replace(_SPEC.resize, side=448, largest_side=896))
PLANS = {"fast": Plan(_FAST, 6000, 3e-4, 2), "lite": Plan(_LITE, 12000, 1e-3, 0)}
# How often a crop is of each kind of picture, relative to the others that there are.
_SHARES = {"drawn": 0.4, "receipts": 0.35, "photographs": 0.25}


@dataclass(frozen=True)
class Lesson:
    """A picture and what the teacher sees in it.

    Attributes:
        picture: uint8 (H, W, 3) RGB.
        taught: uint8 (h, w), 255 times the probability.
        scale: Pixels of the network per pixel of the picture, (x, y).
    """

    picture: NDArray[np.uint8]
    taught: NDArray[np.uint8]
    scale: tuple[float, float]

    def crop(self, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """A random part of the picture, uint8 (320, 320, 3), and of its map, float32 (320, 320)."""
        height, width = self.picture.shape[:2]
        x, y = np.multiply(self.scale, np.exp(random.uniform(*np.log(_SCALES))))
        room = np.array([width * x - _SIDE, height * y - _SIDE])
        left, top = random.uniform(np.minimum(room, 0), np.maximum(room, 0))
        matrix = translation(-left, -top) @ scaling(x, y)
        part = warp(self.picture, matrix, (_SIDE, _SIDE))
        brightness = random.uniform(0.9, 1.1, 3) * random.uniform(0.75, 1.2)
        part = (part * brightness).clip(0, 255).astype(np.uint8)
        return part, cut_map(self.taught, (height, width), matrix, (_SIDE, _SIDE))


def lessons(maps: TeacherMaps, pictures: Sequence[NDArray[np.uint8]], name: str) -> list[Lesson]:
    """Pictures with the teacher's maps, at the scale of `fast`."""
    policy = replace(_SPEC.resize, tiles=False)
    found = []
    with TerminalProgress(sys.stderr).task(f"the teacher's maps of {name}", len(pictures)) as task:
        for picture in pictures:
            height, width = picture.shape[:2]
            _, content = policy.sizes(height, width)
            found.append(Lesson(picture, maps.map(picture), (content[1] / width, content[0] / height)))
            task.advance()
    return found


@dataclass(frozen=True)
class Crops:
    """What each step learns from; see `ocdserve.builder.train.finetune.training.Batches`.

    Attributes:
        known: Pictures by their kind.
        strangers: Crops of a step that are unlike all others.
        seed: Of the choice.
    """

    known: Mapping[str, Sequence[Lesson]]
    strangers: int
    seed: int

    def batch(self, step: int) -> Batch:
        """Four crops of 320 x 320 pixels with their maps, and the strange ones: the same for the same step."""
        random = np.random.default_rng((self.seed, step))
        pixels, targets = zip(*(lesson.crop(random) for lesson in self._chosen(random, _CROPS)), strict=True)
        pairs = [self._chosen(random, 2) for _ in range(self.strangers)]
        others = [strange_crop(random, [lesson.picture for lesson in pair], (_SIDE, _SIDE)) for pair in pairs]
        other = normalised(others, _SPEC.network) if others else np.zeros((0, 3, _SIDE, _SIDE), np.float32)
        return Batch(normalised(pixels, _SPEC.network), np.stack(targets), other)

    def _chosen(self, random: np.random.Generator, count: int) -> list[Lesson]:
        shares = np.array([_SHARES[kind] for kind in self.known])
        kinds = random.choice(list(self.known), count, p=shares / shares.sum())
        return [self.known[kind][random.integers(len(self.known[kind]))] for kind in kinds]


def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The losses of DB (Liao et al., 2020, section 3.5) on the probability: cross-entropy with hard negatives, Dice."""
    logits, everywhere = output[:, 0], torch.ones_like(target)
    return balanced_bce(logits, target, everywhere) + dice_loss(torch.sigmoid(logits), target, everywhere)


def lighter(network: GraphModule) -> GraphModule:
    """The default network without the channels that `lite` has not."""
    shares = {f"layers.Conv_{number}": _FEWER_IN_BLOCKS for number in _BLOCKS}
    shares |= {f"layers.Conv_{number}": _FEWER_IN_NECK for number in _NECK}
    return prune_layers(network, shares, 8, torch.zeros(1, 3, _SIDE, _SIDE))


def _drawn(count: int, seed: int) -> list[NDArray[np.uint8]]:
    each = -(-count // len(_PAGES))
    return [page for place, size in enumerate(_PAGES) for page, _ in drawn_pages(each, size, seed + place)]


def figures(bundle: Bundle, judges: Mapping[str, Sequence[Page]]) -> dict[str, Any]:
    """The default network in FP32 compared with a bundle's, at the same size, by kind of picture."""
    options = RuntimeOptions(threads=torch.get_num_threads())
    default = Bundle(replace(bundle.spec, precision="fp32"), Bundle.load().model_path)
    networks = [load_network(each, options) for each in (default, bundle)]
    found = {}
    with TerminalProgress(sys.stderr).task("judging", len(judges)) as task:
        for kind, pages in judges.items():
            before, after = (detected(bundle, network, pages) for network in networks)
            found[kind] = compared(before, after, pages).to_dict()
            task.advance()
    return found


def released(model: Path, spec: DetectorSpec, facts: Mapping[str, Any], judges: Mapping[str, Sequence[Page]]) -> Bundle:
    """The bundle of a trained network, beside it, judged as it is served: its weights are rounded."""
    with tempfile.TemporaryDirectory() as folder:
        judged = figures(pack(model, spec, {}, Path(folder, "bundle")), judges)
    shutil.rmtree(model.with_suffix(""), ignore_errors=True)
    return pack(model, spec, {**facts, "judged": judged}, model.with_suffix(""))


def main(argv: Sequence[str] | None = None) -> int:
    """Train, judge, and write the network with a report of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("name", choices=sorted(PLANS))
    add(
        "--receipts",
        type=Path,
        help="labelled images: half, without labels, is learnt from; half judges",
    )
    add("--photographs", type=Path, help="folder of other pictures to learn from")
    add("--scenes", type=Path, help="labelled images that judge")
    add("--pages", type=int, default=600, help="number of drawn pages to learn from")
    add("--judged-pages", type=int, default=200, help="number of drawn pages that judge")
    add("--steps", type=int, help="of training, if not those of the plan")
    add("--rate", type=float, help="largest learning rate, if not that of the plan")
    add("--start", type=Path, help="an ONNX that an earlier training wrote, to train it further")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--maps", type=Path, help="folder of the teacher's maps, which several trainings can share")
    add("--output", type=Path, required=True, help="folder of the last state, the network and the report")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    bundle = run(args)
    sys.stdout.write((bundle.model_path.parent / "report.json").read_text("utf-8"))
    return 0


def run(args: argparse.Namespace) -> Bundle:
    """Train, write the network, and make its bundle."""
    default, plan = Bundle.load(), PLANS[args.name]
    plan = replace(plan, steps=args.steps or plan.steps, rate=args.rate or plan.rate)
    pictures = {"drawn": _drawn(args.pages, args.seed)}
    judges = {"drawn": judged_pages(args.judged_pages)}
    if args.receipts:
        receipts = load_labels(args.receipts)
        pictures["receipts"] = [read_picture(sample.image) for sample in receipts[::2]]
        judges["receipts"] = [Page.of(sample) for sample in receipts[1::2]]
    if args.photographs:
        pictures["photographs"] = [read_picture(path) for path in photographs(args.photographs)]
    if args.scenes:
        judges["scenes"] = [Page.of(sample) for sample in load_labels(args.scenes)]
    maps = TeacherMaps.of(default, args.maps or args.output / "maps")
    known = {kind: lessons(maps, those, kind) for kind, those in pictures.items()}
    original = describe(default.model_path)
    network = GraphModule(original.model)
    student = GraphModule(onnx.load(args.start)) if args.start else copy.deepcopy(network)
    if args.name == "lite" and not args.start:
        student = lighter(network)
    count = sum(map(len, known.values()))
    described = f"{plan.steps} steps at {plan.rate:g} from seed {args.seed}, {count} pictures"
    trained = train(
        student,
        Crops(known, plan.strange, args.seed),
        Schedule(plan.steps, rate=plan.rate, warmup=100, keep_weight=_STRANGE_WEIGHT, average=0.999),
        TerminalProgress(sys.stderr),
        loss_of,
        original=network,
        checkpoint=Checkpoint(args.output / "state.pt", described),
        bfloat16=has_bfloat16(),
    )
    onnx.save(write_back(cast(GraphModule, trained)), str(file := args.output / f"{args.name}.onnx"))
    facts = {
        "weights": origin_of(None, original.sha256),
        "trained": {
            "start": hashlib.sha256(args.start.read_bytes()).hexdigest() if args.start else None,
            "pictures": {kind: len(those) for kind, those in pictures.items()},
            **{"steps": plan.steps, "rate": plan.rate, "seed": args.seed},
        },
        "size": asdict(size_of(trained, torch.zeros(1, 3, _SIDE, _SIDE))),
    }
    return released(file, plan.spec, facts, judges)


if __name__ == "__main__":
    sys.exit(main())
