# SPDX-License-Identifier: Apache-2.0
"""Known maps in place of a network, to measure everything else on any GPU."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import PRESETS, Bundle
from ocdserve.backend.device.protocol import Buffer, Device, Stream
from ocdserve.backend.network import load
from ocdserve.backend.network.options import MapType
from ocdserve.contract import MAX_BATCH_SIZE
from ocdserve.perf.inputs.maps import fixed_policy
from ocdserve.perf.report.targets import NO_NETWORK

_MAPS = "maps.npy"

# Prepended to a served model's own file.
_PREFIX = """
from ocdserve.perf.gpu_check.fake_network import use_maps

use_maps({folder!r})

"""


class MapNetwork:
    """A `DeviceNetwork` whose output does not depend on its input.

    Args:
        device: The GPU.
        maps: (h, w) uint8, all of one size; image i of a batch gets map i, modulo their number.
    """

    map_type: MapType = "uint8"

    def __init__(self, device: Device, maps: Sequence[NDArray[np.uint8]]) -> None:
        batch = np.stack([maps[index % len(maps)] for index in range(MAX_BATCH_SIZE)])
        self._maps = device.allocate(batch.nbytes)
        stream = device.stream()
        stream.to_device(self._maps, batch)
        stream.synchronize()
        stream.close()

    def check(self, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.check`."""

    def enqueue(self, stream: Stream, pixels: Buffer, maps: Buffer, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.enqueue`."""
        stream.copy(maps, self._maps, batch * height * width)

    def unrecordable(self) -> str:
        """See `DeviceNetwork.unrecordable`."""
        return ""

    def release(self, stream: Stream, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.release`."""

    def close(self) -> None:
        """See `DeviceNetwork.close`."""
        self._maps.close()


def fake_bundle(folder: Path, maps: Sequence[NDArray[np.uint8]]) -> Bundle:
    """Write a bundle whose network is replaced with these maps in processes that call `use_maps`."""
    folder.mkdir(parents=True, exist_ok=True)
    height, width = maps[0].shape
    spec = replace(PRESETS["ppocr"], name=NO_NETWORK, resize=fixed_policy((height, width)))
    (folder / spec.model).write_bytes(b"")
    (folder / "detector.json").write_text(spec.to_json(), "utf-8")
    np.save(folder / _MAPS, np.stack(maps[:MAX_BATCH_SIZE]))
    return Bundle.load(folder)


def use_maps(folder: str) -> None:
    """In this process, replace every network that is loaded onto a GPU with the maps of `fake_bundle`."""
    maps = list(np.load(Path(folder) / _MAPS))
    vars(load).update(
        check_gpu=lambda *arguments: None,
        load_device_network=lambda bundle, options, device: MapNetwork(device, maps),
    )


def serve_maps(model: Path, folder: Path) -> None:
    """Make a published model call `use_maps`; `model` is its folder, `folder` that of the bundle."""
    code = model / "1" / "model.py"
    code.write_text(_PREFIX.format(folder=str(folder)) + code.read_text("utf-8"), "utf-8")
