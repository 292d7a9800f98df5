# SPDX-License-Identifier: Apache-2.0
"""The network on the GPU: what runs at all, how well it agrees with the CPU's, how fast it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device, Stream
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.backend.stages.image import decode
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.contract import OcdserveError, UnavailableError
from ocdserve.perf.gpu_check.cases import Case
from ocdserve.perf.gpu_check.check_context import Setting
from ocdserve.perf.gpu_check.engines import CANDIDATES, Candidate, macs, note_speed, opened, prepared
from ocdserve.perf.gpu_check.real_maps import drawn_photograph, fixed_policy, photographs, timed_cases
from ocdserve.perf.gpu_check.record import Record
from ocdserve.perf.gpu_check.timing import GraphTimer

_IMAGES = 8
_ROW = 4


@dataclass(frozen=True, eq=False)
class Picture:
    """Network pixels of a photograph, and the FP32 network's map of them on the CPU, where that is known."""

    pixels: NDArray[np.uint8]
    reference: Case | None


def check_networks(setting: Setting, candidates: Sequence[Candidate] = CANDIDATES) -> None:
    """The whole part; each candidate is tried, and one that fails does not stop the next."""
    with setting.device() as device:
        pictures = _pictures(setting)
        timer = GraphTimer(device, setting.effort)
        for candidate in candidates:
            setting.go_on(f"{candidate.name} and what comes after it")
            try:
                bundle = prepared(setting, candidate)
                network = opened(bundle, device)
            except (OcdserveError, ImportError) as error:
                setting.record.absent(candidate.name, error)
                continue
            try:
                measure_network(setting, device, timer, network, candidate.name, pictures)
                speed = setting.record.value("network, images a second", f"{candidate.name}, batch 8") or 0.0
                note_speed(setting.files.work, bundle, speed)
            except OcdserveError as error:
                if device.failed:
                    raise
                setting.record.absent(f"{candidate.name}: the rest", error)
            finally:
                if not device.failed:
                    network.close()
        timer.close()


def measure_network(
    setting: Setting, device: Device, timer: GraphTimer, network: DeviceNetwork, name: str, pictures: Sequence[Picture]
) -> None:
    """Note agreement and times of one network.

    Raises:
        OcdserveError: It does not take the size, or cannot be executed or recorded.
    """
    height, width = setting.effort.size
    most = max(setting.effort.batches)
    element = 1 if network.map_type == "uint8" else 4
    pixels, maps = device.allocate(most * height * width * 3), device.allocate(most * height * width * element)
    try:
        batch = np.stack([pictures[index % len(pictures)].pixels for index in range(most)])
        timer.stream.to_device(pixels, batch)
        timer.stream.synchronize()
        found = _maps(timer.stream, network, pixels, maps, min(len(pictures), most), (height, width))
        _note_agreement(setting.record, name, pictures, found)
        for count in setting.effort.batches:
            setting.go_on(f"{name}, batch {count}")
            work = _work(network, pixels, maps, count, height, width)
            try:
                times, note = timer.times_us([work], row=_ROW), ""
                alone = timer.times_us([work], row=1)
                setting.record.time("network, alone", f"{name}, batch {count}", alone, per=count)
            except UnavailableError as error:
                if device.failed:
                    raise
                times, note = timer.called_times_us(work), f"call by call, it cannot be recorded as a graph: {error}"
            each = setting.record.time("network", f"{name}, batch {count}", times, note, per=count)
            setting.record.count("network, images a second", f"{name}, batch {count}", 1e6 / each, "images/s")
            _note_share(setting, name, count, each)
            network.release(timer.stream, count, height, width)
    finally:
        timer.stream.synchronize()
        pixels.close()
        maps.close()


def _work(
    network: DeviceNetwork, pixels: Buffer, maps: Buffer, batch: int, height: int, width: int
) -> Callable[[Stream], None]:
    return lambda stream: network.enqueue(stream, pixels, maps, batch, height, width)


def _maps(
    stream: Stream, network: DeviceNetwork, pixels: Buffer, maps: Buffer, count: int, size: tuple[int, int]
) -> NDArray[np.uint8]:
    result: NDArray[Any] = np.empty((count, *size), network.map_type)
    network.enqueue(stream, pixels, maps, count, *size)
    stream.to_host(result, maps)
    stream.synchronize()
    return result if result.dtype == np.uint8 else np.rint(result * 255).astype(np.uint8)


def _note_agreement(record: Record, name: str, pictures: Sequence[Picture], found: NDArray[np.uint8]) -> None:
    pairs = [
        (case, levels)
        for case, levels in zip((picture.reference for picture in pictures), found, strict=False)
        if case is not None
    ]
    if not pairs:
        record.absent(f"{name}: agreement with the CPU", "there is no map of the CPU's to compare with")
        return
    errors = [float(np.abs(case.probability.astype(np.int16) - levels).mean()) / 255 for case, levels in pairs]
    boxes = [(postprocess(case.probability, case.frame, case.params), case, levels) for case, levels in pairs]
    counts = [(len(expected), len(postprocess(levels, case.frame, case.params))) for expected, case, levels in boxes]
    record.count("map error, mean absolute", name, float(np.mean(errors)), "", f"{len(pairs)} photographs")
    record.count("boxes of the FP32 network on the CPU", name, sum(expected for expected, _ in counts), "")
    record.count("boxes of this network", name, sum(here for _, here in counts), "")


def _note_share(setting: Setting, name: str, batch: int, each_us: float) -> None:
    """The share of the matrix ceiling that the part of the stages has measured."""
    work = macs(setting.files.carried)
    stages = Record.load(Path(setting.files.work) / "stages.json", "stages")
    ceiling = stages.value("matrix product", "torch, float16")
    if work is None or ceiling is None:
        missing = "the network's multiplications are not carried along" if work is None else "no ceiling was measured"
        setting.record.absent(f"{name}, batch {batch}: share of the matrix ceiling", missing)
        return
    share = 2 * work / (each_us * 1e6) / ceiling
    setting.record.count("share of the FP16 matrix ceiling", f"{name}, batch {batch}", share, "")


def _pictures(setting: Setting) -> list[Picture]:
    policy = fixed_policy(setting.effort.size)
    maps = {case.name: case for case in timed_cases(setting).get("real", [])}
    images = photographs(setting.files)[:_IMAGES] or [("drawn page", drawn_photograph())]
    return [Picture(preprocess(decode(encoded), policy)[0], maps.get(name)) for name, encoded in images]
