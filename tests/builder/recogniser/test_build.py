# SPDX-License-Identifier: Apache-2.0
import importlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bars_recogniser
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from ocdserve.backend.network.rewrite.fold import load_onnx
from ocdserve.backend.network.rewrite.fold_recogniser import fold_recogniser
from ocdserve.backend.recogniser import Recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.stages.ctc import Steps
from ocdserve.builder import (
    DataConfig,
    EngineConfig,
    ExportOptions,
    GateError,
    ReadingLimits,
    RecogniserBuildConfig,
    build_recogniser,
)
from ocdserve.builder.config import Precision
from ocdserve.builder.engine.layers import describe_layers
from ocdserve.builder.explain import explain
from ocdserve.builder.recogniser import lines
from ocdserve.builder.recogniser.trial import recogniser_of, whole_line
from ocdserve.contract import InvalidInputError

build_module = importlib.import_module("ocdserve.builder.recogniser.build")
TEXTS = [["rgb", "bgr", "gg"], ["bg", "rrgb", "gbgb"], ["brg", "grb"], ["bbb", "gr", "rbrb"]]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bars_recogniser.dataset(tmp_path_factory.mktemp("labelled") / "data", TEXTS)


@pytest.fixture
def config(tmp_path: Path, labelled: Path) -> Callable[..., RecogniserBuildConfig]:
    """Configuration of a build of the bars' recogniser; keyword arguments replace fields."""

    def make(**fields: Any) -> RecogniserBuildConfig:
        path = tmp_path / "bars.onnx"
        if not path.exists():
            onnx.save(bars_recogniser.network(), str(path))
        given = {
            "onnx": path,
            "output": tmp_path / "bundle",
            "data": DataConfig(evaluation=labelled, calibration_count=2),
            "engine": EngineConfig(architectures=("sm_89",), max_batch=4, store=tmp_path / "engines"),
            "threads": 1,
        }
        return RecogniserBuildConfig(**(given | fields))

    return make


def report(bundle: RecogniserBundle) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(bundle.model_path.with_name("report.json").read_text("utf-8"))
    return content


class TestBuildRecogniser:
    @pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_a_bundle_of_every_precision_reads_on_the_cpu(
        self, config: Callable[..., RecogniserBuildConfig], precision: Precision, runtime: str
    ) -> None:
        bundle = build_recogniser(config(precision=precision, runtime=runtime))
        assert (bundle.spec.precision, bundle.spec.runtime, bundle.spec.kind) == (precision, runtime, "recogniser")
        pictures = [whole_line(bars_recogniser.line(text)) for text in ("rgb", "bb", "grgrgr")]
        read = Recogniser.load(bundle.model_path.parent, threads=1).read_lines(pictures, direction=False)
        assert [each.text for each in read] == ["rgb", "bb", "grgrgr"]
        written = report(bundle)
        gate = written["gate"]
        assert (gate["cer"], gate["exact"], gate["agreement"], gate["transcribed"]) == (0, 1, 1, gate["lines"])
        rounded = "ONNX Runtime, rounding as the target does"
        assert gate["executed_by"] == (rounded if precision == "fp16" else "the target")
        if precision == "int8":
            assert {layer["name"]: layer["precision"] for layer in written["layers"]} == {
                "stem": "fp32",
                "mix": "int8",
                "head": "int8",
            }

    def test_unlabelled_photographs_are_cut_by_the_default_detector(
        self, config: Callable[..., RecogniserBuildConfig], labelled: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        quads = np.array([[[12, 8], [96, 8], [96, 56], [12, 56]]], np.float32)
        detector = SimpleNamespace(detect=lambda pixels: SimpleNamespace(quads=quads))
        monkeypatch.setattr(lines, "Detector", SimpleNamespace(load=lambda name, threads: detector))
        files = tuple(sorted((labelled / "img").iterdir()))
        gate = report(build_recogniser(config(data=DataConfig(evaluation_files=files))))["gate"]
        assert (gate["lines"], gate["transcribed"], gate["agreement"], gate["cer"]) == (4, 0, 1, None)

    def test_a_network_that_reads_something_else_is_refused(
        self, config: Callable[..., RecogniserBuildConfig], tmp_path: Path
    ) -> None:
        path = tmp_path / "digits.onnx"
        onnx.save(bars_recogniser.network(characters="0123456789", classes=11), str(path))
        message = "digits.onnx is not fit to serve: it misreads more than half of the letters of drawn lines"
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            build_recogniser(config(onnx=path, gate=False))
        assert not (tmp_path / "bundle").exists()
        bundle = build_recogniser(config(onnx=path, gate=False, trial=False))
        assert any(note.startswith("not fit to serve: it misreads") for note in report(bundle)["notes"])

    def test_int8_that_misreads_is_refused_with_its_figures(
        self, config: Callable[..., RecogniserBuildConfig], tmp_path: Path, labelled: Path
    ) -> None:
        # A scale of 100 (42c80000) for values up to 1 leaves nothing of them; 3c010a14 is 1 / 127.
        cache = tmp_path / "wrong.cache"
        cache.write_text("TRT-101200-EntropyCalibration2\ns4: 42c80000\npooled: 3c010a14\n")
        fields = {
            "precision": "int8",
            "runtime": "onnxruntime",
            "data": DataConfig(evaluation=labelled, calibration_cache=cache),
        }
        with pytest.raises(GateError, match="the gate on reading refuses this int8 network") as refused:
            build_recogniser(config(**fields, search=False))
        assert re.search(r"exact lines FP32 +1\.0000\n +exact lines +0\.0000\n", str(refused.value))
        assert not (tmp_path / "bundle").exists()
        bundle = build_recogniser(config(**fields))
        assert "1 layers were excluded from quantisation so that the gate passes" in report(bundle)["notes"]
        assert {layer["name"]: layer["precision"] for layer in report(bundle)["layers"]}["mix"] == "fp32"

    def test_an_engine_takes_as_many_lines_as_serving_puts_into_a_batch(self, tmp_path: Path) -> None:
        path = tmp_path / "bars.onnx"
        path.touch()
        assert RecogniserBuildConfig(path, tmp_path / "bundle").engine.max_batch == 32

    def test_options_of_detectors_are_refused(self, config: Callable[..., RecogniserBuildConfig]) -> None:
        with pytest.raises(InvalidInputError, match="preset is an option of detectors"):
            config(preset="ppocr")
        with pytest.raises(InvalidInputError, match="height must be from 1 to 1024"):
            config(height=0)

    def test_below_fp32_the_gate_needs_images(self, config: Callable[..., RecogniserBuildConfig]) -> None:
        with pytest.raises(InvalidInputError, match="photographs to measure ranges"):
            build_recogniser(config(precision="int8", data=DataConfig()))

    def test_limits_may_be_given(self, config: Callable[..., RecogniserBuildConfig]) -> None:
        bundle = build_recogniser(config(precision="int8", reading_limits=ReadingLimits(3, 4, 0.5)))
        assert report(bundle)["gate"]["limits"] == {"cer": 3, "exact": 4, "agreement": 0.5}

    def test_explain_describes_the_layers(self, config: Callable[..., RecogniserBuildConfig]) -> None:
        text = explain(build_recogniser(config(precision="int8", explain=True)))
        assert text.startswith("bars.onnx in int8")
        assert re.search(r"mix +convolution .* int8 +0\.0", text)
        assert "score error alone" in text


class TestEngine:
    def test_tensorrt_rtx_gets_widths_and_chooses_classes(
        self, config: Callable[..., RecogniserBuildConfig], tmp_path: Path
    ) -> None:
        pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'ocdserve[tensorrt-rtx]'")
        path = tmp_path / "spaces.onnx"
        onnx.save(bars_recogniser.network(classes=5), str(path))
        bundle = build_recogniser(config(onnx=path, precision="int8", runtime="tensorrt-rtx"))
        assert (bundle.spec.engine, bundle.spec.space) == ("model.plan", (4, 0.1))
        assert bundle.engine_path is not None and bundle.engine_path.stat().st_size > 0
        engine = report(bundle)["engine"]
        widths = bundle.spec.widths
        assert engine["profile"] == {
            "min": [1, 48, widths.smallest],
            "opt": [4, 48, 320],
            "max": [4, 48, widths.largest],
        }
        folded = fold_recogniser(load_onnx(bundle.model_path), bundle.spec.network, space=bundle.spec.space)
        assert [value.type.tensor_type.elem_type for value in folded.graph.output] == [
            TensorProto.INT32,
            TensorProto.FLOAT,
        ]
        types = {layer.name: layer.precision for layer in describe_layers(folded, "tensorrt-rtx")}
        assert types["network/mix"] == "INT8 (requested)"
        # The rest is FP16, and judged by a graph that rounds like it.
        assert report(bundle)["gate"]["executed_by"] == "ONNX Runtime, rounding as the target does"
        assert np.isfinite(report(bundle)["gate"]["score_error"])

    def test_an_engine_that_can_be_executed_is_judged_itself(
        self, config: Callable[..., RecogniserBuildConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'ocdserve[tensorrt-rtx]'")
        opened: list[RecogniserBundle] = []

        @contextmanager
        def deaf(bundle: RecogniserBundle) -> Iterator[Recogniser]:
            assert bundle.engine_path is not None and bundle.engine_path.is_file()
            opened.append(bundle)
            blanks = Steps(np.zeros(10, np.int32), np.ones(10, np.float32))
            network = SimpleNamespace(infer=lambda lines: [blanks] * len(lines))
            yield recogniser_of(bundle.spec, network)

        monkeypatch.setattr(build_module, "can_execute", lambda runtime, targets: targets == ("sm_89",))
        monkeypatch.setattr(build_module, "open_on_gpu", deaf)
        with pytest.raises(GateError, match="the gate on reading refuses this fp16 network"):
            build_recogniser(config(precision="fp16", runtime="tensorrt-rtx"))
        gate = report(build_recogniser(config(precision="fp16", runtime="tensorrt-rtx", gate_refuses=False)))["gate"]
        assert (gate["executed_by"], gate["exact"], len(opened)) == ("the target", 0, 2)

    def test_stretched_lines_are_for_the_cpu(self, config: Callable[..., RecogniserBuildConfig]) -> None:
        with pytest.raises(InvalidInputError, match="which only runtimes of the CPU are served with"):
            build_recogniser(config(runtime="tensorrt-rtx", export=ExportOptions(resize="stretch")))
