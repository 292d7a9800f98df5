# SPDX-License-Identifier: Apache-2.0
"""Where the weights come from that are trained further."""

import json
from pathlib import Path

import pytest

from ocdserve.builder.train.finetune.report import origin_of


@pytest.mark.parametrize("name", [None, "default", "default-fp32", "fast", "lite", "lite-fp32"])
def test_built_in_detectors_have_an_origin_and_a_licence(name: str | None) -> None:
    found = origin_of(name, "00")
    assert (found["detector"], found["onnx_sha256"]) == (name or "default", "00")
    assert "PP-OCRv6_det_small.onnx of rapidocr 3." in found["origin"] and found["licence"] == "Apache-2.0"


@pytest.mark.parametrize("wrap", [lambda report: report, lambda report: {"finetuning": report}])
def test_a_bundle_passes_on_what_its_report_says(tmp_path: Path, wrap: object) -> None:
    report = {"weights": {"origin": "mine", "licence": "MIT", "detector": "x"}}
    (tmp_path / "report.json").write_text(json.dumps(wrap(report)), "utf-8")  # type: ignore[operator]
    assert origin_of(tmp_path, "00") == {
        "detector": str(tmp_path),
        "onnx_sha256": "00",
        "origin": "mine",
        "licence": "MIT",
    }


@pytest.mark.parametrize("text", [None, "[]", "{}", "no JSON"])
def test_without_a_report_the_licence_is_not_known(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text, "utf-8")
    assert origin_of(tmp_path, "00")["licence"] == "not known: as that of the network that was given"
