# SPDX-License-Identifier: Apache-2.0
"""The action `inference` from spec to files, on a network that answers with the blue channel."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tao_reference
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ocdserve.builder.tao.cli import main
from ocdserve.builder.tao.infer.result_files import result_names

from ..conftest import BlueNetwork, Ocdnet, Run, picture, random_data_set

# A region of 40 x 10 grows by 39 * 9 * 1.5 / 96 = 5.48 pixels on each side.
WORD = (20, 30, 40, 10, 1.0)
ENDINGS = [".jpg", ".png", ".jpg.png", ".png.jpg", ".jpg.jpg", ".jpg.png.jpg"]
NAMES = [f"{stem}{ending}" for stem in ("a", "A", "b") for ending in ENDINGS]


@pytest.fixture
def infer(ocdnet: Ocdnet, blue_bundle: Path) -> Any:
    """Runs `inference` of the blue network at 256 x 160 on a folder."""

    def run(folder: Path, *overrides: str) -> Run:
        return ocdnet(
            "inference",
            f"inference.trt_engine={blue_bundle}",
            f"inference.input_folder={folder}",
            "inference.width=256",
            "inference.height=160",
            *overrides,
        )

    return run


def lines_of(run: Run, stem: str) -> list[list[float]]:
    return [
        [float(field) for field in line.split(",")] for line in (run.folder / f"{stem}.txt").read_text().splitlines()
    ]


def pixels_of(path: Path) -> Any:
    """Grey or RGB pixels of a written picture."""
    with Image.open(path) as opened:
        return np.asarray(opened)


class TestFiles:
    def test_an_image_has_three_files_in_tao_s_formats(self, infer: Any, tmp_path: Path) -> None:
        # Twice the network's size: source pixels are two network pixels.
        picture(tmp_path / "in" / "sign.png", [(40, 60, 80, 20, 1.0)], (512, 320))
        run = infer(tmp_path / "in")
        assert run.code == 0
        assert {path.name for path in run.folder.iterdir()} == {
            "sign.txt",
            "sign_result.jpg",
            "sign_pred.jpg",
        }
        (fields,) = lines_of(run, "sign")
        assert fields == pytest.approx([30, 50, 128, 50, 128, 88, 30, 88, 1.0], abs=1)
        assert (run.folder / "sign.txt").read_text().count(".") == 1, "only the score has a fraction"
        assert pixels_of(run.folder / "sign_result.jpg").shape == (320, 512, 3)
        probability = pixels_of(run.folder / "sign_pred.jpg")
        assert probability.shape == (160, 256)
        assert probability[35, 40] > 240 and probability[100, 200] < 15

    def test_boxes_are_outlined_in_red_two_pixels_thick(self, infer: Any, tmp_path: Path) -> None:
        picture(tmp_path / "in" / "a.png", [WORD])
        run = infer(tmp_path / "in")
        drawn = pixels_of(run.folder / "a_result.jpg").astype(int)
        is_red = (drawn[..., 0] > 120) & (drawn[..., 2] < 120)
        # Left side at x = 15, seen in a row between the corners and outside of the word.
        assert 2 <= int(is_red[42, 10:20].sum()) <= 3
        assert not is_red[42, 25:55].any()

    def test_nothing_found_is_an_empty_file(self, infer: Any, tmp_path: Path) -> None:
        picture(tmp_path / "in" / "a.png", [])
        assert (infer(tmp_path / "in").folder / "a.txt").read_text() == ""

    @pytest.mark.parametrize("polygon", ["true", "false"])
    @pytest.mark.parametrize("compat", ["fixed", "tao"])
    def test_the_lowest_box_comes_first(self, infer: Any, tmp_path: Path, compat: str, polygon: str) -> None:
        words = [(20, 60, 40, 10, 0.8), (100, 20, 40, 10, 0.7), (120, 60, 40, 10, 0.9), (30, 120, 40, 10, 1.0)]
        picture(tmp_path / "in" / "a.png", words)
        lines = lines_of(infer(tmp_path / "in", f"inference.polygon={polygon}", f"ocdserve.compat={compat}"), "a")
        assert [fields[-1] for fields in lines] == pytest.approx([1.0, 0.9, 0.8, 0.7], abs=0.01)

    def test_polygons_have_as_many_points_as_they_need(self, infer: Any, tmp_path: Path) -> None:
        """Fault 4."""
        picture(tmp_path / "in" / "a.png", [WORD, (20, 100, 80, 30, 0.9)])
        for compat in ("fixed", "tao"):
            lines = lines_of(infer(tmp_path / "in", "inference.polygon=true", f"ocdserve.compat={compat}"), "a")
            assert len(lines) == 2
            assert all(len(fields) > 9 and len(fields) % 2 == 1 for fields in lines)
            x, y = lines[1][:-1:2], lines[1][1:-1:2]
            assert (min(x), max(x), min(y), max(y)) == pytest.approx((15, 64, 25, 44), abs=1)

    def test_the_network_s_size_and_channels_are_the_spec_s(self, infer: Any, tmp_path: Path) -> None:
        picture(tmp_path / "in" / "a.png", [WORD])
        run = infer(tmp_path / "in", "inference.width=512", "inference.height=320")
        assert pixels_of(run.folder / "a_pred.jpg").shape == (320, 512)
        assert len(lines_of(run, "a")) == 1
        assert lines_of(infer(tmp_path / "in", "inference.img_mode=RGB"), "a") == []

    def test_windows_without_a_display_are_reported(
        self, infer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        matplotlib = pytest.importorskip("matplotlib", reason="matplotlib, which opens windows, is not installed")
        monkeypatch.setattr(matplotlib, "get_backend", lambda: "agg")
        picture(tmp_path / "in" / "a.png", [WORD])
        run = infer(tmp_path / "in", "inference.show=true")
        assert run.code == 0
        assert "inference.show opens no windows" in run.messages

    def test_windows_show_the_map_and_the_boxes(
        self, infer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib, which opens windows, is not installed")
        titles: list[str] = []

        def show() -> None:
            titles.extend(pyplot.figure(number).axes[0].get_title() for number in pyplot.get_fignums())

        monkeypatch.setattr("matplotlib.get_backend", lambda: "tkagg")
        monkeypatch.setattr(pyplot, "show", show)
        for name in ("a.png", "b.png"):
            picture(tmp_path / "in" / name, [WORD])
        assert infer(tmp_path / "in", "inference.show=true").code == 0
        assert titles == ["a_pred.jpg", "a_result.jpg", "b_pred.jpg", "b_result.jpg"]


class TestFaults:
    @pytest.mark.parametrize("polygon", ["false", "true"])
    def test_boxes_are_in_source_pixels(self, infer: Any, tmp_path: Path, polygon: str) -> None:
        """Fault 3, of TAO's training image: there they are in network pixels."""
        picture(tmp_path / "in" / "a.png", [(400, 200, 200, 60, 1.0)], (1024, 800))
        (fields,) = lines_of(infer(tmp_path / "in", f"inference.polygon={polygon}"), "a")
        x, y = fields[:-1:2], fields[1:-1:2]
        assert min(x) < 400 < 600 < max(x) < 700
        assert min(y) < 200 < 260 < max(y) < 340

    def test_images_with_the_same_stem_get_separate_results(self, infer: Any, tmp_path: Path) -> None:
        """Fault 26."""
        picture(tmp_path / "in" / "a.png", [WORD])
        picture(tmp_path / "in" / "a.bmp", [])
        picture(tmp_path / "in" / "b.png", [])
        run = infer(tmp_path / "in")
        assert len(lines_of(run, "a.png")) == 1
        assert lines_of(run, "a.bmp") == lines_of(run, "b") == []
        assert not (run.folder / "a.txt").exists()

    def test_tao_overwrites_them_with_a_warning(self, infer: Any, tmp_path: Path) -> None:
        picture(tmp_path / "in" / "a.png", [WORD])
        picture(tmp_path / "in" / "a.bmp", [])
        run = infer(tmp_path / "in", "ocdserve.compat=tao")
        assert len(lines_of(run, "a")) == 1
        assert "none are left of a.bmp" in run.messages

    def test_an_unreadable_image_is_named_and_the_others_are_processed(self, infer: Any, tmp_path: Path) -> None:
        """Fault 5."""
        picture(tmp_path / "in" / "a.png", [WORD])
        (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:100])
        run = infer(tmp_path / "in")
        assert run.code == 1
        assert "1 of 2 images could not be read" in run.messages and "b.png" in run.messages
        assert len(lines_of(run, "a")) == 1
        assert not (run.folder / "b.txt").exists()

    def test_batches_change_nothing(self, infer: Any, tmp_path: Path) -> None:
        """Fault 21: TAO knows the key and always takes one image."""
        data = random_data_set(tmp_path / "data", 5, 3)
        texts = []
        for size in (-1, 3):
            run = infer(data / "img", f"inference.batch_size={size}")
            texts.append([path.read_text() for path in sorted(run.folder.glob("*.txt"))])
        assert texts[0] == texts[1]
        assert len(texts[0]) == 5

    def test_an_invalid_size_is_reported_with_its_keys(self, infer: Any, tmp_path: Path) -> None:
        picture(tmp_path / "in" / "a.png", [WORD])
        run = infer(tmp_path / "in", "inference.width=250")
        assert run.code == 1
        assert "inference.width and inference.height: resize.width must be a multiple of the stride 32" in run.messages

    def test_an_image_is_never_overwritten(self, infer: Any, tmp_path: Path) -> None:
        picture(tmp_path / "results" / "a.png", [WORD])
        picture(tmp_path / "results" / "a_result.jpg", [WORD])
        run = infer(tmp_path / "results")
        assert run.code == 1 and "would overwrite the image" in run.messages

    @pytest.mark.parametrize(
        ("made", "message"),
        [(None, "does not exist"), ("folder", "holds no images"), ("file", "is a file"), ("zip", "extract it first")],
    )
    def test_a_missing_image_folder_is_refused(
        self, infer: Any, tmp_path: Path, made: str | None, message: str
    ) -> None:
        path = tmp_path / "in"
        if made == "folder":
            path.mkdir()
        elif made == "file":
            path.write_text("x")
        elif made == "zip":
            picture(tmp_path / "pictures" / "a.png", [WORD])
            path = Path(shutil.make_archive(str(path), "zip", tmp_path / "pictures"))
        run = infer(path)
        assert run.code == 1 and message in run.messages


class TestTaoMode:
    def test_boxes_equal_the_rules_box_for_box(self, infer: Any, blue_network: BlueNetwork, tmp_path: Path) -> None:
        images = random_data_set(tmp_path / "data", 12, 8) / "img"
        run = infer(images, "ocdserve.compat=tao")
        boxes = 0
        for path in images.iterdir():
            source = cv2.imread(str(path)).shape[:2]
            p = tao_reference.probability(blue_network(), tao_reference.network_input(path, 256, 160))
            found, scores = tao_reference.kept_boxes(*tao_reference.boxes_of(p, 0.3, 0.55, 1000, 1.5))
            expected = tao_reference.in_source_pixels(found, source, (160, 256)).reshape(-1, 8)
            lines = lines_of(run, path.stem)
            assert [line[:8] for line in lines] == expected.tolist()
            assert [line[8] for line in lines] == pytest.approx(scores.tolist(), abs=1e-6)
            boxes += len(lines)
        assert boxes > 20


class TestNames:
    def test_only_equal_stems_keep_their_suffixes(self) -> None:
        images = [Path(name) for name in ("a.jpg", "b.v2.png", "b.png", "A.png")]
        assert result_names(images) == ["a.jpg", "b.v2", "b", "A.png"]

    @given(st.lists(st.sampled_from(NAMES), unique_by=str.casefold, max_size=8))
    def test_no_two_images_write_to_the_same_files(self, names: list[str]) -> None:
        results = result_names([Path(name) for name in names])
        assert len({name.casefold() for name in results}) == len(names)
        for name, result in zip(names, results, strict=True):
            assert result in (name, Path(name).stem)


class TestCommand:
    def test_the_published_spec_runs_an_exported_onnx(
        self, blue_network: BlueNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The keys of TAO's own sample, and nothing changed but the paths and the network's size."""
        picture(tmp_path / "in" / "a.png", [WORD])
        (tmp_path / "spec.yaml").write_text(
            f"""
model: {{load_pruned_graph: false, pruned_graph_path: ''}}
inference:
  checkpoint: <required>
  input_folder: {tmp_path / "in"}
  width: 256
  height: 160
  img_mode: BGR
  polygon: false
  show: false
  results_dir: {tmp_path / "results"}
  post_processing:
    type: SegDetectorRepresenter
    args: {{thresh: 0.3, box_thresh: 0.55, max_candidates: 1000, unclip_ratio: 1.5}}
  trt_engine: {blue_network((160, 256))}
"""
        )
        assert main(["inference", "-e", str(tmp_path / "spec.yaml")]) == 0
        assert "1 boxes in 1 images" in capsys.readouterr().out
        last = json.loads((tmp_path / "results" / "status.json").read_text().splitlines()[-1])
        assert (last["status"], last["kpi"]["boxes"]) == ("SUCCESS", 1)
