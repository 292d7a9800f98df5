# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable
from pathlib import Path

import bars_recogniser
import cv2
import numpy as np
import pytest

from ocdserve.backend import Bundle
from ocdserve.builder import BuildConfig
from ocdserve.cli import main
from ocdserve.contract import InvalidInputError

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["build", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def network() -> Path:
    from ocdserve.backend import Bundle

    return Bundle.load().model_path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(2):
        picture = np.full((200, 400, 3), 240, np.uint8)
        cv2.putText(picture, f"WORD {index}", (40, 120), cv2.FONT_HERSHEY_SIMPLEX, 2, (0, 0, 0), 4)
        cv2.imwrite(str(folder / f"{index}.png"), picture)
    return folder


class TestBuild:
    def test_fp32_in_one_command(self, cli: Cli, network: Path, tmp_path: Path) -> None:
        code, out, _ = cli("--onnx", network, "--output", tmp_path / "b")
        assert code == 0
        assert "recognised as an export of the preset ppocr" in out
        assert f"ocdserve serve --bundle {tmp_path / 'b'}" in out

    @pytest.mark.parametrize(
        ("name", "detector"),
        [("default", "ppocr"), ("default-fp32", "ppocr"), ("fast", "ppocr-fast"), ("lite", "ppocr-lite")],
    )
    def test_built_in_detectors_are_built_as_they_are_served(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, detector: str
    ) -> None:
        asked = []

        def build(config: BuildConfig, progress: object) -> None:
            asked.append(config)
            raise InvalidInputError("enough")

        monkeypatch.setattr("ocdserve.builder.build", build)
        assert cli("--kind", "detector", "--onnx", name, "--output", tmp_path / "b")[0] == 1
        (config,) = asked
        assert config.detector == Bundle.load(name).spec and config.name == detector == config.detector.name

    def test_int8_reports_the_gate_and_shows_progress(
        self, cli: Cli, network: Path, pictures: Path, tmp_path: Path
    ) -> None:
        code, out, err = cli(
            "--onnx", network, "--output", tmp_path / "b", "--precision", "int8", "--calibration-images", pictures,
            "--min-agreement", "0",
        )  # fmt: skip
        assert code == 0
        assert "of the convolutions' multiplications in 8 bits" in out and "gate passed on 1 images" in out
        assert "calibration" in err and "accuracy gate" in err
        code, out, _ = cli("--explain", "--output", tmp_path / "b")
        assert code == 0 and "Conv.0" in out and "stem" in out

    def test_a_refusal_keeps_the_lines_of_its_table(
        self, cli: Cli, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ocdserve import builder

        def refuse(*_: object) -> None:
            raise builder.GateError("it loses too much.\n  images   20\n  loss   3.29 points")

        monkeypatch.setattr(builder, "build", refuse)
        code, out, err = cli("--onnx", network, "--output", tmp_path / "b")
        assert (code, out) == (1, "")
        assert err == "ocdserve build: it loses too much.\n  images   20\n  loss   3.29 points\n"

    def test_json_prints_the_report_alone(self, cli: Cli, network: Path, tmp_path: Path) -> None:
        code, out, err = cli("--onnx", network, "--output", tmp_path / "b", "--json", "-")
        assert code == 0 and err == ""
        assert out == (tmp_path / "b" / "report.json").read_text()
        assert json.loads(out)["onnx"] == network.name
        code, out, _ = cli("--explain", "--output", tmp_path / "b", "--json", tmp_path / "copy.json")
        assert code == 0 and "in fp32" in out
        assert (tmp_path / "copy.json").read_text() == (tmp_path / "b" / "report.json").read_text()

    def test_the_built_in_network_needs_no_path(self, cli: Cli, network: Path, tmp_path: Path) -> None:
        assert cli("--onnx", "default", "--output", tmp_path / "b", "--json", "-")[0] == 0
        assert json.loads((tmp_path / "b" / "report.json").read_text())["onnx"] == network.name

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--precision", "int4"], "precision must be one of fp32, fp16, int8"),
            (["--precision", "int8"], "needs photographs"),
            (["--precision", "fp8-experimental"], "fp8-experimental is for tensorrt"),
            (["--runtime", "caffe"], "runtime must be one of openvino"),
            (["--workspace", "2 GB RAM"], "a size must be a number"),
            (["--calibration-images", "/nowhere"], "there is no folder '/nowhere'"),
            (["--max-hmean-loss", "-1"], "from 0 to 100 points"),
            (["--preset", "craft"], "preset must be one of"),
            (["--output-tensor", "prob"], "by --output-tensor; got 'prob'"),
            (["--color", "GRAY"], "--color must be one of BGR, RGB"),
            (["--resize", "640x640"], "--resize must be fixed:WIDTHxHEIGHT"),
            (["--std", "0.229,0.224,0.225"], "--scale 0.00392156862745098"),
            (["--input-layout", "nhwc"], "with images N x H x W x 3 (--input-layout)"),
        ],
    )
    def test_a_wrong_option_is_reported(
        self, cli: Cli, network: Path, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        code, _, err = cli("--onnx", network, "--output", tmp_path / "b", *arguments)
        assert code != 0 and message in err
        assert not (tmp_path / "b").exists()

    def test_options_of_the_export_reach_the_bundle(self, cli: Cli, network: Path, tmp_path: Path) -> None:
        code, _, _ = cli(
            "--onnx", network, "--output", tmp_path / "b", "--output-tensor", "fetch_name_0", "--color", "RGB",
            "--scale", "0.00392156862745098", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5",
            "--resize", "letterbox:960x640", "--preset", "ppocr",
        )  # fmt: skip
        assert code == 0
        spec = json.loads((tmp_path / "b" / "detector.json").read_text())
        assert spec["network"]["color"] == "RGB" and spec["network"]["mean"] == pytest.approx([127.5] * 3)
        assert spec["network"]["std"] == pytest.approx([127.5] * 3)
        assert (spec["resize"]["kind"], spec["resize"]["width"], spec["resize"]["height"]) == ("letterbox", 960, 640)

    def test_three_numbers_are_needed(self, cli: Cli, network: Path, tmp_path: Path) -> None:
        code, _, err = cli("--onnx", network, "--output", tmp_path / "b", "--mean", "1,2")
        assert code != 0 and "--mean" in err and "three numbers" in err

    def test_neither_network_nor_explain(self, cli: Cli, tmp_path: Path) -> None:
        code, _, err = cli("--output", tmp_path / "b")
        assert code != 0 and "--onnx must name" in err

    @pytest.mark.parametrize("option", [[], ["--json", "-"]])
    def test_a_bundle_that_was_not_built_is_reported(
        self, cli: Cli, network: Path, tmp_path: Path, option: list[str]
    ) -> None:
        from ocdserve.backend import Bundle

        Bundle.load().save(tmp_path / "b")
        code, _, err = cli("--explain", "--output", tmp_path / "b", *option)
        assert code == 1 and "holds no report.json" in err


class TestRecogniser:
    @pytest.fixture
    def bars(self, tmp_path: Path) -> Path:
        import onnx

        onnx.save(bars_recogniser.network(), str(tmp_path / "bars.onnx"))
        return tmp_path / "bars.onnx"

    def test_it_is_recognised_and_judged_by_what_it_reads(self, cli: Cli, bars: Path, tmp_path: Path) -> None:
        data = bars_recogniser.dataset(tmp_path / "data", [["rgb", "bg"], ["gbr", "rr"]])
        code, out, _ = cli(
            "--onnx", bars, "--output", tmp_path / "b", "--precision", "int8", "--runtime", "onnxruntime",
            "--evaluate-data", data, "--max-cer-loss", "3", "--threads", "1",
        )  # fmt: skip
        assert code == 0
        assert "gate on reading passed on 2 lines of 1 images (the target): CER 0.0000 -> 0.0000" in out
        assert f"ocdserve serve --recogniser {tmp_path / 'b'}" in out
        assert json.loads((tmp_path / "b/report.json").read_text())["gate"]["limits"]["cer"] == 3
        code, out, _ = cli("--explain", "--output", tmp_path / "b")
        assert code == 0 and out.startswith("bars.onnx in int8")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                ["--preset", "ppocr"],
                "--preset is for a detector, and bars.onnx is taken for a recogniser. Drop --preset",
            ),
            (["--max-hmean-loss", "1"], "--max-hmean-loss is for a detector"),
            (
                ["--kind", "detector", "--height", "48"],
                "--height is for a recogniser, and bars.onnx is taken for a det",
            ),
            (["--kind", "reader"], "--kind must be one of detector, recogniser; got 'reader'"),
            (["--resize", "fixed:320x48"], "--resize of a recogniser must be one of pad, stretch; got 'fixed:320x48'"),
        ],
    )
    def test_options_of_the_other_kind_are_refused(
        self, cli: Cli, bars: Path, tmp_path: Path, options: list[str], message: str
    ) -> None:
        code, _, err = cli("--onnx", bars, "--output", tmp_path / "b", *options)
        assert code == 1 and message in err
