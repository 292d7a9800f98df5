# SPDX-License-Identifier: Apache-2.0
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from ocdserve.backend.spec.bundle import Bundle
from ocdserve.builder import ExportOptions
from ocdserve.builder.graph.describe import describe, network_size
from ocdserve.builder.graph.exported import file_sha256
from ocdserve.contract import InvalidInputError

SmallNetwork = Callable[..., onnx.ModelProto]


@pytest.fixture
def saved(tmp_path: Path, small_network: SmallNetwork) -> Callable[..., Path]:
    def save(change: Callable[[onnx.ModelProto], None] | None = None, **arguments: object) -> Path:
        model = small_network(**arguments)
        if change is not None:
            change(model)
        path = tmp_path / "mine.onnx"
        onnx.save(model, str(path))
        return path

    return save


class TestDescribe:
    def test_the_default_network(self) -> None:
        found = describe(Bundle.load().model_path)
        assert (found.spec.network.input, found.spec.network.output) == ("x", "fetch_name_0")
        assert found.spec.resize.kind == "short_side" and found.spec.postprocess.unclip_ratio == 1.5
        assert (found.size, found.batch) == (None, None)
        assert found.notes[:2] == ("recognised as an export of the preset ppocr", "opset raised from 11 to 19")
        assert not any(node.op_type == "Identity" for node in found.model.graph.node)

    def test_a_static_size_becomes_dynamic_if_the_graph_allows_it(self, saved: Callable[..., Path]) -> None:
        found = describe(saved(size=(64, 96)), preset="ocdnet")
        assert (found.size, found.batch) == (None, None)
        dims = found.model.graph.input[0].type.tensor_type.shape.dim
        assert [dim.dim_value for dim in dims] == [0, 3, 0, 0]

    def test_a_size_in_the_graph_stays_and_becomes_the_resize_policy(self, saved: Callable[..., Path]) -> None:
        def pin(model: onnx.ModelProto) -> None:
            """Add a constant of the size of the map, as exporters do that compute positions."""
            node = model.graph.node[-1]
            node.input[0] = "pinned"
            model.graph.node.insert(15, helper.make_node("Add", ["h", "positions"], ["pinned"], "pin"))
            positions = np.zeros((1, 1, 64, 96), np.float32)
            model.graph.initializer.append(numpy_helper.from_array(positions, "positions"))

        path = saved(pin, size=(64, 96))
        fixed = describe(path, preset="ocdnet")
        assert fixed.size == (64, 96) and fixed.spec.resize.sizes(500, 500) == ((64, 96), (64, 96))
        assert "96 x 64 (width x height)" in " ".join(fixed.notes)
        kept = describe(path, preset="dbnet").spec.resize
        assert kept.kind == "letterbox" and kept.sizes(640, 640) == ((64, 96), (64, 64))

    def test_the_normal_form_computes_the_same(self, saved: Callable[..., Path]) -> None:
        import onnxruntime

        path = saved(opset=13)
        x = np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype("f")
        models = onnx.load(str(path)), describe(path, preset="dbnet").model
        first, second = (
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
                None, {"x": x}
            )[0]
            for model in models
        )
        np.testing.assert_allclose(first, second, atol=1e-6)
        assert models[1].opset_import[0].version == 19

    def test_other_outputs_are_dropped(self, saved: Callable[..., Path]) -> None:
        def expose(model: onnx.ModelProto) -> None:
            model.graph.output.append(helper.make_tensor_value_info("c2", onnx.TensorProto.FLOAT, None))

        path = saved(expose)
        with pytest.raises(InvalidInputError, match=r"outputs \['p', 'c2'\]: name .* by --output-tensor"):
            describe(path, preset="dbnet")
        found = describe(path, preset="dbnet", export=ExportOptions(output="p"))
        assert [value.name for value in found.model.graph.output] == ["p"]
        with pytest.raises(InvalidInputError, match="by --output-tensor; got 'q'"):
            describe(path, preset="dbnet", export=ExportOptions(output="q"))

    def test_an_unknown_exporter_needs_a_preset(self, saved: Callable[..., Path]) -> None:
        with pytest.raises(InvalidInputError, match=r"inputs \['x'\] and outputs \['p'\].*Name the preset: ppocr"):
            describe(saved())

    def test_an_export_of_tao_is_recognised(self, saved: Callable[..., Path]) -> None:
        def rename(model: onnx.ModelProto) -> None:
            model.graph.input[0].name = model.graph.node[0].input[0] = "input"
            model.graph.output[0].name = model.graph.node[-1].output[0] = "pred"

        assert describe(saved(rename)).notes[0] == "recognised as an export of the preset ocdnet"

    def test_the_size_that_figures_refer_to(self) -> None:
        assert network_size(Bundle.load().spec) == (736, 1280)


class TestFileSha256:
    def test_is_that_of_the_file(self, saved: Callable[..., Path]) -> None:
        path = saved()
        assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_external_data_counts(self, tmp_path: Path, small_network: SmallNetwork) -> None:
        path = tmp_path / "external.onnx"
        onnx.save(small_network(), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
        before = file_sha256(path)
        assert describe(path, preset="dbnet").sha256 == before
        data = bytearray((tmp_path / "weights.bin").read_bytes())
        data[0] ^= 1
        (tmp_path / "weights.bin").write_bytes(data)
        assert file_sha256(path) != before
