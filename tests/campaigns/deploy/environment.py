# SPDX-License-Identifier: Apache-2.0
"""A repository with a packed environment works in a second Triton, and one that cannot is explained in time."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ocdserve.backend import Detector
from ocdserve.backend.publish.environment import PackedEnvironment
from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.verification import second_triton, verify
from ocdserve.client import TextDetector
from ocdserve.contract import UnavailableError
from ocdserve.perf.inputs.image_sets import draw_images
from tests.campaigns.report import Report

REPOSITORY = Path(__file__).resolve().parents[3]
_PICTURES = 20
_LIMIT_S = 300.0
# For a Triton whose model never starts.
_SHORT_LIMIT_S = 15.0
_OURS = "lib/python{}.{}/site-packages".format(*sys.version_info[:2])


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the part."""
    with tempfile.TemporaryDirectory(prefix="ocdserve-environment-") as name:
        folder = Path(name)
        environment = _packed(folder / "environment.tar.gz")
        report.table(
            "Packed environment",
            ("file MB", "unpacked MB"),
            [(environment.path.stat().st_size / 1e6, environment.unpacked_bytes / 1e6)],
            text_columns=0,
        )
        repository = publish(PublishOptions(folder / "models", environment=environment))
        images = [image.encoded for image in draw_images("mixed", 4 if args.short else _PICTURES, 17).images]
        _judge_answers(repository, environment, images, report)
        _judge_failures(folder, report)


def _packed(path: Path) -> PackedEnvironment:
    """What scripts/pack_environment.sh makes of this checkout, with the Python that .venv was made of."""
    python = Path(os.path.realpath(sys.executable))
    subprocess.run(
        [REPOSITORY / "scripts" / "pack_environment.sh", path, f"{REPOSITORY}[models]"],
        env={**os.environ, "PYTHON": str(python)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return PackedEnvironment.read(path)


def _judge_answers(repository: Path, environment: PackedEnvironment, images: Sequence[bytes], report: Report) -> None:
    before, began = _unpacked(), time.monotonic()
    with second_triton(repository, environment, None, _LIMIT_S) as port:
        report.say(f"ready after {time.monotonic() - began:.0f} s")
        report.equal("environments unpacked, for four models", len(_unpacked() - before), 1)
        detector = Detector.load()
        for model in ("ocdnet", "ocdnet_fused"):
            with TextDetector(f"http://127.0.0.1:{port}", model=model) as client:
                different = sum(
                    client.detect(image).quads.tobytes() != detector.detect(image).quads.tobytes() for image in images
                )
            report.equal(f"{model}: pictures of {len(images)} with other boxes than the detector's", different, 0)
    report.equal("environments left behind", len(_unpacked() - before), 0)


def _judge_failures(folder: Path, report: Report) -> None:
    """Environments that lack packages, and that make Triton wait for ever."""
    for name, activate, limit_s, reason in (
        ("without packages", None, _LIMIT_S, "No module named"),
        ("that never starts", "while :; do sleep 1; done\n", _SHORT_LIMIT_S, f"not ready within {_SHORT_LIMIT_S:g} s"),
    ):
        environment = _broken(folder / name.replace(" ", "-"), activate)
        repository = publish(PublishOptions(folder / "broken", environment=environment))
        before, began = _unpacked(), time.monotonic()
        try:
            said = str(verify(repository, environment, timeout_s=limit_s))
        except UnavailableError as error:
            said = str(error)
        seconds = time.monotonic() - began
        found = re.findall(f".{{0,60}}{re.escape(reason)}.{{0,30}}", said)
        report.rule(f"an environment {name} is explained", found[0] if found else said[-200:], bool(found))
        report.most(f"an environment {name}: time until then", seconds, limit_s + 15.0, " s")
        report.equal(f"an environment {name}: left behind", len(_unpacked() - before), 0)


def _broken(folder: Path, activate: str | None) -> PackedEnvironment:
    """An environment of ocdserve alone, with another script to activate it."""
    subprocess.run([os.path.realpath(sys.executable), "-m", "venv", "--without-pip", folder], check=True)
    package = folder / _OURS / "ocdserve"
    for source in ("client", "python_backend"):
        shutil.copytree(REPOSITORY / source / "ocdserve", package, dirs_exist_ok=True)
    if activate is not None:
        (folder / "bin" / "activate").write_text(activate)
    path = folder.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, ".")
    return PackedEnvironment.read(path)


def _unpacked() -> set[Path]:
    return {path for path in Path("/tmp").glob("python_env_*") if any(path.iterdir())}
