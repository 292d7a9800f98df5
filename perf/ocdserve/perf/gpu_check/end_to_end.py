# SPDX-License-Identifier: Apache-2.0
"""From JPEG bytes to quads in this process: the whole detector on the GPU, with many calls at the same time."""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import PRESETS, Bundle
from ocdserve.backend.cuda.decode import DecoderKind
from ocdserve.backend.cuda.detector import GpuDetector
from ocdserve.backend.cuda.device import Buffer, Device, Stream
from ocdserve.backend.cuda.options import GpuOptions
from ocdserve.backend.network import MapType
from ocdserve.backend.network.device_network import DeviceNetwork
from ocdserve.contract import OcdserveError
from ocdserve.perf.gpu_check.engines import opened, ready_bundles
from ocdserve.perf.gpu_check.load import Call, keep_busy
from ocdserve.perf.gpu_check.real_maps import drawn_photograph, fixed_policy, photographs, timed_cases
from ocdserve.perf.gpu_check.setting import Setting

NO_NETWORK = "no network"
_SLOTS = 3
_MAX_BATCH = 8
_CODEC = "nvidia.nvimgcodec"


class MapNetwork:
    """In place of a network: copies maps that are known; what is left is everything but the network.

    Args:
        device: The GPU.
        maps: (h, w) uint8 each, of one size; image number i of a batch gets map i.
    """

    map_type: MapType = "uint8"

    def __init__(self, device: Device, maps: Sequence[NDArray[np.uint8]]) -> None:
        batch = np.stack([maps[index % len(maps)] for index in range(_MAX_BATCH)])
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

    def release(self, stream: Stream, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.release`."""

    def close(self) -> None:
        """See `DeviceNetwork.close`."""
        self._maps.close()


def check_end_to_end(setting: Setting) -> None:
    """The whole part: the fastest networks that ran, then everything but a network."""
    images = [encoded for _, encoded in photographs(setting.files)] or [drawn_photograph()]
    decoders: list[DecoderKind] = ["cpu"]
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec(_CODEC):
        decoders.append("gpu")
    else:
        setting.record.absent("JPEG decoded on the GPU", "nvImageCodec is not installed")
    bundles = list(ready_bundles(setting.files.work))
    if not bundles:
        setting.record.absent("with a network", "no network ran in the part 'networks'")
    best = 0.0
    for bundle in bundles[:2]:
        for decoder in decoders:
            try:
                device = setting.open_device()
                best = max(best, _measure(setting, device, bundle, opened(bundle, device), images, decoder))
            except OcdserveError as error:
                setting.record.absent(f"{bundle.model_path.parent.name}, JPEG by the {decoder}", error)
            if best:
                _note_best(setting, best)
    size = setting.effort.size
    stand_in = Bundle(replace(PRESETS["ppocr"], name=NO_NETWORK, resize=fixed_policy(size)), setting.files.work)
    cases = timed_cases(setting)
    maps = [case.probability for case in cases.get("real", cases["sparse"])]
    for decoder in decoders:
        device = setting.open_device()
        _measure(setting, device, stand_in, MapNetwork(device, maps), images, decoder)


def _note_best(setting: Setting, best: float) -> None:
    figures = setting.record.figures
    figures[:] = [figure for figure in figures if figure.subject != "most images a second"]
    setting.record.count("most images a second", "JPEG to quads", best, "images/s")


def _measure(
    setting: Setting,
    device: Device,
    bundle: Bundle,
    network: DeviceNetwork,
    images: Sequence[bytes],
    decoder: DecoderKind,
) -> float:
    """Note the speed of one detector, which is closed with its device; returns the most images a second."""
    name = bundle.spec.name if bundle.spec.name == NO_NETWORK else bundle.model_path.parent.name
    options = GpuOptions(slots=_SLOTS, max_batch=_MAX_BATCH, decoder=decoder)
    best = 0.0
    with GpuDetector(bundle, device, network, options) as detector:
        detector.warm_up([(720, 1280)], (1, 2, 4, _MAX_BATCH))
        for callers in setting.effort.concurrencies:
            for together in (1, _MAX_BATCH):
                label = f"{name}, JPEG by the {decoder}, {callers} callers, {together} images a call"
                setting.go_on(label)
                chosen = [
                    [images[(caller + index) % len(images)] for index in range(together)] for caller in range(callers)
                ]
                calls = [_call(detector, each) for each in chosen]
                load = keep_busy(calls, together, min(setting.effort.load_s, setting.deadline.left_s / 4))
                setting.record.count("images a second", label, load.per_second, "images/s", f"{load.images} images")
                setting.record.time("call", label, [1000 * latency for latency in load.latencies_ms[:200]])
                best = max(best, load.per_second)
    return best


def _call(detector: GpuDetector, images: list[bytes]) -> Call:
    return lambda: detector.detect_batch(images)
