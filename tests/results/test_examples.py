# SPDX-License-Identifier: Apache-2.0
"""Examples in docstrings and in the documentation's section on results run unchanged."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ocdserve.client.adapters
import ocdserve.results
from ocdserve.client import MockTransport, TextDetector
from ocdserve.perf.inputs.pictures import receipt
from ocdserve.results.detections import Detections

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "first-picture.md").read_text("utf-8")


def modules() -> list[str]:
    packages = (ocdserve.results, ocdserve.client.adapters)
    found = [name for one in packages for _, name, _ in pkgutil.iter_modules(one.__path__, f"{one.__name__}.")]
    return found


@pytest.mark.parametrize("name", modules())
def test_the_docstrings_examples_run(name: str) -> None:
    if name.endswith("rapidocr"):
        pytest.importorskip("rapidocr", reason="RapidOCR is not installed")
    module = importlib.import_module(name)
    assert doctest.testmod(module, extraglobs={"np": np, "Detections": Detections}).failed == 0


def part(title: str) -> list[str]:
    text = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_documentations_examples_on_results_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture = receipt()
    picture.image.save("photo.jpg")
    picture.image.save("poster.png")
    found = Detections(picture.quads, np.full(len(picture.quads), 0.9, np.float32), 720, 1080)

    def answer(_: Any) -> dict[str, Any]:
        count = len(found)
        sizes = {"COUNT": np.array([[count]], np.int32), "SIZE": np.array([[1080, 720]], np.int32)}
        return {"QUADS": found.quads[None], "SCORES": found.scores[None], **sizes}

    with TextDetector("grpc://h:1", transport=MockTransport(answer)) as detector:
        poster = detector.detect_tiled("poster.png", tile=1280, overlap=192)
    names: dict[str, Any] = {"found": found}
    [example] = part("Working with results")
    exec(example, names)
    assert names["crops"].pixels.shape[:2] == (len(picture.quads), 48)
    assert len(names["paragraphs"]) < len(picture.quads)
    assert Path("boxes.png").exists()
    assert len(poster) == len(picture.quads)
