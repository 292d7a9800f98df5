# SPDX-License-Identifier: Apache-2.0
"""The hmean that INT8 costs a network, on labelled photographs and on drawn pages, apart.

    python -m ocdserve.perf.studies.int8_loss --data receipts
    python -m ocdserve.perf.studies.int8_loss --data receipts --onnx FILE --size 640 1280 --thresholds 0.3 0.55

Every fourth image is judged; twenty of the others calibrate. Drawn pages are judged only. Held: the loss of each kind
is at most 1 point, and the upper end of its 95 % interval at most 2.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ocdserve.backend import PRESETS, Bundle, DetectorSpec, ResizePolicy
from ocdserve.backend.evaluation.dataset import Sample, Truth, load_dataset
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.builder import BuildConfig, DataConfig, build
from ocdserve.builder.accuracy.gate import Comparison, compare, make_reference
from ocdserve.builder.calibration.images import choose
from ocdserve.builder.progress import Progress, TerminalProgress
from ocdserve.builder.train.data.drawn import drawn_pages

_MOST_LOSS, _MOST_UPPER = 1.0, 2.0
_CALIBRATED = 20
_PAGE = (960, 720)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the figures as JSON, and return 0 if the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with img/ and gt/")
    parser.add_argument("--onnx", type=Path, help="export of an OCDNet; without it the built-in detector")
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 736), metavar="PIXELS", help="width and height")
    parser.add_argument(
        "--thresholds", type=float, nargs=2, default=(0.3, 0.55), help="of the bitmap and of the boxes, for --onnx"
    )
    parser.add_argument("--pages", type=int, default=30, help="number of drawn pages")
    parser.add_argument("--runtime", default="openvino", help="what executes both networks")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    progress = TerminalProgress(sys.stderr)
    samples = list(load_dataset(args.data))
    judged = samples[3::4]  # those that the study from_scratch keeps aside
    others = [sample.image for sample in samples if sample not in judged]
    with tempfile.TemporaryDirectory() as folder:
        pages = _pages(args.pages, Path(folder))
        bundles = _bundles(args, choose(others, _CALIBRATED, seed=0), Path(folder), progress)
        kinds = {"photographs": judged, "drawn pages": pages}
        found = {name: _compared(bundles, kind, args, progress) for name, kind in kinds.items()}
    figures = {name: _figures(comparison) for name, comparison in found.items()}
    sys.stdout.write(f"{json.dumps(figures, indent=2)}\n")
    return 0 if all(entry["holds"] for entry in figures.values()) else 1


def _bundles(
    args: argparse.Namespace, images: tuple[Path, ...], folder: Path, progress: Progress
) -> tuple[Bundle, Bundle]:
    """The network in FP32 and in INT8, without the gate that would look for layers to exclude."""
    built_in = Bundle.load("default-fp32")
    onnx, detector = (args.onnx, _ocdnet(args)) if args.onnx else (built_in.model_path, built_in.spec)
    common: dict[str, Any] = {"detector": detector, "gate": False, "trial": False, "runtime": args.runtime}
    data = DataConfig(calibration_files=images)
    return (
        build(BuildConfig(onnx, folder / "fp32", threads=args.threads, **common), progress),
        build(
            BuildConfig(onnx, folder / "int8", precision="int8", data=data, threads=args.threads, **common), progress
        ),
    )


def _ocdnet(args: argparse.Namespace) -> DetectorSpec:
    preset = PRESETS["ocdnet"]
    thresh, box_thresh = args.thresholds
    return replace(
        preset,
        resize=ResizePolicy(kind="fixed", width=args.size[0], height=args.size[1]),
        postprocess=replace(preset.postprocess, thresh=thresh, box_thresh=box_thresh),
    )


def _compared(
    bundles: tuple[Bundle, Bundle], samples: Sequence[Sample], args: argparse.Namespace, progress: Progress
) -> Comparison:
    truths: Mapping[Path, Truth | None] = {sample.image: sample.truth for sample in samples}
    options = RuntimeOptions(args.runtime, args.threads, map_type="float32")
    before, after = (load_network(bundle, options) for bundle in bundles)
    return compare(make_reference(bundles[0], before, truths, progress), after, progress)


def _figures(comparison: Comparison) -> dict[str, Any]:
    loss, interval = comparison.hmean_loss, comparison.hmean_loss_interval
    holds = loss is not None and interval is not None and loss <= _MOST_LOSS and interval[1] <= _MOST_UPPER
    return {"holds": holds, "hmean_loss": loss, **asdict(comparison)}


def _pages(count: int, folder: Path) -> list[Sample]:
    samples = []
    for index, (page, truth) in enumerate(drawn_pages(count, _PAGE, seed=1)):
        path = folder / f"page_{index:02}.png"
        Image.fromarray(page).save(path)
        samples.append(Sample(path, truth))
    return samples


if __name__ == "__main__":
    sys.exit(main())
