# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning in four folds: what is gained on pictures that were never seen, and what is forgotten on others.

    python -m ocdserve.perf.studies.finetune --data DIR --scenes DIR --bundle fast --lines FILE [--self-distil]

A fold trains by `ocdserve finetune` on three quarters of the pictures and judges on the rest, so that every picture is
judged once. Forgetting is judged on scenes and on drawn pages of seeds that no training uses. A line of JSON a fold is
added to FILE; folds that it holds are not repeated, so that the study can be stopped and go on. The table is printed at
the end, with the limits, which were fixed before the first fold ran.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ocdserve.backend.evaluation.figures import Counts

FOLDS, DRAWN, DRAWN_SIZE = 4, 200, (640, 640)
# Of the choice of folds and of the drawn pages; training has seeds from 0, and its own drawn pages others.
FOLD_SEED, DRAWN_SEED = 2026, 77_000_000
# Points of hmean: least mean gain by detector, least gain of a fold, largest loss on drawn pages; matches on scenes.
LEAST_GAIN, LEAST_OF_A_FOLD, MOST_LOST_DRAWN, MOST_LOST_SCENES = {"fast": 0.8, "default": 0.0}, -0.5, 1.0, 2


def folds(count: int) -> list[list[int]]:
    """Indices of the pictures that each fold judges."""
    order = np.random.default_rng(FOLD_SEED).permutation(count).tolist()
    return [sorted(order[fold::FOLDS]) for fold in range(FOLDS)]


def judged_pages(count: int) -> list[Any]:
    """Drawn pages that no training uses, `ocdserve.builder.train.finetune.judge.Page` each."""
    from ocdserve.builder.train.data.drawn import drawn_pages
    from ocdserve.builder.train.finetune.judge import Page

    pages = drawn_pages(count, DRAWN_SIZE, DRAWN_SEED)
    return [Page(str(index), page, truth) for index, (page, truth) in enumerate(pages)]


def fold_figures(fold: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train a fold and judge it; where nothing was written, nothing has changed."""
    from ocdserve.backend import Bundle
    from ocdserve.backend.evaluation.dataset import load_dataset
    from ocdserve.backend.network.load import load_network
    from ocdserve.backend.network.options import RuntimeOptions
    from ocdserve.builder.train.finetune.judge import Page, compared, detected

    samples = load_dataset(args.data)
    judged = folds(len(samples))[fold]
    pages = {
        "judged": [Page.of(samples[index]) for index in judged],
        "scenes": [Page.of(sample) for sample in load_dataset(args.scenes)],
        "drawn": judged_pages(DRAWN),
    }
    with tempfile.TemporaryDirectory() as folder:
        rest = [sample for index, sample in enumerate(samples) if index not in judged]
        for kind, name in (("img", "{0.name}"), ("gt", "gt_{0.stem}.txt")):
            Path(folder, "data", kind).mkdir(parents=True)
            for sample in rest:
                file = name.format(sample.image)
                Path(folder, "data", kind, file).symlink_to((args.data / kind / file).absolute())
        started = time.perf_counter()
        ended = subprocess.run(_command(args, fold, folder), check=False, capture_output=True, text=True)
        figures: dict[str, Any] = {
            "bundle": args.bundle,
            "self_distil": args.self_distil,
            "fold": fold,
            "seconds": round(time.perf_counter() - started, 1),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
            "written": ended.returncode == 0,
            "message": ended.stderr[-2000:] if ended.returncode else ended.stdout[-2000:],
        }
        bundles = [Bundle.load(args.bundle), Bundle.load(Path(folder, "out") if figures["written"] else args.bundle)]
        networks = [load_network(bundle, RuntimeOptions(threads=args.threads)) for bundle in bundles]
        for kind, shown in pages.items():
            before, after = (
                detected(bundle, network, shown) for bundle, network in zip(bundles, networks, strict=True)
            )
            change = compared(before, after, shown)
            figures[kind] = {
                **change.to_dict(),
                "counts": [
                    [[c.matched, c.detections, c.truths] for c in side] for side in (change.before, change.after)
                ],
            }
    return figures


def _command(args: argparse.Namespace, fold: int, folder: str) -> list[str]:
    options = {"data": f"{folder}/data", "output": f"{folder}/out", "bundle": args.bundle, "seed": fold}
    if args.threads:
        options["threads"] = args.threads
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "ocdserve.cli", "finetune", *given, *(["--self-distil"] if args.self_distil else [])]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The folds as a table in Markdown, with the pooled figures and the limits."""
    from ocdserve.builder.train.finetune.judge import Change

    lines = [
        "| fold | written | s | peak MiB | gain, points | scenes lost / won | drawn, points |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['fold']} | {'yes' if row['written'] else 'no'} | {row['seconds']:.0f} | {row['peak_mib']} | "
            f"{row['judged']['gain']:+.2f} | {row['scenes']['matches_lost']} / {row['scenes']['matches_won']} | "
            f"{row['drawn']['gain']:+.2f} |"
        )
    sides = [[Counts(*counts) for row in rows for counts in row["judged"]["counts"][side]] for side in (0, 1)]
    lost, won = (sum(row["judged"][f"matches_{which}"] for row in rows) for which in ("lost", "won"))
    pooled = Change(tuple(sides[0]), tuple(sides[1]), lost, won)
    low, high = pooled.interval
    gains = [row["judged"]["gain"] for row in rows]
    scenes = max(row["scenes"]["matches_lost"] - row["scenes"]["matches_won"] for row in rows)
    drawn = min(row["drawn"]["gain"] for row in rows)
    least = LEAST_GAIN.get(rows[0]["bundle"], 0.0)
    checks = (
        (f"mean gain {np.mean(gains):+.2f} points", f"at least {least:+.1f}", np.mean(gains) >= least),
        (f"least gain of a fold {min(gains):+.2f}", f"at least {LEAST_OF_A_FOLD:+.1f}", min(gains) >= LEAST_OF_A_FOLD),
        (
            f"matches lost net on scenes, most of a fold: {scenes}",
            f"at most {MOST_LOST_SCENES}",
            scenes <= MOST_LOST_SCENES,
        ),
        (
            f"drawn pages, least of a fold: {drawn:+.2f} points",
            f"at least {-MOST_LOST_DRAWN:+.1f}",
            drawn >= -MOST_LOST_DRAWN,
        ),
    )
    lines += [
        "",
        f"All {len(sides[0])} judged pictures: {pooled.gain:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}.",
        "",
        *(f"- {found}; limit: {limit}: {'met' if is_met else 'missed'}" for found, limit, is_met in checks),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the folds that are missing, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m ocdserve.perf.studies.finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR", type=Path, required=True, help="folder with img/ and gt/")
    parser.add_argument("--scenes", metavar="DIR", type=Path, required=True, help="pictures never trained on, likewise")
    parser.add_argument("--bundle", default="fast", help="fast or default")
    parser.add_argument("--self-distil", action="store_true", help="train without labels")
    parser.add_argument("--lines", metavar="FILE", type=Path, required=True, help="a line of JSON a fold")
    parser.add_argument("--folds", metavar="N", type=int, default=FOLDS, help="how many of the four (default: all)")
    parser.add_argument("--threads", metavar="N", type=int, help="cores (default: all)")
    args = parser.parse_args(arguments)
    known = [json.loads(line) for line in args.lines.read_text("utf-8").splitlines()] if args.lines.exists() else []
    rows = [row for row in known if (row["bundle"], row["self_distil"]) == (args.bundle, args.self_distil)]
    for fold in range(args.folds):
        if any(row["fold"] == fold for row in rows):
            continue
        rows.append(fold_figures(fold, args))
        with args.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    sys.stdout.write(table(sorted(rows, key=lambda row: row["fold"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
