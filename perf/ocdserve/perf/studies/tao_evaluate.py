# SPDX-License-Identifier: Apache-2.0
"""The cost of `ocdnet evaluate` compared with its network alone: same images, alternating, in one process.

    python -m ocdserve.perf.studies.tao_evaluate --data DIR [--data DIR] --images 500

Both sides use one compiled network and the same batches. The bare network gets preprocessed pixels; the other side is
the whole action: reading, decoding, resizing, the network, post-processing at ten thresholds, matching, the report.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import TypeVar

from ocdserve.backend import Bundle
from ocdserve.backend.spec.presets import PRESETS
from ocdserve.builder.progress import SILENT, TerminalProgress
from ocdserve.builder.tao.actions import Context
from ocdserve.builder.tao.evaluate.contact_sheet import draw_contact_sheet, worst
from ocdserve.builder.tao.evaluate.evaluate import evaluate
from ocdserve.builder.tao.evaluate.measure import MeasureOptions
from ocdserve.builder.tao.evaluate.report import WORST_FILE, Outcome, write_results
from ocdserve.builder.tao.inputs.dataset import DataSet, load_data_set
from ocdserve.builder.tao.inputs.labels import LabelRules
from ocdserve.builder.tao.inputs.pipeline import LoaderOptions, NetworkImage, read_image
from ocdserve.builder.tao.inputs.prepare import Prepared, Request, fixed_size, prepare
from ocdserve.builder.tao.spec import Ocdserve, PostProcessingArgs
from ocdserve.builder.tao.status import StatusLog

_T = TypeVar("_T")


@dataclass
class Cost:
    """Wall time and CPU time of all cores, summed over blocks of images."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def of(self, call: Callable[[], _T]) -> _T:
        """Call, and add the time it takes."""
        wall, cpu = perf_counter(), process_time()
        result = call()
        self.wall_s += perf_counter() - wall
        self.cpu_s += process_time() - cpu
        return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder with img/ and gt/")
    parser.add_argument("--images", type=int, default=500, help="number of copies to evaluate")
    parser.add_argument("--block", type=int, default=50, help="images per turn")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--no-sweep", action="store_true", help="skip the figures at other thresholds")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        data_set = _copies(args.data, args.images, Path(folder))
        figures = measure_cost(data_set, args.batch_size, args.block, not args.no_sweep, Path(folder))
    sys.stdout.write(f"{json.dumps(figures, indent=2)}\n")
    return 0


def measure_cost(data_set: DataSet, batch_size: int, block: int, has_sweep: bool, folder: Path) -> dict[str, float]:
    """Run both sides over all images in alternating blocks; report and contact sheet are written at the end."""
    prepared = _prepared(batch_size, folder)
    options, loader = MeasureOptions(prepared.params, has_sweep=has_sweep), LoaderOptions(batch_size)
    context = Context(folder, StatusLog(folder), SILENT, _ignore, _ignore)
    bare, whole, report = Cost(), Cost(), Cost()
    outcomes: list[Outcome] = []
    samples = data_set.samples
    with TerminalProgress(sys.stderr).task("both sides", len(samples)) as task:
        for number, start in enumerate(range(0, len(samples), block)):
            part = DataSet(samples[start : start + block], ())
            turns = [
                lambda part=part: _bare(part, prepared, batch_size, bare),
                lambda part=part: outcomes.append(whole.of(lambda: evaluate(part, prepared, options, loader, context))),
            ]
            for turn in turns if number % 2 else reversed(turns):
                turn()
            task.advance(len(part.samples))
    outcome = replace(outcomes[0], images=tuple(itertools.chain.from_iterable(each.images for each in outcomes)))
    report.of(lambda: write_results(outcome, folder))
    shown = worst(outcome.images)
    if shown:
        report.of(lambda: draw_contact_sheet(shown, folder / WORST_FILE))
    return {
        "images": len(samples),
        "cores": len(os.sched_getaffinity(0)),
        "bare_images_per_s": len(samples) / bare.wall_s,
        "evaluate_images_per_s": len(samples) / (whole.wall_s + report.wall_s),
        "speed_of_bare": bare.wall_s / (whole.wall_s + report.wall_s),
        "cpu_of_bare": (whole.cpu_s + report.cpu_s) / bare.cpu_s,
        "report_s": report.wall_s,
        "hmean": outcome.counts.hmean,
    }


def _bare(part: DataSet, prepared: Prepared, batch_size: int, cost: Cost) -> None:
    """Time the network alone on preprocessed images."""
    images = [read_image(sample.image, prepared.read) for sample in part.samples]
    pixels = [image.pixels for image in images if isinstance(image, NetworkImage)]
    batches = [pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size)]
    cost.of(lambda: [prepared.network.infer(batch) for batch in batches])


def _ignore(_: str) -> None:
    pass


def _prepared(batch_size: int, folder: Path) -> Prepared:
    default = Bundle.load()
    Bundle(replace(default.spec, resize=PRESETS["ocdnet"].resize), default.model_path).save(folder / "bundle")
    return prepare(
        Request(
            path=folder / "bundle",
            resize=fixed_size(1280, 736, "the size"),
            size_key="size",
            img_mode="BGR",
            post_processing=PostProcessingArgs(),
            polygons=False,
            batch_size=batch_size,
            device=0,
            ocdserve=Ocdserve(),
        )
    )


def _copies(folders: Sequence[Path], count: int, target: Path) -> DataSet:
    """A data set of `count` images, links to the given ones in turn."""
    known = load_data_set([str(folder) for folder in folders], LabelRules()).samples
    for name in ("img", "gt"):
        (target / name).mkdir()
    for index, sample in zip(range(count), itertools.cycle(known), strict=False):
        (target / "img" / f"{index}{sample.image.suffix}").symlink_to(sample.image.resolve())
        (target / "gt" / f"gt_{index}.txt").symlink_to(sample.labels.path.resolve())
    return load_data_set([str(target)], LabelRules())


if __name__ == "__main__":
    sys.exit(main())
