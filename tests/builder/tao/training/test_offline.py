# SPDX-License-Identifier: Apache-2.0
"""Fault 27: TAO reports each run to NVIDIA by default, and needs imgaug, which nobody maintains."""

import socket
import sys
from pathlib import Path

import pytest

from .small_training import run_train


def test_a_training_connects_to_nothing_and_needs_no_imgaug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda self, address: tried.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *names, **options: tried.append(names))
    # A module that is None cannot be imported.
    for name in ("imgaug", "wandb", "torchvision", "albumentations"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run_train(tmp_path / "results", "train.num_epochs=1", "train.lr_scheduler.args.warmup_epoch=0") == 0
    assert tried == []
