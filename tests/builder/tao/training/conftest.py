# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of TAO's training actions; all need the extra `train`."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests run in parallel: more threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As Lightning writes it, of an eighth of the width: channels 8, 16, 32, 64."""
    from ocdserve.builder.train.networks.model import NetworkOptions, build_network

    torch.manual_seed(0)
    state = build_network(NetworkOptions(width=0.125)).state_dict()
    content = {
        "epoch": 0,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{name}": value for name, value in state.items()},
    }
    path = tmp_path / "model_epoch_000_step_00004.pth"
    torch.save(content, path)
    return path
