# SPDX-License-Identifier: Apache-2.0
"""The action `prune`, from a checkpoint to the file that training starts from."""

from pathlib import Path

import pytest

from ocdserve.builder.train.pruned_graph import build_from_pruned

from ..conftest import Ocdnet

SIZE = "dataset.validate_dataset.args.pre_processes=[{type: Resize2D, args: {short_size: [96, 64]}}]"


def test_a_checkpoint_loses_channels_and_the_figures_are_said_as_tao_says_them(
    ocdnet: Ocdnet, checkpoint: Path
) -> None:
    run = ocdnet("prune", f"prune.checkpoint={checkpoint}", "prune.ch_sparsity=0.25", "prune.round_to=2", SIZE)
    assert run.code == 0, run.messages
    path = run.folder / "pruned_0.25.pth"
    pruned = build_from_pruned(path)
    assert pruned.backbone.conv1.weight.shape == (6, 3, 7, 7)
    assert pruned.neck.in5.weight.shape == (24, 48, 1, 1)
    lines = run.messages.splitlines()
    assert lines[:2] == ["Base FLOPs: 0 G, Pruned FLOPs: 0 G", "Base Params: 0 M, Pruned Params: 0 M"]
    assert lines[2].startswith("Pruning ratio: 0.6")
    assert lines[3] == f"Pruned model save to {path}"
    assert run.kpi["parameters"] == sum(parameter.numel() for parameter in pruned.parameters())
    again = ocdnet("prune", f"prune.checkpoint={path}", "prune.ch_sparsity=0.5", "prune.round_to=1", SIZE)
    assert build_from_pruned(again.folder / "pruned_0.5.pth").backbone.conv1.weight.shape == (3, 3, 7, 7)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("prune.round_to=128", "no channel was removed: with ch_sparsity 0.1 and round_to 128 all layers keep theirs"),
        ("model.backbone=deformable_resnet50", "not those of the backbone deformable_resnet50, rather of deformable_r"),
        ("prune.checkpoint=model.engine", "prune.checkpoint: model.engine is an engine, not a checkpoint of PyTorch"),
        ("prune.checkpoint=missing.pth", "prune.checkpoint: there is no file 'missing.pth'"),
        ("model.load_pruned_graph=true", "The load_pruned_graph is set to True. But the pruned_graph_path is not avai"),
    ],
)
def test_what_cannot_be_pruned_is_refused(ocdnet: Ocdnet, checkpoint: Path, overrides: str, message: str) -> None:
    run = ocdnet("prune", f"prune.checkpoint={checkpoint}", SIZE, overrides)
    assert run.code == 1 and message in run.messages
    assert not list(run.folder.glob("*.pth"))
