# SPDX-License-Identifier: Apache-2.0
"""The detector is replaced again and again under load: every answer is one of the two detectors', and none fails."""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.campaigns.clients import HEADERS, Load, Plan
from tests.campaigns.report import Report
from tests.campaigns.serving import Held, Server, pictures, right_answers, serving, small_bundle

_CLIENTS = (("http", "ocdnet"), ("grpc", "ocdnet"), ("http", "ocdnet_fused"), ("grpc", "ocdnet_fused"))
_SIDES = (192, 160)
# Of what the processes use together: the two detectors differ a little, and heaps grow with the first requests.
_MOST_GROWTH = 1.15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--reloads", type=int, metavar="N", help="number of reloads (default: 20, with --short 2)")


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the campaign."""
    reloads = args.reloads or (2 if args.short else 20)
    images = pictures()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = [small_bundle(folder / str(side), side) for side in _SIDES]
        folders = [bundle.model_path.parent for bundle in bundles]
        with serving(folders[0]) as server:
            first = right_answers(server.target, images, bundles[0], _CLIENTS)
            report.equal("the first reload", reload(server, folders[1])[0], 0)
            second = right_answers(server.target, images, bundles[1], _CLIENTS)
            right = {key: (*first[key], *second[key]) for key in first}
            report.equal("pictures that both detectors answer alike", sum(a == b for a, b in right.values()), 0)
            before = server.held()
            with Load(Plan(server.target, images, right, _CLIENTS)) as load:
                rows = [_row(server, folders[number % 2]) for number in range(reloads)]
                broken = [(what, *reload(server, make(folder, folders[0]))) for what, make in _BROKEN.items()]
                tally = load.stop()
            now = server.held()
            restarts = server.restarts()
    report.table("Reloads", ("seconds", "exit code", "said"), rows)
    report.table("Broken bundles", ("bundle", "exit code", "said"), broken)
    report.table(f"{len(_CLIENTS)} clients meanwhile", HEADERS, [tally.row()], text_columns=0)
    report.answered(tally)
    report.equal("reloads that failed", sum(code != 0 for _, code, _ in rows), 0)
    report.equal("broken bundles that were taken", sum(code == 0 for _, code, _ in broken), 0)
    report.equal("lines about restarts", restarts, [])
    seen = Counter(answer.variant for answer in tally.answers)
    report.equal("detectors that answered", sorted(seen), [0, 1])
    last = [answer.variant for answer in tally.answers[-len(_CLIENTS) :]]
    report.equal("detector of the last answers", set(last), {(reloads + 1) % 2})
    _judge(report, before, now)


def reload(server: Server, bundle: Path) -> tuple[int, str]:
    """Exit code of `ocdserve reload`, and what it says."""
    command = [sys.executable, "-m", "ocdserve.cli", "reload", "--pid", str(server.pid), "--bundle", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout + done.stderr).strip()


def _row(server: Server, bundle: Path) -> tuple[float, int, str]:
    began = time.monotonic()
    code, said = reload(server, bundle)
    return time.monotonic() - began, code, said


def _judge(report: Report, before: Held, now: Held) -> None:
    report.table(
        "Before and after",
        ("moment", "processes", "PSS MiB", "open files", "segments"),
        [
            (name, len(held.processes), held.pss_mib, sum(held.descriptors.values()), held.segments)
            for name, held in (("before", before), ("after", now))
        ],
    )
    report.table(
        "Processes",
        ("moment", "process", "PSS MiB"),
        [
            (name, one.name, one.pss_mib)
            for name, held in (("before", before), ("after", now))
            for one in held.processes
        ],
        text_columns=2,
    )
    report.most("memory after / before", now.pss_mib / before.pss_mib, _MOST_GROWTH)
    report.equal("shared memory segments", now.segments, before.segments)
    report.equal("processes", len(now.processes), len(before.processes))


def _truncated(folder: Path, good: Path) -> Path:
    bundle = shutil.copytree(good, folder / "truncated")
    model = bundle / "model.onnx"
    model.write_bytes(model.read_bytes()[:100_000])
    (bundle / "manifest.json").unlink()
    return bundle


def _wrong_tensor(folder: Path, good: Path) -> Path:
    bundle = shutil.copytree(good, folder / "wrong-tensor")
    spec = bundle / "detector.json"
    text = spec.read_text("utf-8").replace('"output": null', '"output": "another"')
    assert text != spec.read_text("utf-8")
    spec.write_text(text, "utf-8")
    (bundle / "manifest.json").unlink()
    return bundle


_BROKEN: dict[str, Callable[[Path, Path], Path]] = {"truncated network": _truncated, "wrong tensor": _wrong_tensor}
