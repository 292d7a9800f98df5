# SPDX-License-Identifier: Apache-2.0
"""The docstrings' examples run unchanged, and user code passes mypy --strict."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from kserve_fakes import grpc_server

import ocdserve.client

URL = "grpc://127.0.0.1:8001"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the files used by the examples."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "receipt.jpg", "scans/a.jpg", "scans/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"jpeg")


def docstring_examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    names = [name for _, name, _ in pkgutil.walk_packages(ocdserve.client.__path__, "ocdserve.client.")]
    for name in ("ocdserve.client", *names):
        if name.startswith("ocdserve.client.adapters"):
            # The adapters' examples need other libraries, and have their own tests.
            continue
        module = importlib.import_module(name)
        for test in finder.find(module, name):
            if test.examples:
                found[test.name] = test
    return list(found.values())


@pytest.mark.parametrize("test", docstring_examples(), ids=lambda test: test.name)
def test_the_docstrings_examples_run(test: doctest.DocTest, photos: None) -> None:
    lines = [example.source for example in test.examples]
    source = "".join(lines)
    if "await " in source or "async " in source:
        source = f"import asyncio\nasync def main():\n{textwrap.indent(source, '    ')}\nasyncio.run(main())\n"
    with grpc_server() as (url, _):
        exec(compile(source.replace(URL, url), test.name, "exec"), test.globs)


USER = """
import asyncio
from pathlib import Path

import numpy as np
from ocdserve.client import AsyncTextDetector, Detections, Hooks, Outcome, Overrides, RequestEvent, Retry, TextDetector

strict: Overrides = {"box_thresh": 0.7, "polygons": True}


def log(event: RequestEvent) -> None:
    print(event.request_id)


def scan(folder: Path) -> list[Detections]:
    with TextDetector("grpc://127.0.0.1:8001", retry=Retry(3), hooks=Hooks(on_request=log)) as detector:
        found: Detections = detector.detect(np.zeros((4, 4, 3), np.uint8), bgr=True, **strict)
        outcomes: list[Outcome[Path]] = list(detector.detect_many(folder.iterdir(), concurrency=4, min_size=2.0))
        return [found, *detector.detect_batch(["a.jpg", b"jpeg"]), *(one.result() for one in outcomes)]


async def scan_async(folder: Path) -> int:
    async with AsyncTextDetector(["grpc://a:1", "https://b:2"]) as detector:
        texts = len(await detector.detect(folder / "a.jpg", thresh=0.2))
        async for outcome in detector.detect_many(folder.iterdir()):
            texts += 0 if outcome.detections is None else len(outcome.detections)
        return texts


asyncio.run(scan_async(Path("x")))
"""
MISTAKES = """
from ocdserve.client import TextDetector

detector = TextDetector("grpc://127.0.0.1:8001", timeout="long")
detector.detect("a.jpg", box_thresh="high")
detector.detect("a.jpg", box_tresh=0.5)
detector.detect(5)
"""


def mypy(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "user.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-color-output", "user.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_user_code_passes_mypy_strict_and_its_mistakes_are_reported(tmp_path: Path) -> None:
    done = mypy(tmp_path, USER)
    assert done.returncode == 0, done.stdout
    done = mypy(tmp_path, MISTAKES)
    assert sorted(re.findall(r"user.py:(\d+): error: .*\[(.*)\]", done.stdout)) == [
        ("4", "arg-type"),
        ("5", "arg-type"),
        ("6", "call-arg"),
        ("7", "arg-type"),
    ], done.stdout
