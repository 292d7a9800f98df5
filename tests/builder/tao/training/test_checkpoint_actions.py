# SPDX-License-Identifier: Apache-2.0
"""Evaluate and inference of checkpoints, with a network that answers with the blue channel."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ocdserve.builder.train.networks.model import NetworkOptions, build_network
from ocdserve.builder.train.prune import prune
from ocdserve.builder.train.pruned_graph import save_pruned

from ..conftest import Ocdnet, label, line_of, picture

OPTIONS = NetworkOptions("deformable_resnet18", width=0.125)
WORD = (40, 64, 96, 32, 1.0)
SIZE = "dataset.validate_dataset.args.pre_processes=[{type: Resize2D, args: {short_size: [256, 160]}}]"


def blue_network() -> nn.Module:
    """An OCDNet that marks pixels whose blue, with TAO's normalisation, is above its mean, in blocks of 4 x 4.

    The first convolution passes the first channel (BGR) through its centre tap, the neck's finest level and the head
    pass that on; all else is zero.
    """
    network = build_network(OPTIONS).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.zero_()
            elif isinstance(getattr(module, "weight", None), nn.Parameter):
                module.weight.zero_()
                if getattr(module, "bias", None) is not None:
                    module.bias.zero_()
        network.backbone.conv1.weight[0, 0, 3, 3] = 1
        network.neck.in2.weight[0, 0] = 1
        network.neck.out2.weight[0, 0, 1, 1] = 1
        network.head.binarize[0].weight[0, 24, 1, 1] = 1
        network.head.binarize[3].weight[0, 0] = 1
        network.head.binarize[6].weight[0, 0] = 40
        network.head.binarize[6].bias.fill_(-4)
    return network


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model_best.pth"
    torch.save({"epoch": 3, "state_dict": blue_network().state_dict(), "metrics": {"hmean": 1.0}}, path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pictures of twice the network's size, of one word each, the second with a label somewhere else."""
    folder = tmp_path / "data"
    for stem, shift in (("a", 0), ("b", 200)):
        x, y, width, height, value = (2 * number for number in WORD)
        picture(folder / "img" / f"{stem}.png", [(int(x), int(y), int(width), int(height), value / 2)], (512, 320))
        # Boxes grow by 1.5 times area over perimeter, 18 pixels of the network.
        left, top, right, bottom = x - 36 + shift, y - 36, x + width + 36 + shift, y + height + 36
        box = [[left, top], [right, top], [right, bottom], [left, bottom]]
        label(folder, stem, [line_of(box, "word")])
    return folder


def status_of(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "status.json").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("compat", ["fixed", "tao"])
def test_the_nine_thresholds_and_their_best_are_tao_s_lines(
    ocdnet: Ocdnet, checkpoint: Path, data: Path, compat: str
) -> None:
    run = ocdnet(
        "evaluate",
        f"evaluate.checkpoint={checkpoint}",
        f"dataset.validate_dataset.data_path=[{data}]",
        f"ocdserve.compat={compat}",
        SIZE,
    )
    assert run.code == 0, run.messages
    lines = status_of(run.folder)
    assert [line["message"] for line in lines][:2] == [
        f"Loading checkpoint: {checkpoint}",
        f"thresh: 0.1, recall: 0.5, precision: 0.5, hmean: {0.5 if compat == 'fixed' else 0.4999999950000001}",
    ]
    assert [line["message"].split(",")[0] for line in lines[1:10]] == [f"thresh: 0.{step}" for step in range(1, 10)]
    assert lines[10]["message"] == "Test metrics generated."
    assert lines[10]["kpi"] == {"Thresh": 0.1, "Recall": 0.5, "Precision": 0.5, "Hmean": pytest.approx(0.5)}
    assert run.kpi["Thresh"] == 0.1 and run.kpi["hmean"] == pytest.approx(0.5) and "F-measure" not in run.kpi
    assert run.json("results.json")["F-measure"] == pytest.approx(0.5)
    assert run.json("report.json")["fixed"]["thresh"] == 0.3
    assert (run.folder / "worst.png").is_file()


def test_boxes_are_in_source_pixels_and_in_the_network_s_only_as_tao_writes_them(
    ocdnet: Ocdnet, checkpoint: Path, data: Path
) -> None:
    def corners(*overrides: str) -> list[int]:
        folder = f"inference.input_folder={data / 'img'}"
        size = ("inference.width=256", "inference.height=160")
        run = ocdnet("inference", f"inference.checkpoint={checkpoint}", folder, *size, *overrides)
        assert run.code == 0, run.messages
        (line,) = (run.folder / "a.txt").read_text().splitlines()
        return [int(field) for field in line.split(",")[:8]]

    assert corners() == pytest.approx([46, 94, 306, 94, 306, 226, 46, 226], abs=12)
    assert corners("ocdserve.compat=tao") == pytest.approx([23, 47, 153, 47, 153, 113, 23, 113], abs=6)


def test_a_pruned_checkpoint_needs_no_graph_beside_it_and_another_s_is_refused(
    ocdnet: Ocdnet, tmp_path: Path, data: Path
) -> None:
    image = torch.zeros(1, 3, 64, 64)
    paths = {}
    for sparsity in (0.25, 0.5):
        path = paths[sparsity] = tmp_path / f"pruned_{sparsity}.pth"
        save_pruned(path, prune(blue_network(), sparsity, 1, 2, image), OPTIONS)
    common = (f"dataset.validate_dataset.data_path=[{data}]", SIZE, f"evaluate.checkpoint={paths[0.25]}")
    graph = ("model.load_pruned_graph=true", f"model.pruned_graph_path={paths[0.25]}")
    assert ocdnet("evaluate", *common).kpi["hmean"] == pytest.approx(0.5)
    assert ocdnet("evaluate", *common, *graph).kpi["hmean"] == pytest.approx(0.5)
    run = ocdnet("evaluate", *common, graph[0], f"model.pruned_graph_path={paths[0.5]}")
    assert run.code == 1 and "was not trained from model.pruned_graph_path" in run.messages


def test_a_file_of_averaged_weights_alone_is_evaluated(ocdnet: Ocdnet, tmp_path: Path, data: Path) -> None:
    path = tmp_path / "model_epoch_003_step_00012_ema.pth"
    torch.save({f"model_ema.module.{name}": value for name, value in blue_network().state_dict().items()}, path)
    source = f"dataset.validate_dataset.data_path=[{data}]"
    assert ocdnet("evaluate", f"evaluate.checkpoint={path}", source, SIZE).kpi["hmean"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("action", "overrides", "message"),
    [
        (
            "evaluate",
            "evaluate.checkpoint=model.engine",
            "is an engine, not a checkpoint of PyTorch: set evaluate.trt_e",
        ),
        (
            "inference",
            "inference.checkpoint=x.onnx",
            "is an ONNX file, not a checkpoint of PyTorch: set inference.trt_e",
        ),
        ("evaluate", "model.backbone=fan_tiny_8_p4_hybrid", "rather of deformable_resnet18"),
        ("evaluate", "dataset.validate_dataset.args.pre_processes=[]", "pre_processes needs a Resize2D"),
        ("evaluate", "ocdserve.device=cuda", "there is no GPU 0 for PyTorch here: it sees 0"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused(
    ocdnet: Ocdnet, checkpoint: Path, data: Path, action: str, overrides: str, message: str
) -> None:
    if "fan" in overrides:
        pytest.importorskip("ocdserve.builder.train.networks.fan")
    if "cuda" in overrides and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    sources = (f"dataset.validate_dataset.data_path=[{data}]", f"inference.input_folder={data / 'img'}", SIZE)
    run = ocdnet(action, f"{action}.checkpoint={checkpoint}", *sources, overrides)
    assert run.code == 1 and message in run.messages
