# SPDX-License-Identifier: Apache-2.0
"""The action `gen_trt_engine` from spec to files."""

import importlib.util
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from PIL import Image

from ocdserve.backend import Bundle, Detector
from ocdserve.builder.calibration.cache import CalibrationCache
from ocdserve.builder.calibration.images import choose
from ocdserve.builder.config import Precision
from ocdserve.builder.engine.layers import describe_layers
from ocdserve.builder.tao.actions import ACTIONS
from ocdserve.builder.tao.engine.calibration import find_images
from ocdserve.builder.tao.inputs.artifact import open_artifact
from ocdserve.builder.tao.running import run_action
from ocdserve.contract import InvalidInputError

TEMPLATE = Path(__file__).parents[5] / "shared/reference/tao-ocdnet/references/spec_template_deploy_gen_trt_engine.yaml"
CALIBRATION = "gen_trt_engine.tensorrt.calibration"
SIZE = (128, 192)
READ = Detector.preprocess
# Start of a file that `torch.save` wrote before PyTorch 1.6.
TORCH_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")

Write = Callable[..., Path]
Generate = Callable[..., "tuple[int, str, Path]"]


@pytest.fixture
def network(tmp_path: Path, small_network: Callable[..., onnx.ModelProto]) -> Write:
    """Writes a network with dynamic batch, of the size SIZE (height, width)."""

    def write() -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(small_network(size=SIZE), str(path))
        return path

    return write


@pytest.fixture
def generate(
    tmp_path: Path, network: Write, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Generate:
    """Runs the action on INT8 for ONNX Runtime with overrides; returns exit code, output and the engine's path."""
    monkeypatch.setenv("OCDSERVE_ENGINE_STORE", str(tmp_path / "store"))

    def run(*overrides: str) -> tuple[int, str, Path]:
        file, engine = tmp_path / "spec.yaml", tmp_path / "out" / "ocdnet.engine"
        onnx_file = tmp_path / "model.onnx"
        settings = {
            "onnx_file": str(onnx_file if onnx_file.exists() else network()),
            "trt_engine": str(engine),
            "height": SIZE[0],
            "width": SIZE[1],
            "tensorrt": {
                "data_type": "INT8",
                "calibration": {
                    "cal_image_dir": [str(pictures)],
                    "cal_cache_file": str(tmp_path / "cal.bin"),
                    "cal_batch_size": 2,
                    "cal_batches": 2,
                },
            },
        }
        ours = {"runtime": "onnxruntime", "threads": 1}
        spec = {"results_dir": str(tmp_path / "results"), "gen_trt_engine": settings, "ocdserve": ours}
        file.write_text(yaml.safe_dump(spec))
        code = run_action(ACTIONS["gen_trt_engine"], file, overrides)
        captured = capsys.readouterr()
        return code, captured.out + captured.err, engine

    return run


def _has_rtx() -> bool:
    return importlib.util.find_spec("tensorrt_rtx") is not None


def report(engine: Path) -> Any:
    return json.loads((engine.with_suffix(".bundle") / "report.json").read_text("utf-8"))


def last_status(engine: Path) -> Any:
    path = engine.parents[1] / "results" / "gen_trt_engine" / "status.json"
    return json.loads(path.read_text("utf-8").splitlines()[-1])


class TestFiles:
    def test_the_quantised_onnx_is_at_the_exact_path_and_its_bundle_next_to_it(self, generate: Generate) -> None:
        code, output, engine = generate()
        assert code == 0, output
        bundle = Bundle.load(engine.with_suffix(".bundle"))
        assert engine.read_bytes() == bundle.model_path.read_bytes()
        assert any(node.op_type == "QuantizeLinear" for node in onnx.load(str(engine)).graph.node)
        assert (bundle.spec.precision, bundle.spec.runtime) == ("int8", "onnxruntime")
        assert (bundle.spec.resize.kind, bundle.spec.resize.width, bundle.spec.resize.height) == ("fixed", 192, 128)
        # TAO's default, with which its bundle is served.
        assert bundle.spec.postprocess.box_thresh == 0.55
        assert sorted(path.name for path in engine.parent.iterdir()) == ["ocdnet.bundle", "ocdnet.engine"]
        kpi = last_status(engine)["kpi"]
        assert (kpi["runtime"], kpi["precision"], kpi["bytes"]) == ("onnxruntime", "int8", engine.stat().st_size)

    def test_a_second_run_replaces_engine_and_bundle(self, generate: Generate) -> None:
        generate()
        code, output, engine = generate("gen_trt_engine.tensorrt.data_type=FP32")
        assert code == 0, output
        assert Bundle.load(engine.with_suffix(".bundle")).spec.precision == "fp32"

    def test_a_failure_leaves_what_was_there(self, generate: Generate) -> None:
        _, _, engine = generate()
        before = engine.read_bytes()
        code, _, _ = generate(
            "gen_trt_engine.tensorrt.layers_precision=[nothing_like_it:int8]", f"{CALIBRATION}.cal_cache_file="
        )
        assert code == 1
        assert engine.read_bytes() == before
        assert sorted(path.name for path in engine.parent.iterdir()) == ["ocdnet.bundle", "ocdnet.engine"]

    def test_a_folder_that_is_not_a_bundle_is_never_replaced(self, generate: Generate, tmp_path: Path) -> None:
        (tmp_path / "out" / "ocdnet.bundle").mkdir(parents=True)
        (tmp_path / "out" / "ocdnet.bundle" / "thesis.doc").write_text("years of work")
        code, output, _ = generate()
        assert code == 1
        assert "is something else; move it away" in output
        assert (tmp_path / "out" / "ocdnet.bundle" / "thesis.doc").exists()

    def test_the_exported_network_is_never_overwritten(self, generate: Generate, network: Write) -> None:
        path = network()
        before = path.read_bytes()
        code, output, _ = generate(f"gen_trt_engine.trt_engine={path.parent}/./{path.name}")
        assert code == 1
        assert "which would be overwritten" in output
        assert path.read_bytes() == before

    @pytest.mark.parametrize("precision", ["FP32", "FP16"])
    def test_higher_precisions_need_no_images(self, generate: Generate, precision: str) -> None:
        code, output, engine = generate(
            f"gen_trt_engine.tensorrt.data_type={precision}", f"{CALIBRATION}.cal_image_dir=[/data/calibration/images]"
        )
        assert code == 0, output
        assert last_status(engine)["kpi"]["precision"] == precision.lower()


class TestCalibration:
    def test_the_cache_is_written_and_then_used_without_images(self, generate: Generate, tmp_path: Path) -> None:
        """TAO demands enough images even with a cache."""
        code, output, engine = generate()
        assert code == 0, output
        cache = CalibrationCache.load(tmp_path / "cal.bin")
        assert report(engine)["images"]["calibration"] and len(report(engine)["images"]["calibration"]) == 4
        code, output, _ = generate(f"{CALIBRATION}.cal_image_dir=[/nowhere]", f"{CALIBRATION}.cal_batches=99")
        assert code == 0, output
        assert CalibrationCache.load(tmp_path / "cal.bin") == cache
        assert "scales from cal.bin" in output

    def test_a_stale_cache_is_refused_unless_forced(
        self, generate: Generate, tmp_path: Path, small_network: Callable[..., onnx.ModelProto]
    ) -> None:
        """Fault 11: TAO uses a cache of any network, images and version in silence."""
        generate()
        onnx.save(small_network(size=SIZE, scale=2.0), str(tmp_path / "model.onnx"))
        code, output, _ = generate()
        assert code == 1
        assert "is stale: it was made for another network" in output
        code, output, _ = generate("ocdserve.force_calibration_cache=true")
        assert code == 0, output

    def test_a_cache_of_other_images_is_used_with_a_warning(self, generate: Generate) -> None:
        generate()
        code, output, _ = generate(f"{CALIBRATION}.cal_batches=3")
        assert code == 0
        assert "was made with other images" in output

    def test_an_invalid_cache_is_refused(self, generate: Generate, tmp_path: Path) -> None:
        (tmp_path / "cal.bin").write_text("scales")
        code, output, _ = generate()
        assert code == 1
        assert "not a calibration cache: line 1" in output

    def test_too_few_images_are_refused_with_a_remedy(self, generate: Generate) -> None:
        code, output, _ = generate(f"{CALIBRATION}.cal_batch_size=3", f"{CALIBRATION}.cal_batches=5")
        assert code == 1
        assert "asks for 15" in output and "hold 8" in output and "cal_batches to 2." in output
        _, output, _ = generate(f"{CALIBRATION}.cal_batch_size=16")
        assert "cal_batches to 1 with cal_batch_size 8." in output

    def test_an_empty_folder_matters_only_where_images_are_needed(self, generate: Generate, tmp_path: Path) -> None:
        generate()
        (tmp_path / "none").mkdir()
        empty = f"{CALIBRATION}.cal_image_dir=[{tmp_path / 'none'}]"
        for override in ("gen_trt_engine.tensorrt.data_type=FP32", f"{CALIBRATION}.cal_batches=2"):
            code, output, _ = generate(empty, override)
            assert code == 0, output
        code, output, _ = generate(empty, f"{CALIBRATION}.cal_cache_file={tmp_path / 'new.bin'}")
        assert code == 1
        assert "no images" in output

    def test_hidden_files_are_not_images(self, pictures: Path) -> None:
        """macOS leaves a `._name.jpg` that is no image next to each image."""
        before = find_images([pictures])
        hidden = pictures / "._picture_0.png"
        hidden.write_bytes(b"Mac OS X")
        assert find_images([pictures]) == before
        hidden.unlink()

    def test_every_requested_image_counts(self, generate: Generate, pictures: Path, tmp_path: Path) -> None:
        """Fault 2: with batches larger than the profile's, TAO's calibrator sees only the first image of each."""
        scales = []
        for batch_size, batches in ((8, 1), (1, 8), (1, 1)):
            (tmp_path / "cal.bin").unlink(missing_ok=True)
            code, output, _ = generate(
                f"{CALIBRATION}.cal_batch_size={batch_size}", f"{CALIBRATION}.cal_batches={batches}"
            )
            assert code == 0, output
            scales.append(CalibrationCache.load(tmp_path / "cal.bin").scales)
        assert scales[0] == scales[1] != scales[2]
        # Extremes over more images are no smaller.
        assert all(scales[0][name] >= scale for name, scale in scales[2].items())

    @pytest.mark.parametrize("compat", ["fixed", "tao"])
    def test_ranges_are_those_of_the_network_s_own_input(
        self, tmp_path: Path, compat: str, small_network: Callable[..., onnx.ModelProto], generate: Generate
    ) -> None:
        """Fault 1: TAO calibrates in RGB whatever the network gets; `compat: tao` does as TAO.

        A picture that is red everywhere: red is the last channel in BGR, the first in TAO's calibration.
        """
        folder = tmp_path / "red"
        folder.mkdir()
        Image.new("RGB", (SIZE[1], SIZE[0]), (255, 0, 0)).save(folder / "red.png")
        onnx.save(_first_channel(), str(tmp_path / "model.onnx"))
        code, output, _ = generate(
            f"{CALIBRATION}.cal_image_dir={folder}",
            f"{CALIBRATION}.cal_batch_size=1",
            f"{CALIBRATION}.cal_batches=1",
            f"ocdserve.compat={compat}",
        )
        assert code == 0, output
        first = (255 if compat == "tao" else 0) - 122.67891434
        scale = CalibrationCache.load(tmp_path / "cal.bin").scales["c"]
        assert scale == pytest.approx(abs(first) / 255 / 127, rel=0.02)

    def test_the_choice_is_seeded_and_does_not_depend_on_order(self, pictures: Path) -> None:
        """TAO's shuffle has no seed."""
        paths = find_images([pictures])
        assert choose(paths, 3, 0) == choose(paths[::-1], 3, 0)
        assert {choose(paths, 3, seed) for seed in range(5)} != {choose(paths, 3, 0)}

    def test_folders_are_searched_recursively_and_each_image_counts_once(self, pictures: Path) -> None:
        assert len(find_images([pictures, pictures.parent])) == len(find_images([pictures.parent]))

    def test_an_archive_in_place_of_a_folder_is_refused(
        self, generate: Generate, tmp_path: Path, pictures: Path
    ) -> None:
        with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
            archive.add(pictures / "picture_0.png")
        code, output, _ = generate(f"{CALIBRATION}.cal_image_dir={tmp_path / 'images.tar.gz'}")
        assert code == 1
        assert "is an archive; extract it first" in output

    def test_a_cache_that_cannot_be_written_is_refused_before_the_work(
        self, generate: Generate, tmp_path: Path
    ) -> None:
        code, output, _ = generate(f"{CALIBRATION}.cal_cache_file={tmp_path / 'model.onnx' / 'cal.bin'}")
        assert code == 1
        assert "cannot be written" in output and "calibration: extremes" not in output

    def test_int8_without_images_and_cache_is_refused(self, generate: Generate) -> None:
        code, output, _ = generate(f"{CALIBRATION}.cal_image_dir=[]")
        assert code == 1
        assert "INT8 needs photographs" in output


def _first_channel() -> onnx.ModelProto:
    """A network whose tensor `c`, a convolution's input, is the first channel that it gets."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "w0": np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1),
        "w1": np.full((8, 1, 3, 3), 0.1, np.float32),
        "w2": np.full((1, 8, 1, 1), 0.1, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w0"], ["c"], "first"),
        helper.make_node("Conv", ["c", "w1"], ["d"], "second", pads=[1] * 4),
        helper.make_node("Conv", ["d", "w2"], ["e"], "third"),
        helper.make_node("Sigmoid", ["e"], ["pred"], "end"),
    ]
    graph = helper.make_graph(
        nodes,
        "first_channel",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, *SIZE])],
        [helper.make_tensor_value_info("pred", TensorProto.FLOAT, ["batch", 1, *SIZE])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class TestLayers:
    def test_pinned_layers_keep_their_precision(self, generate: Generate) -> None:
        code, output, engine = generate('gen_trt_engine.tensorrt.layers_precision=["b:fp32","stem:int8"]')
        assert code == 0, output
        precisions = {layer["name"]: layer["precision"] for layer in report(engine)["layers"]}
        # The stem is excluded from quantisation unless it is requested.
        assert (precisions["b"], precisions["stem"], precisions["c"]) == ("fp32", "int8", "int8")

    @pytest.mark.skipif(not _has_rtx(), reason="TensorRT-RTX is not installed")
    def test_layers_of_an_engine_can_be_fp32(self, generate: Generate) -> None:
        rtx = ["ocdserve.runtime=tensorrt-rtx", "ocdserve.architectures=[sm_89]"]
        code, output, engine = generate('gen_trt_engine.tensorrt.layers_precision=["a:fp32","b:fp16"]', *rtx)
        assert code == 0, output
        precisions = {layer["name"]: layer["precision"] for layer in report(engine)["layers"]}
        assert (precisions["a"], precisions["b"], precisions["c"]) == ("fp32", "fp16", "int8")
        types = describe_layers(onnx.load(str(engine.with_suffix(".bundle") / "model.onnx")), "tensorrt-rtx")
        assert {layer.name: layer.inputs[0] for layer in types if layer.name in ("a", "b")} == {
            "a": "FP32",
            "b": "FP16",
        }

    def test_the_rest_may_be_pinned_by_an_asterisk(self, generate: Generate) -> None:
        code, output, engine = generate("gen_trt_engine.tensorrt.layers_precision=[*:fp32,c:int8]")
        assert code == 0, output
        assert {layer["name"] for layer in report(engine)["layers"] if layer["precision"] == "int8"} == {"c"}

    def test_an_unknown_layer_is_refused_for_int8(self, generate: Generate) -> None:
        code, output, _ = generate("gen_trt_engine.tensorrt.layers_precision=[bb:int8]")
        assert code == 1
        assert "no layer 'bb'; the nearest name is 'b'" in output

    def test_unknown_layers_of_a_higher_precision_are_reported(self, generate: Generate) -> None:
        """A spec for several backbones; TAO ignores these layers without a word."""
        code, output, engine = generate("gen_trt_engine.tensorrt.layers_precision=[bb:fp32,/stage/*:fp16,c:fp32]")
        assert code == 0, output
        note = "the network has no layer 'bb', so its rule has no effect; the nearest name is 'b'"
        assert f"- {note}\n" in output and note in report(engine)["notes"]
        assert "no layer '/stage/*', so" in output
        precisions = {layer["name"]: layer["precision"] for layer in report(engine)["layers"]}
        assert precisions["c"] == "fp32"

    def test_a_network_with_q_dq_keeps_its_own_scales(self, generate: Generate, tmp_path: Path) -> None:
        """Fault 19: TAO Deploy cannot take such a network for OCDNet."""
        _, _, engine = generate()
        quantised = tmp_path / "quantised.onnx"
        quantised.write_bytes(engine.read_bytes())
        code, output, engine = generate(
            f"gen_trt_engine.onnx_file={quantised}", f"{CALIBRATION}.cal_image_dir=[/nowhere]"
        )
        assert code == 0, output
        assert "quantised.onnx is quantised already" in output
        pairs = [
            sum(node.op_type == "QuantizeLinear" for node in onnx.load(str(path)).graph.node)
            for path in (quantised, engine)
        ]
        assert pairs[0] == pairs[1] > 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("none.onnx", None, "there is no file"),
            ("model.etlt", b"x", r"\.etlt files cannot be read; export"),
            ("model.onnx", TORCH_MAGIC, r"PyTorch files cannot be read; export the checkpoint to ONNX"),
            ("broken.onnx", b"not an onnx", "is not an ONNX file"),
        ],
    )
    def test_a_file_that_is_not_onnx_is_refused(
        self, generate: Generate, tmp_path: Path, name: str, content: bytes | None, words: str
    ) -> None:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        code, output, engine = generate(f"gen_trt_engine.onnx_file={path}")
        assert code == 1
        assert last_status(engine)["status"] == "FAILURE"
        assert re.search(words, output)

    def test_an_archive_is_refused(self, generate: Generate, tmp_path: Path, network: Write) -> None:
        with tarfile.open(tmp_path / "model.tar", "w") as archive:
            archive.add(network())
        code, output, _ = generate(f"gen_trt_engine.onnx_file={tmp_path / 'model.tar'}")
        assert code == 1
        assert "is an archive; extract it first" in output

    def test_keys_without_effect_are_reported(self, generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        _, output, _ = generate(
            "gen_trt_engine.gpu_id=97",
            "gen_trt_engine.tensorrt.data_type=FP32",
            "gen_trt_engine.timing_cache=/t",
            "gen_trt_engine.tensorrt.layers_precision=[b:fp16]",
        )
        assert "there is no GPU 97 here" in output
        assert "timing_cache is not used" in output
        assert "layers_precision is not used" in output

    def test_the_loss_is_measured_on_other_images_than_calibration(self, generate: Generate, pictures: Path) -> None:
        code, output, engine = generate(f"ocdserve.evaluation_dir={pictures}")
        assert code == 0, output
        assert "judged on 4 images" in output
        found = report(engine)["images"]
        assert {image["name"] for image in found["calibration"]}.isdisjoint(found["evaluation"])
        assert last_status(engine)["kpi"]["agreement"] >= 0.95


class TestAgreementWithFp32:
    """Published specs name no images to judge with."""

    FINDS_BOXES = "inference.post_processing.args.box_thresh=0.3"

    @pytest.fixture(autouse=True)
    def _network_that_finds_boxes(self, tmp_path: Path, small_network: Callable[..., onnx.ModelProto]) -> None:
        onnx.save(small_network(size=SIZE, scale=300.0), str(tmp_path / "model.onnx"))

    @pytest.mark.parametrize("precision", ["INT8", "FP16"])
    def test_it_is_measured_on_images_that_the_calibration_left(self, precision: str, generate: Generate) -> None:
        code, output, engine = generate(f"gen_trt_engine.tensorrt.data_type={precision}", self.FINDS_BOXES)
        assert code == 0, output
        gate, images = report(engine)["gate"], report(engine)["images"]
        assert len(images["evaluation"]) == gate["images"] == 4 and gate["boxes_fp32"] > 4
        assert {image["name"] for image in images["calibration"]}.isdisjoint(images["evaluation"])
        low, high = gate["agreement_interval"]
        assert 0.6 < gate["agreement"] <= 1 and gate["hmean"] is None and low < gate["agreement"] <= high
        figures = f"box agreement with FP32 {gate['agreement']:.4f} (95 %: {low:.4f} to {high:.4f}), matches lost "
        assert f"judged on 4 images: {figures}{gate['matches_lost']}, won {gate['matches_won']}" in output
        assert "only 4 images were judged; fewer than 40 say little about others" in output
        assert last_status(engine)["kpi"]["agreement"] == gate["agreement"]

    def test_it_is_measured_on_those_of_the_calibration_for_lack_of_others(self, generate: Generate) -> None:
        code, output, engine = generate(f"{CALIBRATION}.cal_batches=3")
        assert code == 0, output
        assert report(engine)["images"]["evaluated_on_calibration_images"] is True
        assert report(engine)["gate"]["images"] == 6
        assert "judged on the images of the calibration, for lack of others" in output

    def test_it_is_measured_where_the_scales_come_from_a_cache(self, generate: Generate) -> None:
        generate()
        code, output, engine = generate()
        assert code == 0, output
        assert "scales from cal.bin" in output and report(engine)["gate"]["images"] == 4

    def test_a_low_one_is_reported_and_refuses_nothing(self, generate: Generate, tmp_path: Path) -> None:
        generate()
        cache = CalibrationCache.load(tmp_path / "cal.bin")
        # So large that all values round to zero.
        CalibrationCache(dict.fromkeys(cache.scales, 1e9), cache.header).save(tmp_path / "cal.bin")
        code, output, engine = generate(self.FINDS_BOXES)
        assert code == 0, output
        gate = report(engine)["gate"]
        assert gate["agreement"] < 0.1 and gate["matches_lost"] > 4
        lost = f"{gate['matches_lost']} boxes lost, {gate['matches_won']} won on 4 images"
        assert f"its box agreement must be at least 0.95, and it has {gate['agreement']:.4f}, {lost}" in output

    def test_images_without_text_say_nothing(self, generate: Generate) -> None:
        code, output, engine = generate("inference.post_processing.args.box_thresh=1")
        assert code == 0, output
        assert report(engine)["gate"]["boxes_fp32"] == 0
        assert "FP32 finds no text on the judged images, which therefore say nothing; judge with others" in output

    def test_without_images_it_is_not_known_and_that_is_said(self, generate: Generate) -> None:
        code, output, engine = generate("gen_trt_engine.tensorrt.data_type=FP16", f"{CALIBRATION}.cal_image_dir=[]")
        assert code == 0, output
        assert report(engine)["gate"] is None
        assert "the accuracy was not compared with FP32's" in output


@pytest.mark.skipif(not _has_rtx(), reason="TensorRT-RTX is not installed")
class TestEngine:
    def test_an_int8_engine_reads_the_calibration_images_once(
        self, generate: Generate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[str] = []
        monkeypatch.setattr(
            "ocdserve.builder.calibration.inputs.Detector.preprocess",
            lambda self, path: read.append(path.name) or READ(self, path),
        )
        code, output, engine = generate("ocdserve.runtime=tensorrt-rtx", "ocdserve.architectures=[sm_89]")
        assert code == 0, output
        images = report(engine)["images"]
        assert sorted(read) == sorted([*(image["name"] for image in images["calibration"]), *images["evaluation"]])

    def test_an_engine_is_at_the_exact_path_and_its_onnx_is_the_fallback(self, generate: Generate) -> None:
        code, output, engine = generate("ocdserve.runtime=tensorrt-rtx", "ocdserve.architectures=[sm_89]")
        assert code == 0, output
        bundle = Bundle.load(engine.with_suffix(".bundle"))
        assert bundle.engine_path is not None
        assert engine.read_bytes() == bundle.engine_path.read_bytes()
        artifact = open_artifact(engine, gpu=False)
        assert artifact.runtime == "onnxruntime"
        assert "has no GPU: the ONNX of its bundle" in artifact.notes[0]
        on_gpu = open_artifact(engine, gpu=True)
        assert (on_gpu.runtime, on_gpu.max_batch) == ("tensorrt-rtx", 1)

    def test_tao_s_batches_reach_the_profile(self, generate: Generate) -> None:
        batches = [f"gen_trt_engine.tensorrt.{name}_batch_size={n}" for name, n in (("min", 1), ("opt", 2), ("max", 4))]
        code, output, engine = generate(
            "ocdserve.runtime=tensorrt-rtx",
            "gen_trt_engine.tensorrt.data_type=FP16",
            "ocdserve.architectures=[sm_89]",
            *batches,
        )
        assert code == 0, output
        assert report(engine)["engine"]["profile"] == {"min": [1, 128, 192], "opt": [2, 128, 192], "max": [4, 128, 192]}
        assert report(engine)["engine"]["profiles"] == 1


class TestArtifact:
    def test_a_bundle_its_file_and_any_onnx_open(self, generate: Generate, network: Write) -> None:
        code, output, engine = generate("gen_trt_engine.tensorrt.data_type=FP32")
        assert code == 0, output
        for path in (engine, engine.with_suffix(".bundle"), engine.parents[1] / "model.onnx"):
            assert open_artifact(path).bundle.model_path.is_file()

    def test_an_export_that_is_not_tao_s_is_reported(
        self, generate: Generate, network: Write, tmp_path: Path, small_network: Callable[..., onnx.ModelProto]
    ) -> None:
        words = r"model\.onnx may be no OCDNet: .* this one has \['x'\] and \['p'\]\. .*`ocdserve build --onnx \S+`"
        code, output, engine = generate("gen_trt_engine.tensorrt.data_type=FP32")
        assert code == 0 and re.search(f"warning: {words}", output)
        assert open_artifact(engine).notes == ()
        (note,) = open_artifact(network()).notes
        assert re.match(words, note)
        model = small_network(size=SIZE)
        model.graph.input[0].name = model.graph.node[0].input[0] = "input"
        model.graph.output[0].name = model.graph.node[-1].output[0] = "pred"
        onnx.save(model, str(tmp_path / "tao.onnx"))
        assert open_artifact(tmp_path / "tao.onnx").notes == ()

    def test_an_onnx_that_replaced_the_engine_opens_as_an_onnx(self, generate: Generate, network: Write) -> None:
        _, _, engine = generate("gen_trt_engine.tensorrt.data_type=FP32")
        engine.write_bytes(network().read_bytes())
        assert open_artifact(engine).bundle.model_path.parent != engine.with_suffix(".bundle")

    def test_an_engine_without_its_bundle_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.engine").write_bytes(os.urandom(64))
        with pytest.raises(InvalidInputError, match=r"not ONNX, and there is no .*a\.bundle"):
            open_artifact(tmp_path / "a.engine")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("model_best.pth", {"model_best/data.pkl": b"", "model_best/data/0": b""}),
            ("checkpoint", {"archive/data.pkl": b"", "archive/version": b"3"}),
            ("old.bin", TORCH_MAGIC + bytes(50)),
            ("model.TLT", b"encrypted"),
        ],
    )
    def test_checkpoints_are_refused_as_such(
        self, tmp_path: Path, name: str, content: bytes | dict[str, bytes]
    ) -> None:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for entry, data in content.items():
                    archive.writestr(entry, data)
        with pytest.raises(
            InvalidInputError,
            match=r"is a checkpoint, .* name it as evaluate\.checkpoint .* or export it to ONNX with `ocdnet export",
        ):
            open_artifact(path)

    def test_archives_and_missing_files_are_refused(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "a.tar", "w"):
            pass
        with pytest.raises(InvalidInputError, match="extract it first"):
            open_artifact(tmp_path / "a.tar")
        with pytest.raises(InvalidInputError, match="no engine, ONNX or bundle"):
            open_artifact(tmp_path / "b.engine")


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["tensorrt-rtx", "onnxruntime"])
def test_the_published_template_runs_on_a_deformable_network(
    tmp_path: Path, shared_data: Path, ocdnet_torch: Any, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not TEMPLATE.is_file():
        pytest.skip(f"the published template is not there: {TEMPLATE}")
    if runtime == "tensorrt-rtx" and not _has_rtx():
        pytest.skip("TensorRT-RTX is not installed")
    monkeypatch.setenv("OCDSERVE_ENGINE_STORE", str(tmp_path / "store"))
    # The tracer computes, which is faster on a small image.
    ocdnet_torch.export_ocdnet(
        tmp_path / "model.onnx", height=128, width=192, dynamic_size=True, width_factor=0.125, opset=17
    )
    text = TEMPLATE.read_text("utf-8")
    for published, here in (
        ("/results", str(tmp_path / "results")),
        ("/models/model.onnx", str(tmp_path / "model.onnx")),
        ("/data/calibration/images", str(shared_data / "receipts" / "img")),
    ):
        assert published in text
        text = text.replace(published, here)
    (tmp_path / "spec.yaml").write_text(text)
    assert run_action(ACTIONS["gen_trt_engine"], tmp_path / "spec.yaml", [f"ocdserve.runtime={runtime}"]) == 0
    engine = tmp_path / "results" / "ocdnet.engine"
    precision: Precision = Bundle.load(engine.with_suffix(".bundle")).spec.precision  # type: ignore[assignment]
    assert precision == "int8"
    assert open_artifact(engine, gpu=False).runtime == "onnxruntime"


@pytest.mark.long
@pytest.mark.skipif(not _has_rtx(), reason="TensorRT-RTX is not installed")
def test_a_cache_of_tao_s_leaves_deformable_convolutions_in_fp16(
    generate: Generate, tmp_path: Path, ocdnet_torch: Any
) -> None:
    """TAO's calibrator saw each of them as one node of a plugin, which does not compute in INT8 either."""
    ocdnet_torch.export_ocdnet(tmp_path / "model.onnx", height=SIZE[0], width=SIZE[1], width_factor=0.125, opset=11)
    rtx = ["ocdserve.runtime=tensorrt-rtx", "ocdserve.architectures=[sm_89]"]
    code, output, engine = generate(*rtx)
    assert code == 0, output
    ours = CalibrationCache.load(tmp_path / "cal.bin")
    scales = {name: scale for name, scale in ours.scales.items() if "/deformable_" not in name}
    assert len(ours.scales) - len(scales) == 6
    CalibrationCache(scales, "TRT-101300-EntropyCalibration2").save(tmp_path / "cal.bin")
    code, output, engine = generate(*rtx, f"{CALIBRATION}.cal_image_dir=[]")
    assert code == 0, output
    assert "6 deformable convolutions stay in the higher precision" in output
    int8 = {layer["name"] for layer in report(engine)["layers"] if layer["precision"] == "int8"}
    assert int8 and not any("conv2/Modulated" in name for name in int8)
