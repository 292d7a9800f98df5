# SPDX-License-Identifier: Apache-2.0
"""From JPEG bytes to quads in this process: the whole detector on the GPU, with many calls at the same time."""

import importlib.util
from collections.abc import Sequence

from ocdserve.backend import Bundle
from ocdserve.backend.device.protocol import Device
from ocdserve.backend.gpu.decode import DecoderKind
from ocdserve.backend.gpu.detector import GpuDetector
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.contract import OcdserveError
from ocdserve.perf.gpu_check.check_context import Setting
from ocdserve.perf.gpu_check.engines import opened, ready_bundles
from ocdserve.perf.gpu_check.fake_network import NO_NETWORK, MapNetwork, stand_in_bundle
from ocdserve.perf.gpu_check.load import Call, keep_busy
from ocdserve.perf.gpu_check.real_maps import drawn_photograph, photographs, timed_maps

_SLOTS = 3
_MAX_BATCH = 8
_CODEC = "nvidia.nvimgcodec"


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
    maps = timed_maps(setting)
    stand_in = stand_in_bundle(setting.files.work / "stand-in", maps)
    for decoder in decoders:
        try:
            device = setting.open_device()
            _measure(setting, device, stand_in, MapNetwork(device, maps), images, decoder)
        except OcdserveError as error:
            setting.record.absent(f"{NO_NETWORK}, JPEG by the {decoder}", error)


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
