# SPDX-License-Identifier: Apache-2.0
"""Bundles whose networks are not in them: known maps, or PyTorch's ResNet-18, in this process and in served models."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import PRESETS, Bundle
from ocdserve.backend.device.protocol import Device
from ocdserve.backend.network import load
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.contract import MAX_BATCH_SIZE
from ocdserve.perf.gpu_check.network.fake_network import MapNetwork
from ocdserve.perf.gpu_check.network.torch_network import NAME as TORCH
from ocdserve.perf.gpu_check.network.torch_network import TorchNetwork
from ocdserve.perf.inputs.maps import fixed_policy
from ocdserve.perf.report.targets import NO_NETWORK

STAND_INS = (NO_NETWORK, TORCH)

_MAPS = "maps.npy"

# Prepended to a served model's own file.
_PREFIX = """
from ocdserve.perf.gpu_check.network.stand_ins import use_stand_in

use_stand_in({folder!r})

"""


def stand_in_bundle(folder: Path, maps: Sequence[NDArray[np.uint8]], name: str = NO_NETWORK) -> Bundle:
    """Write a bundle for a network of `STAND_INS`, in processes that call `use_stand_in` or `stand_in`."""
    folder.mkdir(parents=True, exist_ok=True)
    height, width = maps[0].shape
    spec = replace(PRESETS["ppocr"], name=name, resize=fixed_policy((height, width)))
    (folder / spec.model).write_bytes(b"")
    (folder / "detector.json").write_text(spec.to_json(), "utf-8")
    np.save(folder / _MAPS, np.stack(maps[:MAX_BATCH_SIZE]))
    return Bundle.load(folder)


def stand_in(bundle: Bundle, device: Device) -> DeviceNetwork:
    """The network of such a bundle.

    Raises:
        UnavailableError: PyTorch cannot execute it.
    """
    maps = list(np.load(bundle.model_path.parent / _MAPS))
    return TorchNetwork(device, maps) if bundle.spec.name == TORCH else MapNetwork(device, maps)


def use_stand_in(folder: str) -> None:
    """In this process, replace every network that is loaded onto a GPU with that of the bundle in a folder."""
    known = Bundle.load(folder)
    vars(load).update(
        check_gpu=lambda *arguments: None,
        load_device_network=lambda bundle, options, device: stand_in(known, device),
    )


def serve_stand_in(model: Path, folder: Path) -> None:
    """Make a published model call `use_stand_in`; `model` is its folder, `folder` that of the bundle."""
    code = model / "1" / "model.py"
    code.write_text(_PREFIX.format(folder=str(folder)) + code.read_text("utf-8"), "utf-8")
