# SPDX-License-Identifier: Apache-2.0
"""The action `quantize`: what its backends take, write and refuse."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from ocdserve.backend import Bundle
from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.tao.training.network import network_of_checkpoint
from ocdserve.builder.train.networks.model import NetworkOptions, build_network
from ocdserve.contract import InvalidInputError

from ..conftest import Ocdnet

STATIC = "quantize.mode=static_ptq"
WEIGHTS = "quantize.layers=[{module_name: '%s', weights: {dtype: int8}}]"
INT8 = "quantize.layers=[{module_name: '%s', weights: {dtype: int8}, activations: {dtype: int8}}]"


@pytest.fixture
def exported(small_network: Callable[..., onnx.ModelProto], tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(small_network(), str(path))
    return path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([STATIC], "Unsupported mode 'static_ptq' for backend 'torchao'. Supported modes: ['weight_only_ptq']"),
        (["quantize.backend=modelopt.pytorch"], "for backend 'modelopt.pytorch'. Supported modes: ['static_ptq']"),
        (["quantize.backend=modelopt.onnx"], "for backend 'modelopt.onnx'. Supported modes: ['static_ptq']"),
        (["quantize.model_path=model_best.pth"], "model_best.pth holds weights but no state of a training"),
        (
            ["quantize.backend=modelopt.onnx", STATIC],
            "is not an ONNX file; the backend modelopt.onnx takes an exported",
        ),
        (
            ["quantize.layers=[Linear]"],
            "quantize.layers: an entry must be {module_name: PATTERN, weights: {dtype: int8",
        ),
        (["quantize.layers=[{module_name: a, weights: {bits: 8}}]"], "quantize.layers: weights of 'a' must hold dtype"),
    ],
)
def test_what_does_not_fit_is_refused(
    ocdnet: Ocdnet, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    torch.save({"state_dict": build_network(NetworkOptions(width=0.125)).state_dict()}, "model_best.pth")
    run = ocdnet("quantize", f"quantize.model_path={checkpoint}", *overrides)
    assert run.code == 1 and message in run.messages
    assert [path.name for path in run.folder.iterdir()] == []


def test_torchao_has_nothing_to_quantise_in_convolutions(ocdnet: Ocdnet, checkpoint: Path) -> None:
    run = ocdnet("quantize", f"quantize.model_path={checkpoint}", INT8 % "Conv2d")
    assert run.code == 1 and "torchao quantises weights of linear layers only" in run.messages
    assert "gen_trt_engine.tensorrt.data_type=INT8" in run.messages


def test_torchao_quantises_the_linear_layers_of_fan_and_the_file_is_read(ocdnet: Ocdnet, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao.quantization")
    options = NetworkOptions("fan_tiny_8_p4_hybrid", width=0.125)
    trained = build_network(options).eval()
    checkpoint = tmp_path / "model_epoch_000_step_00004.pth"
    torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": trained.state_dict()}, checkpoint)
    backbone = f"model.backbone={options.backbone}"
    path = f"quantize.model_path={checkpoint}"
    run = ocdnet("quantize", path, backbone, WEIGHTS % "*", "quantize.skip_names=['neck.*']")
    assert run.code == 0, run.messages
    file = run.folder / "quantized_model_torchao.pth"
    # Eight blocks of q, kv, proj, mlp.q, fc1 and fc2, two of q, k, v, proj, fc1 and fc2.
    assert run.kpi["quantised_layers"] == 8 * 6 + 2 * 6
    assert "layers that the rules choose stay as they are, since torchao cannot quantise them" in run.messages
    spec = replace(Spec(), model=replace(Spec().model, backbone=options.backbone))
    network = network_of_checkpoint(spec, file, "evaluate.checkpoint")
    assert torch.equal(network.neck.linear_c1.proj.weight, trained.neck.linear_c1.proj.weight)
    image = torch.rand(1, 3, 64, 64)
    difference = (network(image) - trained(image)).abs().max()
    assert 0 < difference < 0.02


def test_modelopt_simulates_what_its_rules_choose(ocdnet: Ocdnet, checkpoint: Path, pictures: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("modelopt.torch.quantization")
        run = ocdnet(
            "quantize",
            f"quantize.model_path={checkpoint}",
            "quantize.backend=modelopt.pytorch",
            STATIC,
            INT8 % "backbone.layer[34].*.conv?",
            "quantize.skip_names=['*.layer4.1.*']",
            f"dataset.quant_calibration_dataset.images_dir={pictures}",
            "dataset.validate_dataset.args.pre_processes=[{type: Resize2D, args: {short_size: [96, 64]}}]",
        )
        assert run.code == 0, run.messages
        file = run.folder / "quantized_model_modelopt.pytorch.pth"
        # Of layer3.0, layer3.1 and layer4.0 the first convolutions: the second ones are deformable.
        assert (
            run.kpi["quantised_layers"] == 3 and "3 of 6 layers that the rules choose stay as they are" in run.messages
        )
        network = network_of_checkpoint(Spec(), file, "evaluate.checkpoint")
        with pytest.raises(InvalidInputError, match="which only evaluate and inference take"):
            network_of_checkpoint(Spec(), file, "export.checkpoint")
    assert network.backbone.layer3[0].conv1.weight_quantizer.is_enabled
    assert not network.backbone.layer4[1].conv1.weight_quantizer.is_enabled


def test_an_onnx_is_quantised_by_our_builder(ocdnet: Ocdnet, exported: Path, pictures: Path) -> None:
    run = ocdnet(
        "quantize",
        f"quantize.model_path={exported}",
        "quantize.backend=modelopt.onnx",
        STATIC,
        "quantize.skip_names=[b]",
        f"dataset.quant_calibration_dataset.images_dir={pictures}",
        "dataset.validate_dataset.args.pre_processes=[{type: Resize2D, args: {short_size: [320, 256]}}]",
        "ocdserve.threads=1",
    )
    assert run.code == 0, run.messages
    nodes = onnx.load(str(run.folder / "quantized_model_modelopt.onnx")).graph.node
    quantised = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    typed = {node.name: node.input[1] in quantised for node in nodes if node.op_type == "Conv"}
    assert typed["a"] and not typed["b"]
    assert Bundle.load(run.folder / "quantized_model_modelopt.bundle").spec.runtime == "onnxruntime"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "quantize.algorithm=awq_lite",
            "quantize.algorithm awq_lite is not for this network: it quantises the weights of",
        ),
        (
            "dataset.quant_calibration_dataset.images_dir=''",
            "needs images to calibrate with: set dataset.quant_calibra",
        ),
        (
            "quantize.skip_names=['*']",
            "nothing would be quantised: no rule of quantize.layers matches a layer, or quant",
        ),
        (
            "quantize.layers=[{module_name: Conv, weights: {dtype: fp8_e4m3fn}}]",
            "'Conv' asks for FP8, which the backend",
        ),
    ],
)
def test_an_onnx_is_not_quantised_otherwise(
    ocdnet: Ocdnet, exported: Path, pictures: Path, overrides: str, message: str
) -> None:
    images = f"dataset.quant_calibration_dataset.images_dir={pictures}"
    run = ocdnet(
        "quantize", f"quantize.model_path={exported}", "quantize.backend=modelopt.onnx", STATIC, images, overrides
    )
    assert run.code == 1 and message in run.messages
