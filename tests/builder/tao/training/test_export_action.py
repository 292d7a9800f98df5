# SPDX-License-Identifier: Apache-2.0
"""The action `export`, from a checkpoint to the ONNX that gen_trt_engine and build take."""

from pathlib import Path

import onnx
import pytest

from ..conftest import Ocdnet


def test_the_file_lies_next_to_the_checkpoint_in_the_form_and_opset_of_the_spec(
    ocdnet: Ocdnet, checkpoint: Path
) -> None:
    arguments = ("export", f"export.checkpoint={checkpoint}", "export.onnx_file=''", "ocdserve.export_form=plugin")
    run = ocdnet(*arguments)
    assert run.code == 0, run.messages
    path = checkpoint.with_suffix(".onnx")
    assert f"Model exported to {path}" in run.messages.splitlines()
    assert run.kpi["opset"] == 18 and run.kpi["largest_difference"] < 1e-4
    model = onnx.load(str(path))
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
    layers = [node for node in model.graph.node if node.op_type == "ModulatedDeformConv2d"]
    assert [node.name for node in layers] == [
        f"/backbone/layer{stage}/layer{stage}.{block}/conv2/ModulatedDeformConv2d"
        for stage in (2, 3, 4)
        for block in (0, 1)
    ]
    for node in layers:
        assert node.domain == "" and node.input[3].endswith(".conv2.weight")
        assert {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute} == {
            "stride": [1, 1],
            "padding": [1, 1],
            "dilation": [1, 1],
            "group": 1,
            "deformable_group": 1,
        }
    (image,), (maps,) = model.graph.input, model.graph.output
    assert (image.name, maps.name) == ("input", "pred")
    assert [dim.dim_value for dim in image.type.tensor_type.shape.dim] == [0, 3, 0, 0]
    again = ocdnet(*arguments)
    assert again.code == 1 and f"Output file already exists at {path}. Move it away, or name" in again.messages


def test_a_checkpoint_of_another_network_is_refused(ocdnet: Ocdnet, checkpoint: Path) -> None:
    run = ocdnet("export", f"export.checkpoint={checkpoint}", "model.backbone=resnet50")
    assert run.code == 1 and "not those of the backbone resnet50, rather of deformable_resnet18" in run.messages
    assert not checkpoint.with_suffix(".onnx").exists()


@pytest.mark.long
@pytest.mark.parametrize("form", ["standard", "plugin"])
def test_gen_trt_engine_takes_both_forms(ocdnet: Ocdnet, checkpoint: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / "out" / "network.onnx"
    run = ocdnet(
        "export", f"export.checkpoint={checkpoint}", f"export.onnx_file={path}", f"ocdserve.export_form={form}"
    )
    assert run.code == 0, run.messages
    run = ocdnet(
        "gen_trt_engine",
        f"gen_trt_engine.onnx_file={path}",
        f"gen_trt_engine.trt_engine={tmp_path / 'network.engine'}",
        "gen_trt_engine.width=160",
        "gen_trt_engine.height=96",
        "ocdserve.runtime=onnxruntime",
    )
    assert run.code == 0, run.messages
    assert (tmp_path / "network.bundle" / "detector.json").is_file()


@pytest.mark.long
def test_a_pruned_network_is_exported(ocdnet: Ocdnet, checkpoint: Path) -> None:
    size = "dataset.validate_dataset.args.pre_processes=[{type: Resize2D, args: {short_size: [96, 64]}}]"
    run = ocdnet("prune", f"prune.checkpoint={checkpoint}", "prune.ch_sparsity=0.25", "prune.round_to=2", size)
    pruned = run.folder / "pruned_0.25.pth"
    graph = ("model.load_pruned_graph=true", f"model.pruned_graph_path={pruned}")
    run = ocdnet("export", f"export.checkpoint={pruned}", *graph)
    assert run.code == 0, run.messages
    model = onnx.load(str(pruned.with_suffix(".onnx")))
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert weights["backbone.conv1.weight"] == [6, 3, 7, 7]
    assert run.kpi["largest_difference"] < 1e-4
