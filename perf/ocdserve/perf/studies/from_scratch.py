# SPDX-License-Identifier: Apache-2.0
"""A deformable ResNet-18 of a quarter of the width, trained from initial weights on a CPU, judged on unseen images.

    python -m ocdserve.perf.studies.from_scratch --data DIR --output FOLDER

Every fourth image of a data set (img/, gt/) is kept aside to judge; the others train, by `ocdnet train` with the spec
from_scratch.yaml, whose number of crops is what ten minutes of two cores compute. The thresholds of the
post-processing are chosen on the images that trained.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.builder.tao.actions import ACTIONS
from ocdserve.builder.tao.evaluate.measure import SCORE_THRESHOLDS, measure
from ocdserve.builder.tao.inputs.pipeline import NetworkImage, read_image
from ocdserve.builder.tao.running import run_action
from ocdserve.builder.tao.spec import PostProcessingArgs, load_spec
from ocdserve.builder.tao.training.network import network_of_checkpoint
from ocdserve.builder.tao.training.trainer.validation import TorchNetwork, validator
from ocdserve.contract import InvalidInputError

SPEC = Path(__file__).with_suffix(".yaml")
_BITMAP_THRESHOLDS = (0.2, 0.3, 0.4, 0.5)
# Every so many images, one is kept aside.
_ASIDE = 4


def split(data: Path, folder: Path) -> tuple[Path, Path]:
    """Write the lists of the images that train and of those that judge, and return their paths."""
    images = sorted((data / "img").iterdir())
    lines = [f"{image.resolve()}\t{(data / 'gt' / f'gt_{image.stem}.txt').resolve()}\n" for image in images]
    parts = (
        [line for index, line in enumerate(lines) if index % _ASIDE != _ASIDE - 1],
        lines[_ASIDE - 1 :: _ASIDE],
    )
    paths = folder / "train.txt", folder / "judge.txt"
    for path, part in zip(paths, parts, strict=True):
        path.write_text("".join(part), "utf-8")
    return paths


def counts_by_thresholds(checkpoint: Path, listed: Path, overrides: Sequence[str]) -> dict[tuple[float, float], Counts]:
    """Counts of a network on the images of a list, by threshold of the bitmap and of the boxes."""
    spec = load_spec(SPEC, [*overrides, f"dataset.validate_dataset.data_path=[{listed}]"]).spec
    network = TorchNetwork(network_of_checkpoint(spec, checkpoint, "evaluate.checkpoint"), torch.device("cpu"))
    data = validator(spec, PostProcessingArgs(box_thresh=0))
    found: dict[tuple[float, float], list[Counts]] = {}
    for sample in data.data.samples:
        image = read_image(sample.image, data.read)
        if not isinstance(image, NetworkImage):
            raise InvalidInputError(f"{image.path} cannot be read: {image.reason}")
        (probability,) = network.infer([image.pixels])
        for thresh in _BITMAP_THRESHOLDS:
            options = replace(data.options, params=replace(data.options.params, thresh=thresh))
            result = measure(sample.image, sample.labels.instances, probability, image.frame, options)
            for box_thresh, counts in zip(SCORE_THRESHOLDS, result.by_score_threshold, strict=True):
                found.setdefault((thresh, box_thresh), []).append(counts)
    return {key: total(counts) for key, counts in found.items()}


def common_overrides(output: Path, train: Path, judge: Path) -> list[str]:
    """What every run over the spec is given: where results go, and the lists of images."""
    return [
        f"results_dir={output}",
        f"dataset.train_dataset.data_path=[{train}]",
        f"dataset.validate_dataset.data_path=[{judge}]",
    ]


def last_checkpoint(folder: Path) -> Path:
    """The weights of the last epoch; model_best.pth is chosen by the images that judge."""
    return folder / os.readlink(folder / "ocd_model_latest.pth")


def figures_at_best(
    known: Mapping[tuple[float, float], Counts], unseen: Mapping[tuple[float, float], Counts]
) -> dict[str, Any]:
    """Figures at the thresholds that are best on the images that trained, from `counts_by_thresholds` of each kind."""
    chosen = max(known, key=lambda key: known[key].hmean)
    return {
        "thresh, box_thresh": chosen,
        "images that trained": known[chosen].to_dict(),
        "unseen images": unseen[chosen].to_dict(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train, choose thresholds, judge, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with img/ and gt/")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the spec")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    train, judge = split(args.data, args.output)
    wall, cpu = perf_counter(), process_time()
    code = run_action(ACTIONS["train"], SPEC, [*common_overrides(args.output, train, judge), *args.overrides])
    if code:
        return code
    wall, cpu = perf_counter() - wall, process_time() - cpu
    checkpoint = last_checkpoint(args.output / "train")
    known, unseen = (counts_by_thresholds(checkpoint, listed, args.overrides) for listed in (train, judge))
    figures = {
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        **figures_at_best(known, unseen),
        "unseen images, TAO's thresholds": unseen[0.3, 0.55].to_dict(),
    }
    sys.stdout.write(f"{json.dumps(figures, indent=2)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
