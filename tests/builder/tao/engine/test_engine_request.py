# SPDX-License-Identifier: Apache-2.0
"""From a spec of gen_trt_engine to the builder's configuration, and what is refused before any build."""

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from ocdserve.backend.device.probe import gpu_count
from ocdserve.builder.tao.engine.calibration import Plan
from ocdserve.builder.tao.engine.engine_request import batch_sizes, build_config, chosen_runtime, layer_rules, use_gpu
from ocdserve.builder.tao.spec import Spec, load_spec
from ocdserve.contract import InvalidInputError, UnavailableError

SIZE = (128, 192)

Write = Callable[..., Path]


@pytest.fixture
def network(tmp_path: Path, small_network: Callable[..., onnx.ModelProto]) -> Write:
    """Writes a network of the size SIZE (height, width), with dynamic batch or the given one."""

    def write(batch: int | None = None) -> Path:
        model = small_network(size=SIZE)
        if batch is not None:
            for value in (*model.graph.input, *model.graph.output):
                value.type.tensor_type.shape.dim[0].dim_value = batch
        path = tmp_path / "model.onnx"
        onnx.save(model, str(path))
        return path

    return write


def request(tmp_path: Path, *overrides: str) -> Spec:
    return load_spec(None, [f"gen_trt_engine.onnx_file={tmp_path / 'model.onnx'}", *overrides]).spec


class TestProfile:
    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ([], (1, 1, 1)),
            (["tensorrt.min_batch_size=1", "tensorrt.opt_batch_size=4", "tensorrt.max_batch_size=8"], (1, 4, 8)),
            (["batch_size=4"], (4, 4, 4)),
        ],
    )
    def test_batch_sizes_are_those_of_the_spec(
        self, network: Write, tmp_path: Path, overrides: list[str], expected: tuple[int, int, int]
    ) -> None:
        """Fault 21: TAO overwrites batch_size."""
        path = network()
        sizes = [f"gen_trt_engine.height={SIZE[0]}", f"gen_trt_engine.width={SIZE[1]}"]
        spec = request(tmp_path, *sizes, *(f"gen_trt_engine.{text}" for text in overrides))
        assert batch_sizes(spec.gen_trt_engine, path) == expected

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (["width=256"], "profile mismatch: model.onnx is 192 x 128 pixels .* but gen_trt_engine.width is 256"),
            (["tensorrt.max_batch_size=4"], "profile mismatch: model.onnx has the fixed batch 2"),
            (["tensorrt.min_batch_size=3"], "must grow"),
            (["batch_size=2", "tensorrt.max_batch_size=4"], "makes an engine of that batch alone"),
            (["batch_size=0"], "got 0"),
        ],
    )
    def test_contradictions_are_refused(self, network: Write, tmp_path: Path, overrides: list[str], words: str) -> None:
        path = network(batch=2)
        sizes = [f"gen_trt_engine.height={SIZE[0]}", f"gen_trt_engine.width={SIZE[1]}"]
        spec = request(tmp_path, *sizes, *(f"gen_trt_engine.{text}" for text in overrides))
        with pytest.raises(InvalidInputError, match=words):
            batch_sizes(spec.gen_trt_engine, path)

    def test_workspace_is_megabytes(self, network: Write, tmp_path: Path) -> None:
        """Fault 21: TAO multiplies megabytes by a gibibyte."""
        path = network()
        for megabytes, expected in ((1024, 1 << 30), (0, None)):
            spec = request(tmp_path, f"gen_trt_engine.tensorrt.workspace_size={megabytes}", "gen_trt_engine.height=128")
            config = build_config(spec, "tensorrt-rtx", path, tmp_path / "out", (1, 2, 4), Plan())
            assert config.engine.workspace_bytes == expected
            assert (config.engine.min_batch, config.engine.opt_batch, config.engine.max_batch) == (1, 2, 4)

    @pytest.mark.parametrize(("mode", "words"), [("RGB", None), ("GRAY", "GRAY cannot be used")])
    def test_img_mode_counts(self, network: Write, tmp_path: Path, mode: str, words: str | None) -> None:
        """Fault 21: TAO ignores it."""
        path = network()
        spec = request(tmp_path, f"gen_trt_engine.img_mode={mode}")
        if words is None:
            config = build_config(spec, "onnxruntime", path, tmp_path / "out", (1, 1, 1), Plan())
            assert config.detector is not None and config.detector.network.color == mode
        else:
            with pytest.raises(InvalidInputError, match=words):
                build_config(spec, "onnxruntime", path, tmp_path / "out", (1, 1, 1), Plan())


class TestLayerRules:
    def test_names_may_contain_colons(self) -> None:
        assert layer_rules(("a:b/Conv:FP16",))[0].pattern == "a:b/Conv"

    @pytest.mark.parametrize("text", ["a", "a:fp8", ":fp16", "a:int32"])
    def test_malformed_entries_are_refused(self, text: str) -> None:
        with pytest.raises(InvalidInputError, match=r"layers_precision|empty name"):
            layer_rules((text,))


class TestGpu:
    @pytest.mark.skipif(gpu_count() > 0, reason="this machine has a GPU; the refusal is for those without")
    def test_tensorrt_without_a_gpu_names_the_alternatives(self) -> None:
        with pytest.raises(UnavailableError, match=r"machine has none.*tensorrt-rtx.*onnxruntime"):
            chosen_runtime("tensorrt")

    @pytest.mark.parametrize(
        ("visible", "index", "expected"),
        [("4,7", 1, "7"), ("4,7", 2, ""), ("", 1, ""), (None, 1, "1"), ("4,7", 0, "4,7")],
    )
    def test_hidden_gpus_stay_hidden(
        self, monkeypatch: pytest.MonkeyPatch, visible: str | None, index: int, expected: str
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        use_gpu(index)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
