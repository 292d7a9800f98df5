# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import signal
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from ocdserve.cli import finetune, main

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["finetune", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Five pictures with a word each."""
    folder = tmp_path / "labelled"
    for name in ("img", "gt"):
        (folder / name).mkdir(parents=True)
    for index in range(5):
        picture = np.full((200, 400, 3), 240, np.uint8)
        cv2.putText(picture, f"WORD {index}", (40, 120), cv2.FONT_HERSHEY_SIMPLEX, 2, (0, 0, 0), 4)
        cv2.imwrite(str(folder / "img" / f"{index}.png"), picture)
        (folder / "gt" / f"gt_{index}.txt").write_text("40,70,290,70,290,125,40,125,WORD\n")
    return folder


def test_without_the_extra_the_message_says_how_to_install_it(
    cli: Cli, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ocdserve.backend.device import pytorch

    monkeypatch.setattr(pytorch, "missing_modules", lambda: ["torch"])
    code, _, err = cli("--data", labelled, "--output", tmp_path / "out")
    assert code == 1 and "pip install 'ocdserve[train]'" in err
    assert not (tmp_path / "out").exists()


def test_defaults_are_those_of_the_options(tmp_path: Path) -> None:
    from ocdserve.builder.train.finetune.options import FineTuneOptions

    parser = argparse.ArgumentParser()
    finetune.add_arguments(parser)
    args = parser.parse_args(["--data", str(tmp_path), "--output", str(tmp_path / "out")])
    assert finetune._options(args) == FineTuneOptions(tmp_path, tmp_path / "out")


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _torch(self) -> None:
        torch = pytest.importorskip("torch")
        torch.set_num_threads(1)

    def test_an_output_that_exists(self, cli: Cli, labelled: Path) -> None:
        code, _, err = cli("--data", labelled, "--output", labelled)
        assert code == 1 and "--output" in err and "exists" in err

    def test_data_that_is_missing(self, cli: Cli, tmp_path: Path) -> None:
        code, _, err = cli("--data", tmp_path / "nowhere", "--output", tmp_path / "out")
        assert code == 1 and "nowhere" in err

    def test_pictures_without_labels(self, cli: Cli, labelled: Path, tmp_path: Path) -> None:
        code, _, err = cli("--data", labelled / "img", "--output", tmp_path / "out")
        assert code == 1 and "--self-distil" in err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["labelled"]

    def test_too_few_pictures(self, cli: Cli, labelled: Path, tmp_path: Path) -> None:
        for index in (3, 4):
            (labelled / "img" / f"{index}.png").unlink()
        code, _, err = cli("--data", labelled, "--output", tmp_path / "out")
        assert code == 1 and "has 3 pictures" in err

    def test_pictures_held_aside_without_text(self, cli: Cli, labelled: Path, tmp_path: Path) -> None:
        from ocdserve.builder.train.finetune.material import split

        for index in split(5, 0)[1]:
            (labelled / "gt" / f"gt_{index}.txt").write_text("40,70,290,70,290,125,40,125,###\n")
        code, _, err = cli("--data", labelled, "--output", tmp_path / "out")
        assert code == 1 and "there is no text in the 3 pictures" in err and "to judge on" in err

    def test_an_unreadable_picture_is_named(self, cli: Cli, labelled: Path, tmp_path: Path) -> None:
        from ocdserve.builder.train.finetune.material import split

        picture = labelled / "img" / f"{split(5, 0)[1][0]}.png"
        picture.write_bytes(b"no picture")
        code, _, err = cli("--data", labelled, "--output", tmp_path / "out")
        assert code == 1 and str(picture) in err

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("--seed", -1, "--seed must be from 0 to 4294967295; got -1"),
            ("--preset", "unheard-of", "--preset: must be one of"),
            ("--preset", "ocdnet", "the bundle default describes itself"),
        ],
    )
    def test_values_out_of_place(
        self, cli: Cli, labelled: Path, tmp_path: Path, option: str, value: object, message: str
    ) -> None:
        code, _, err = cli("--data", labelled, "--output", tmp_path / "out", option, value)
        assert code == 1 and message in err

    @pytest.mark.parametrize(("change", "kind"), [({"precision": "int8"}, "int8"), ({}, "folded")])
    def test_networks_of_lower_precision_and_folded_ones(
        self, cli: Cli, labelled: Path, tmp_path: Path, change: dict[str, str], kind: str
    ) -> None:
        from dataclasses import replace

        from ocdserve.backend import Bundle

        bundle = Bundle.load()
        folded = replace(bundle.spec.network, folded=kind == "folded")
        (tmp_path / "old").mkdir()
        Bundle(replace(bundle.spec, network=folded, **change), bundle.model_path).save(tmp_path / "old")
        code, _, err = cli("--data", labelled, "--output", tmp_path / "out", "--bundle", tmp_path / "old")
        assert code == 1 and f"is {kind}, which cannot be trained" in err


def test_sigterm_leaves_nothing_behind(
    cli: Cli, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from ocdserve.builder.train.finetune import run

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run, "opened", lambda options: signal.raise_signal(signal.SIGTERM))
    try:
        assert cli("--data", labelled, "--output", tmp_path / "out")[0] == 130
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labelled"]


@pytest.mark.long
def test_a_bundle_is_written_with_reports_and_served_at_once(cli: Cli, shared_data: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    for kind in ("img", "gt"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for file in sorted((shared_data / "receipts" / kind).iterdir())[:8]:
            (tmp_path / "data" / kind / file.name).symlink_to(file)
    from ocdserve.backend import PRESETS, Bundle, Detector

    # The default network at a size that it was not trained for has more to gain than the built-in `fast`.
    start, output = tmp_path / "start", tmp_path / "out"
    Bundle(PRESETS["ppocr-fast"], Bundle.load().model_path).save(start)
    origin = {"origin": "PP-OCRv6_det_small.onnx of rapidocr", "licence": "Apache-2.0"}
    (start / "report.json").write_text(json.dumps({"weights": origin}), "utf-8")
    code, out, err = cli(
        "--data", tmp_path / "data", "--bundle", start, "--output", output, "--steps", 10, "--threads", 1
    )
    assert code == 0, err
    assert "held-aside pictures (3)" in out and f"ocdserve serve --bundle {output}" in out
    assert "fine-tuning" in err
    report = json.loads((output / "report.json").read_text("utf-8"))["finetuning"]
    assert report["weights"]["licence"] == "Apache-2.0" and "PP-OCRv6_det_small.onnx" in report["weights"]["origin"]
    assert report["data"]["trained_on"] == 5 and len(report["data"]["held_aside"]) == 3
    assert report["held_aside"]["gain"] > 0 and report["forgetting"]["drawn"]["gain"] > -1
    page = (output / "report.html").read_text("utf-8")
    assert page.count("data:image/jpeg") == 6
    bundle = Bundle.load(output, require_manifest=True)
    assert bundle.spec.name == "ppocr-fast-finetuned" and bundle.spec.resize.side == 480
    image = sorted((shared_data / "receipts" / "img").iterdir())[20]
    assert len(Detector.load(output, threads=1).detect(image).quads) > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out", "start"]
