# SPDX-License-Identifier: Apache-2.0
"""The action `evaluate` from spec to files, on a network that answers with the blue channel."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tao_reference
from PIL import Image

from ocdserve.backend import Bundle
from ocdserve.backend.network.onnxruntime import OnnxRuntimeNetwork
from ocdserve.backend.spec.presets import PRESETS
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.builder.tao.cli import main

from ..conftest import BlueNetwork, Ocdnet, Run, label, line_of, picture, random_data_set

SIZE = "dataset.validate_dataset.args.pre_processes=[{type: Resize2D, args: {short_size: [256, 160]}}]"
# A region of 40 x 10 grows by 39 * 9 * 1.5 / 96 = 5.48 pixels on each side.
WORD = (20, 30, 40, 10, 1.0)
QUAD = [[15, 25], [64, 25], [64, 44], [15, 44]]
OTHER = (100, 100, 60, 12, 0.8)
OTHER_QUAD = [[93, 93], [166, 93], [166, 118], [93, 118]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two images: one with both words labelled, one with a word that no label knows."""
    folder = tmp_path / "data"
    picture(folder / "img" / "img_2.png", [WORD, OTHER])
    label(folder, "img_2", [line_of(QUAD, "one"), line_of(OTHER_QUAD, "two"), "200,10,240,10,240,30,200,30,three"])
    picture(folder / "img" / "img_10.png", [WORD, OTHER])
    label(folder, "img_10", [line_of(QUAD, "one"), line_of(np.add(OTHER_QUAD, (0, 30)), "two")])
    return folder


@pytest.fixture
def evaluate(ocdnet: Ocdnet, blue_bundle: Path) -> Any:
    """Runs `evaluate` of the blue network at 256 x 160 on a data set."""

    def run(data: Path, *overrides: str) -> Run:
        paths = f"dataset.validate_dataset.data_path=[{data}]"
        return ocdnet("evaluate", f"evaluate.trt_engine={blue_bundle}", paths, SIZE, *overrides)

    return run


class TestFiles:
    def test_results_json_has_tao_s_three_figures_as_numbers(self, evaluate: Any, data: Path) -> None:
        run = evaluate(data)
        assert run.code == 0, run.messages
        results = run.json("results.json")
        assert list(results) == ["Precision", "Recall", "F-measure"]
        # 3 of 4 detections, 3 of 5 labels.
        assert results == pytest.approx({"Precision": 3 / 4, "Recall": 3 / 5, "F-measure": 2 / 3})

    def test_the_figures_of_the_status_are_numbers(self, evaluate: Any, data: Path) -> None:
        """Faults 22 and 28."""
        kpi = evaluate(data).kpi
        assert kpi["hmean"] == pytest.approx(2 / 3)
        assert (kpi["images"], kpi["unreadable_images"]) == (2, 0)

    def test_report_json_lists_each_image_instance_and_detection(self, evaluate: Any, data: Path) -> None:
        """Fault 28."""
        report = evaluate(data).json("report.json")
        assert [Path(image["image"]).name for image in report["per_image"]] == ["img_2.png", "img_10.png"]
        first, second = report["per_image"]
        assert (first["matched"], first["detections"], first["truths"]) == (2, 2, 3)
        assert [(region["text"], region["state"]) for region in first["ground_truth"]] == [
            ("one", "matched"),
            ("two", "matched"),
            ("three", "missed"),
        ]
        assert sorted(region["state"] for region in second["found"]) == ["false", "matched"]
        (false,) = [region for region in second["found"] if region["state"] == "false"]
        assert np.allclose(false["polygon"], OTHER_QUAD, atol=1.0)
        assert false["score"] == pytest.approx(0.8, abs=1 / 255)
        assert report["images_per_second"] > 0

    def test_fixed_and_swept_figures_are_both_reported(self, evaluate: Any, data: Path) -> None:
        """Fault 9: the spec's threshold decides, the best one on these images is only reported."""
        run = evaluate(data, "evaluate.post_processing.args.thresh=0.9")
        assert run.json("results.json") == pytest.approx({"Precision": 1, "Recall": 2 / 5, "F-measure": 4 / 7})
        report = run.json("report.json")
        assert (report["fixed"]["thresh"], report["fixed"]["hmean"]) == (0.9, pytest.approx(4 / 7))
        sweep = {row["thresh"]: row["hmean"] for row in report["swept"]["by_thresh"]}
        assert list(sweep) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
        assert sweep[0.3] == pytest.approx(2 / 3)
        assert sweep[0.9] == pytest.approx(4 / 7)
        assert report["swept"]["best_by_thresh"]["hmean"] == pytest.approx(2 / 3)

    def test_figures_are_reported_at_each_score_threshold(self, evaluate: Any, data: Path) -> None:
        rows = evaluate(data).json("report.json")["swept"]["by_box_thresh"]
        assert [row["box_thresh"] for row in rows] == [0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
        assert [row["detections"] for row in rows] == [4, 4, 4, 4, 4, 4, 2, 2, 2]

    def test_the_worst_images_are_drawn_with_matches_and_mistakes_in_colour(self, evaluate: Any, data: Path) -> None:
        run = evaluate(data)
        with Image.open(run.folder / "worst.png") as opened:
            sheet = np.asarray(opened)
        # Two tiles side by side, below a legend: the image with one match of two comes first.
        left, right = sheet[36:, : sheet.shape[1] // 2], sheet[36:, sheet.shape[1] // 2 :]
        red, amber, green = (255, 50, 50), (255, 190, 0), (0, 210, 70)

        def has(tile: Any, colour: tuple[int, int, int]) -> bool:
            return bool((tile == colour).all(axis=-1).any())

        assert has(left, red) and has(left, amber) and has(left, green)
        assert not has(right, red)
        assert has(right, amber) and has(right, green)

    def test_without_mistakes_no_contact_sheet_is_written(self, evaluate: Any, tmp_path: Path) -> None:
        picture(tmp_path / "data" / "img" / "a.png", [WORD])
        label(tmp_path / "data", "a", [line_of(QUAD, "one")])
        run = evaluate(tmp_path / "data")
        assert run.json("results.json")["F-measure"] == 1
        assert not (run.folder / "worst.png").exists()

    def test_texts_can_be_left_out_of_the_report(self, evaluate: Any, data: Path) -> None:
        run = evaluate(data, "dataset.validate_dataset.args.filter_keys=[texts]")
        assert "text" not in run.json("report.json")["per_image"][0]["ground_truth"][0]


class TestFaults:
    def test_an_image_without_text_counts_its_false_detections(self, evaluate: Any, tmp_path: Path) -> None:
        """Fault 6."""
        for stem in ("a", "b"):
            picture(tmp_path / "data" / "img" / f"{stem}.png", [WORD])
        label(tmp_path / "data", "a", [line_of(QUAD, "one")])
        label(tmp_path / "data", "b", [])
        assert evaluate(tmp_path / "data").json("results.json")["Precision"] == 0.5
        assert evaluate(tmp_path / "data", "ocdserve.compat=tao").json("results.json")["Precision"] == 1

    def test_an_unreadable_image_is_named_and_counted_but_not_replaced(self, evaluate: Any, data: Path) -> None:
        """Fault 5."""
        (data / "img" / "broken.jpg").write_bytes((data / "img" / "img_2.png").read_bytes()[:200])
        label(data, "broken", [line_of(QUAD, "one")])
        (data / "img" / "empty.png").write_bytes(b"")
        label(data, "empty", [line_of(QUAD, "one")])
        for compat in ("fixed", "tao"):
            run = evaluate(data, f"ocdserve.compat={compat}")
            assert run.code == 1
            assert "2 of 4 images could not be read" in run.messages
            assert "broken.jpg" in run.messages and "empty.png" in run.messages
            report = run.json("report.json")
            assert [Path(entry["image"]).name for entry in report["unreadable"]] == ["broken.jpg", "empty.png"]
            assert [Path(image["image"]).name for image in report["per_image"]] == ["img_2.png", "img_10.png"]
            assert run.json("results.json")["F-measure"] == pytest.approx(2 / 3)

    @pytest.mark.parametrize("compat", ["fixed", "tao"])
    def test_polygons_can_be_evaluated(self, evaluate: Any, data: Path, compat: str) -> None:
        """Fault 4."""
        run = evaluate(data, "evaluate.metric.args.is_output_polygon=true", f"ocdserve.compat={compat}")
        assert run.json("results.json") == pytest.approx({"Precision": 3 / 4, "Recall": 3 / 5, "F-measure": 2 / 3})
        assert len(run.json("report.json")["per_image"][0]["found"][0]["polygon"]) > 4

    def test_max_candidates_keeps_the_highest_scores(self, evaluate: Any, data: Path) -> None:
        """Fault 12: TAO keeps the lower one of the two words, ours the more probable."""
        cap = "evaluate.post_processing.args.max_candidates=1"
        (ours,) = evaluate(data, cap).json("report.json")["per_image"][0]["found"]
        (tao,) = evaluate(data, cap, "ocdserve.compat=tao").json("report.json")["per_image"][0]["found"]
        assert (ours["score"], tao["score"]) == (pytest.approx(1), pytest.approx(0.8, abs=1e-3))

    def test_a_line_without_text_does_not_shift_the_flags(self, evaluate: Any, tmp_path: Path) -> None:
        """Fault 8."""
        picture(tmp_path / "data" / "img" / "a.png", [WORD, OTHER])
        label(tmp_path / "data", "a", [line_of(QUAD, "")[:-1], line_of(OTHER_QUAD, "###")])
        report = evaluate(tmp_path / "data").json("report.json")
        assert [region["state"] for region in report["per_image"][0]["ground_truth"]] == ["matched", "ignored"]
        assert sorted(region["state"] for region in report["per_image"][0]["found"]) == ["ignored", "matched"]

    def test_the_aspect_is_kept_where_the_spec_leaves_the_size_to_the_bundle(
        self, evaluate: Any, blue_network: BlueNetwork, tmp_path: Path
    ) -> None:
        """Fault 18: stretched to 256 x 160, a word of 10 x 10 pixels is 2.5 wide, which is too narrow to be one."""
        picture(tmp_path / "data" / "img" / "a.png", [(500, 60, 10, 10, 1.0)], (1024, 160))
        label(tmp_path / "data", "a", ["497,57,512,57,512,72,497,72,a"])
        resize = ResizePolicy(kind="short_side", side=160)
        spec = replace(PRESETS["ocdnet"], resize=resize)
        Bundle(spec, blue_network()).save(tmp_path / "aspect")
        engine = f"evaluate.trt_engine={tmp_path / 'aspect'}"
        assert evaluate(tmp_path / "data", engine).json("results.json")["Recall"] == 0
        steps = "dataset.validate_dataset.args.pre_processes=[]"
        assert evaluate(tmp_path / "data", engine, steps).json("results.json")["Recall"] == 1

    def test_without_a_sweep_only_the_spec_s_threshold_is_reported(self, evaluate: Any, data: Path) -> None:
        report = evaluate(data, "ocdserve.sweep=false").json("report.json")
        assert report["swept"]["by_thresh"] == [] and report["swept"]["best_by_thresh"] is None
        assert report["fixed"]["hmean"] == pytest.approx(2 / 3)


class TestKeys:
    def test_batches_and_workers_change_no_figure(self, evaluate: Any, tmp_path: Path) -> None:
        """Faults 16 and 20."""
        data = random_data_set(tmp_path / "data", 9, 5)
        loader = "dataset.validate_dataset.loader"
        reports = [
            evaluate(data, f"{loader}.batch_size={batch}", f"{loader}.num_workers={workers}").json("report.json")
            for batch, workers in ((1, 0), (4, 3), (16, 1))
        ]
        assert reports[0]["per_image"] == reports[1]["per_image"] == reports[2]["per_image"]
        assert len(reports[0]["per_image"]) == 9

    @pytest.mark.parametrize(("action", "loader", "expected"), [(1, 1, 1), (3, 1, 3), (3, 2, 2)])
    def test_the_action_s_batch_size_counts_unless_the_loader_has_one(
        self,
        evaluate: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        action: int,
        loader: int,
        expected: int,
    ) -> None:
        """Fault 21: in TAO `evaluate.batch_size` has no effect."""
        batches: list[int] = []
        infer = OnnxRuntimeNetwork.infer

        def counted(network: OnnxRuntimeNetwork, images: Any) -> Any:
            batches.append(len(images))
            return infer(network, images)

        monkeypatch.setattr(OnnxRuntimeNetwork, "infer", counted)
        evaluate(
            random_data_set(tmp_path / "data", 6, 5),
            f"evaluate.batch_size={action}",
            f"dataset.validate_dataset.loader.batch_size={loader}",
            "ocdserve.runtime=onnxruntime",
        )
        # The first is the picture on which a network is tried when it is loaded.
        assert batches == [1, *[expected] * (6 // expected)]

    @pytest.mark.parametrize("compat", ["fixed", "tao"])
    def test_uber_s_labels_are_read_from_a_list(self, evaluate: Any, tmp_path: Path, compat: str) -> None:
        picture(tmp_path / "a.png", [WORD, OTHER])
        (tmp_path / "a.txt").write_text(
            "15 25 40 24 64 25 64 44 15 44 15 25\tEXIT\n93 93 166 93 166 118 93 118 93 93\tTWO WORDS\n"
        )
        (tmp_path / "list.txt").write_text(f"{tmp_path / 'a.png'}\t{tmp_path / 'a.txt'}\n")
        run = evaluate(
            tmp_path / "list.txt",
            "dataset.validate_dataset.data_name=UberDataset",
            f"ocdserve.compat={compat}",
        )
        (image,) = run.json("report.json")["per_image"]
        assert [region["state"] for region in image["ground_truth"]] == ["matched", "ignored"]
        assert run.json("results.json")["F-measure"] == pytest.approx(1)

    @pytest.mark.parametrize(("mode", "found"), [("BGR", 2), ("RGB", 0), ("GRAY", 0)])
    def test_the_network_gets_the_channels_in_the_order_that_img_mode_says(
        self, evaluate: Any, data: Path, mode: str, found: int
    ) -> None:
        # RGB puts red first, which is 30 of 255; their brightness is about a third.
        run = evaluate(data, f"dataset.validate_dataset.args.img_mode={mode}")
        assert len(run.json("report.json")["per_image"][0]["found"]) == found
        if mode == "RGB":
            assert "trained with the channel order BGR, but img_mode is RGB" in run.messages
            assert "the network gets RGB, as the spec says" in run.messages

    def test_grey_fills_all_channels_with_the_luma(self, evaluate: Any, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        pixels = np.zeros((160, 256, 3), np.uint8)
        pixels[30:40, 20:60] = (250, 250, 0)
        (folder / "img").mkdir(parents=True)
        Image.fromarray(pixels).save(folder / "img" / "a.png")
        label(folder, "a", [line_of(QUAD, "one")])
        grey = "dataset.validate_dataset.args.img_mode=GRAY"
        (found,) = evaluate(folder, grey).json("report.json")["per_image"][0]["found"]
        # Rec. 601: 0.299 and 0.587 of 250.
        assert found["score"] == pytest.approx(0.886 * 250 / 255, abs=1 / 255)
        run = evaluate(folder, grey, "ocdserve.compat=tao")
        assert run.code == 1 and "GRAY fails in TAO" in run.messages

    def test_a_number_for_short_size_only_enlarges(self, evaluate: Any, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        picture(folder / "img" / "a.png", [WORD, OTHER])
        label(folder, "a", [line_of(QUAD, "one"), line_of(OTHER_QUAD, "two")])
        for side in (96, 320):
            steps = f"dataset.validate_dataset.args.pre_processes=[{{type: Resize2D, args: {{short_size: {side}}}}}]"
            assert evaluate(folder, steps).json("results.json")["F-measure"] == 1

    def test_unresized_labels_are_reported(self, evaluate: Any, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        picture(folder / "img" / "a.png", [(40, 60, 80, 20, 1.0)], (512, 320))
        label(folder, "a", [line_of(np.array(QUAD) * 2, "one")])
        steps = SIZE.replace("[256, 160]", "[256, 160], resize_text_polys: false")
        run = evaluate(folder, steps)
        assert run.json("results.json")["F-measure"] == 1 and "resize_text_polys has no effect" in run.messages
        run = evaluate(folder, steps, "ocdserve.compat=tao")
        assert run.json("results.json")["F-measure"] == 0 and "compared with labels in source pixels" in run.messages

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("dataset.validate_dataset.data_name=CocoDataset", "ICDAR2015Dataset, UberDataset; got 'CocoDataset'"),
            ("dataset.validate_dataset.args.filter_keys=[img, text_polys]", "filter_keys drops img, text_polys"),
            ("dataset.validate_dataset.args.pre_processes=[{type: MakeShrinkMap}]", "MakeShrinkMap .* is for training"),
            ("dataset.validate_dataset.args.pre_processes=[{type: Rot90}]", "the steps are Resize2D; got 'Rot90'"),
            (SIZE.replace("short_size", "size"), "Resize2D takes short_size and resize_text_polys; got size"),
            (SIZE.replace("160]", "'160']"), r"short_size must be \[width, height\] or one number"),
            (
                SIZE.replace("160", "150"),
                "pre_processes: Resize2D.short_size: resize.height must be a multiple of the stride 32",
            ),
        ],
    )
    def test_errors_of_a_spec_are_reported_before_anything_runs(
        self, evaluate: Any, data: Path, override: str, message: str
    ) -> None:
        """Fault 26."""
        run = evaluate(data, override)
        assert run.code == 1
        assert re.search(message, run.messages)

    def test_a_bundle_of_another_size_is_refused(
        self, evaluate: Any, blue_network: BlueNetwork, data: Path, tmp_path: Path
    ) -> None:
        network = blue_network((320, 320), "static.onnx")
        Bundle(PRESETS["ocdnet"], network).save(tmp_path / "bundle")
        run = evaluate(data, f"evaluate.trt_engine={tmp_path / 'bundle'}")
        assert run.code == 1
        assert "images of 320 x 320 pixels (width x height) only" in run.messages
        assert "pre_processes asks for 256 x 160" in run.messages

    def test_a_missing_engine_is_refused(self, evaluate: Any, data: Path) -> None:
        run = evaluate(data, "evaluate.trt_engine=/nowhere/ocdnet.engine")
        assert run.code == 1 and "/nowhere/ocdnet.engine" in run.messages


class TestTaoMode:
    @pytest.mark.parametrize(("seed", "polygons"), [(1, False), (2, True)])
    def test_figures_equal_an_independent_evaluation(
        self, evaluate: Any, blue_network: BlueNetwork, tmp_path: Path, seed: int, polygons: bool
    ) -> None:
        data = random_data_set(tmp_path / "data", 25, seed)
        run = evaluate(data, "ocdserve.compat=tao", f"evaluate.metric.args.is_output_polygon={str(polygons).lower()}")
        expected = tao_reference.evaluate(blue_network(), data, (256, 160), polygons=polygons)
        found = run.json("results.json")
        assert [found["Precision"], found["Recall"], found["F-measure"]] == pytest.approx(list(expected), abs=5e-5)
        assert 0.2 < expected[2] < 0.95
        assert run.json("report.json")["protocol"] == "tao"

    @pytest.mark.long
    def test_photographs_give_the_figures_of_an_independent_evaluation(
        self, ocdnet: Ocdnet, shared_data: Path, tmp_path: Path
    ) -> None:
        """The default network at TAO's size and with TAO's normalisation.

        ONNX Runtime executes it on both sides: OpenVINO's maps differ by up to 6e-5, which moves one of 2,157 matches
        of the receipts on some processors.
        """
        default = Bundle.load()
        folder = tmp_path / "default.bundle"
        spec = replace(default.spec, network=PRESETS["ocdnet"].network)
        Bundle(spec, default.model_path).save(folder)
        for name in ("receipts", "scene"):
            data = shared_data / name
            run = ocdnet(
                "evaluate",
                "ocdserve.compat=tao",
                "ocdserve.runtime=onnxruntime",
                f"evaluate.trt_engine={folder}",
                f"dataset.validate_dataset.data_path=[{data}]",
            )
            found = run.json("results.json")
            expected = tao_reference.evaluate(default.model_path, data, (1280, 736))
            assert [found["Precision"], found["Recall"], found["F-measure"]] == pytest.approx(list(expected), abs=5e-5)


class TestCommand:
    def test_the_published_spec_evaluates_an_exported_onnx(
        self, blue_network: BlueNetwork, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The keys of TAO's own sample, and nothing changed but the paths and the network's size."""
        (tmp_path / "spec.yaml").write_text(
            f"""
model: {{load_pruned_graph: false, pruned_graph_path: ''}}
evaluate:
  results_dir: {tmp_path / "results"}
  checkpoint: /results/train/model_best.pth
  gpu_ids: [0]
  post_processing:
    type: SegDetectorRepresenter
    args: {{thresh: 0.3, box_thresh: 0.55, max_candidates: 1000, unclip_ratio: 1.5}}
  metric: {{type: QuadMetric, args: {{is_output_polygon: false}}}}
  trt_engine: {blue_network((160, 256))}
dataset:
  validate_dataset:
    data_path: [{data}]
    args:
      pre_processes:
      - {{type: Resize2D, args: {{short_size: [256, 160], resize_text_polys: true}}}}
      img_mode: BGR
      filter_keys: []
      ignore_tags: ['*', '###']
    loader: {{batch_size: 1, shuffle: false, pin_memory: false, num_workers: 4}}
"""
        )
        assert main(["evaluate", "-e", str(tmp_path / "spec.yaml")]) == 0
        output = capsys.readouterr()
        assert "F-measure:  0.6667" in output.out
        # Nothing is amiss, whatever opset the network was exported with.
        assert "warning" not in output.err
        lines = (tmp_path / "results" / "status.json").read_text().splitlines()
        last = json.loads(lines[-1])
        assert (json.loads(lines[0])["status"], last["status"]) == ("STARTED", "SUCCESS")
        assert last["kpi"]["F-measure"] == pytest.approx(2 / 3)

    def test_an_unknown_kind_of_post_processing_or_metric_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Fault 23."""
        (tmp_path / "spec.yaml").write_text(
            f"results_dir: {tmp_path}\nevaluate: {{metric: {{type: F1}}, post_processing: {{type: Other}}}}"
        )
        assert main(["evaluate", "-e", str(tmp_path / "spec.yaml")]) == 1
        output = capsys.readouterr().err
        assert "evaluate.metric.type" in output and "evaluate.post_processing.type" in output
