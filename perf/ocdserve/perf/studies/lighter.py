# SPDX-License-Identifier: Apache-2.0
"""A pruned default network, distilled from the default network's maps of drawn pages and of pictures without labels.

    python -m ocdserve.perf.studies.lighter --judge DIR --pictures DIR --seconds 300 --output FOLDER

Judges the default network, the pruned one and the distilled one on labelled images that take no part in training.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from ocdserve.backend import Bundle, Detector, DetectorSpec
from ocdserve.backend.evaluation.dataset import Sample
from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.evaluation.formats import load_labels
from ocdserve.backend.evaluation.matching import match
from ocdserve.backend.stages.image import decode
from ocdserve.builder.build import build
from ocdserve.builder.config import BuildConfig
from ocdserve.builder.graph.describe import describe
from ocdserve.builder.graph.execute import normalised
from ocdserve.builder.progress import TerminalProgress
from ocdserve.builder.train.data.augment import scaling, translation, warp
from ocdserve.builder.train.data.drawn import drawn_pages
from ocdserve.builder.train.distil import TeacherMaps, cut_map, distillation_loss
from ocdserve.builder.train.graph_module import GraphModule, write_back
from ocdserve.builder.train.prune import Size, prune, size_of

_PAGE = (640, 640)
# Scales of crops around the one at which the detector sees a picture.
_SCALES = (0.5, 1.6)
# Steps of warm-up, and the largest norm of the gradient.
_WARMUP, _CLIP = 20, 5.0


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


def lessons(spec: DetectorSpec, maps: TeacherMaps, pictures: Sequence[NDArray[np.uint8]]) -> list[Lesson]:
    """Pictures with the teacher's maps, at the scale of a detector."""
    policy = replace(spec.resize, tiles=False)
    found = []
    for picture in pictures:
        height, width = picture.shape[:2]
        _, content = policy.sizes(height, width)
        found.append(Lesson(picture, maps.map(picture), (content[1] / width, content[0] / height)))
    return found


def crop(random: np.random.Generator, lesson: Lesson, side: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A random part of a picture, uint8 (side, side, 3), and of its map, float32 (side, side)."""
    height, width = lesson.picture.shape[:2]
    factor = np.exp(random.uniform(*np.log(_SCALES)))
    x, y = lesson.scale[0] * factor, lesson.scale[1] * factor
    room = np.array([width * x - side, height * y - side])
    left, top = random.uniform(np.minimum(room, 0), np.maximum(room, 0))
    matrix = translation(-left, -top) @ scaling(x, y)
    part = warp(lesson.picture, matrix, (side, side))
    brightness = random.uniform(0.8, 1.2, 3) * random.uniform(0.7, 1.2)
    part = (part * brightness).clip(0, 255).astype(np.uint8)
    return part, cut_map(lesson.taught, (height, width), matrix, (side, side))


def distil(
    student: torch.nn.Module,
    spec: DetectorSpec,
    known: Sequence[Lesson],
    seconds: float,
    seed: int,
    side: int = 320,
    crops: int = 4,
    rate: float = 1e-3,
) -> list[float]:
    """Train a student for so many seconds of CPU time, and return the losses of its steps.

    Args:
        student: In training mode it gives logits, (N, C, H, W), the probability's first.
        spec: How pixels are normalised.
        known: What it learns.
        seconds: Of the process; the learning rate falls to 0 by a cosine over them.
        seed: Of crops and order.
        side: Of crops, in pixels.
        crops: Of a step.
        rate: Largest learning rate.
    """
    random = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(student.parameters(), rate, weight_decay=1e-4)
    order = cycle(random.permutation(len(known)).tolist())
    losses: list[float] = []
    started = process_time()
    student.train()
    with TerminalProgress(sys.stderr).task("distilling") as task:
        while (spent := (process_time() - started) / seconds) < 1:
            factor = min(1.0, (len(losses) + 1) / _WARMUP) * 0.5 * (1 + np.cos(np.pi * spent))
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            pixels, targets = zip(*(crop(random, known[next(order)], side) for _ in range(crops)), strict=True)
            images = torch.from_numpy(normalised(pixels, spec.network))
            loss = distillation_loss(student(images), torch.from_numpy(np.stack(targets)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), _CLIP)
            optimizer.step()
            losses.append(float(loss.detach()))
            task.advance(note=f"loss {np.mean(losses[-20:]):.3f}, {spent:.0%} of the time")
    student.eval()
    return losses


def judged(bundle: Path | str | None, samples: Sequence[Sample]) -> Counts:
    """Counts of a bundle's detections on labelled images."""
    detector = Detector.load(bundle, threads=1)
    return total([match(detector.detect(sample.image.read_bytes()).quads, sample.truth) for sample in samples])


def bundled(module: GraphModule, spec: DetectorSpec, folder: Path, name: str) -> Path:
    """Write the ONNX of a network, and build a bundle of it as `ocdserve build` does."""
    onnx.save(write_back(module), file := folder / f"{name}.onnx")
    build(BuildConfig(file, folder / name, detector=spec, gate=False, trial=False, name=name))
    return folder / name


def _row(name: str, size: Size, counts: Counts) -> str:
    macs, weights = size.macs / 1e9, size.parameters / 1e6
    figures = f"{counts.precision:.4f} | {counts.recall:.4f} | {counts.hmean:.4f}"
    return f"| {name} | {macs:.3f} | {weights:.2f} | {figures} |\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Prune, distil, judge, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("--judge", type=Path, required=True, help="labelled images; every second one judges, none is trained on")
    add("--images", type=int, default=20, help="number of images that judge")
    add("--pictures", type=Path, help="folder of pictures to learn from, without labels")
    add("--pages", type=int, default=160, help="number of drawn pages to learn from")
    add("--seconds", type=float, default=300, help="of CPU time for training")
    add("--sparsity", type=float, default=0.2, help="share of channels to remove")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--output", type=Path, required=True, help="new folder for networks and bundles; maps are kept there")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    samples = load_labels(args.judge)[1::2][: args.images]
    bundle, example = Bundle.load(), torch.zeros(1, 3, 320, 320)
    original = GraphModule(describe(bundle.model_path).model)
    student = prune(original, args.sparsity, 8, 1, example)
    started = process_time()
    pictures = [page for page, _ in drawn_pages(args.pages, _PAGE, args.seed)]
    if args.pictures:
        pictures += [decode(path.read_bytes()) for path in sorted(args.pictures.iterdir())]
    known = lessons(bundle.spec, TeacherMaps.of(bundle, args.output / "maps"), pictures)
    taught = process_time() - started
    before = bundled(student, bundle.spec, args.output, "pruned")
    losses = distil(student, bundle.spec, known, args.seconds, args.seed)
    after = bundled(student, bundle.spec, args.output, "distilled")
    write = sys.stdout.write
    write(
        f"{len(known)} pictures, {taught:.0f} CPU-s for pages and maps; {len(losses)} steps, {args.seconds:.0f} CPU-s\n"
    )
    write(f"loss of the first and the last 20 steps: {np.mean(losses[:20]):.3f}, {np.mean(losses[-20:]):.3f}\n")
    write("| network | GMAC (320 x 320) | M weights | precision | recall | hmean |\n|---|---|---|---|---|---|\n")
    write(_row("default", size_of(original, example), judged(None, samples)))
    write(_row(f"pruned by {args.sparsity:g}", size_of(student, example), judged(before, samples)))
    write(_row("distilled", size_of(student, example), judged(after, samples)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
