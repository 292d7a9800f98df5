# SPDX-License-Identifier: Apache-2.0
"""Networks on the GPU: which of them run, their agreement with the CPU's, their speed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device, Stream
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.backend.stages.image import decode
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.contract import OcdserveError, UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.load.in_process import measure_in_process
from ocdserve.perf.gpu_check.maps import drawn_photograph, timed_cases
from ocdserve.perf.gpu_check.network.engines import (
    CANDIDATES,
    Candidate,
    macs,
    note_speed,
    opened,
    prepared,
    ready_bundles,
)
from ocdserve.perf.gpu_check.network.stand_ins import STAND_INS
from ocdserve.perf.gpu_check.timing import GraphTimer
from ocdserve.perf.inputs.data_sets import photographs
from ocdserve.perf.inputs.maps import Case, fixed_policy
from ocdserve.perf.series.measurement import find
from ocdserve.perf.series.results import load_results

_IMAGES = 8
_ROW = 4
# Batch size by whose speed bundles are ordered.
_SPEED_BATCH = 8


@dataclass(frozen=True, eq=False)
class Picture:
    """Input pixels of a photograph, and the map of the FP32 network on the CPU if known."""

    pixels: NDArray[np.uint8]
    reference: Case | None


def check_networks(context: CheckContext, candidates: Sequence[Candidate] = CANDIDATES) -> None:
    """Try each candidate; one that fails does not stop the next. Measure the whole detector with the fastest."""
    with context.device() as device:
        pictures, work = pictures_of(context), macs(context.files.carried)
        timer = GraphTimer(device, context.effort)
        for candidate in candidates:
            context.checkpoint(f"{candidate.name} and later networks")
            try:
                bundle = prepared(context, candidate)
                network = opened(bundle, device)
            except (OcdserveError, ImportError) as error:
                context.absent(candidate.name, error)
                continue
            try:
                note_speed(
                    context.files.work,
                    bundle,
                    measure_network(context, device, timer, network, candidate.name, pictures, work),
                )
            except OcdserveError as error:
                if device.failed:
                    raise
                context.absent(f"{candidate.name}: the rest", error)
            finally:
                if not device.failed:
                    network.close()
        timer.close()
    bundles = [bundle for bundle in ready_bundles(context.files.work) if bundle.spec.name not in STAND_INS]
    measure_in_process(context, bundles[:1])


def measure_network(
    context: CheckContext,
    device: Device,
    timer: GraphTimer,
    network: DeviceNetwork,
    name: str,
    pictures: Sequence[Picture],
    operations: int | None = None,
) -> float:
    """Measure the agreement and the times of one network; returns images per second in batches of 8, else 0.

    `operations` are its multiply-accumulate operations per image, None if unknown.

    Raises:
        OcdserveError: It does not take the size, or cannot be executed.
    """
    height, width = context.effort.size
    most = max(context.effort.batches)
    element = 1 if network.map_type == "uint8" else 4
    pixels, maps = device.allocate(most * height * width * 3), device.allocate(most * height * width * element)
    speed = 0.0
    try:
        batch = np.stack([pictures[index % len(pictures)].pixels for index in range(most)])
        timer.stream.to_device(pixels, batch)
        timer.stream.synchronize()
        found = _maps(timer.stream, network, pixels, maps, min(len(pictures), most), (height, width))
        agreement = _agreement(context, name, pictures, found)
        for count in context.effort.batches:
            context.checkpoint(f"{name}, batch {count}")
            work = partial(network.enqueue, pixels=pixels, maps=maps, batch=count, height=height, width=width)
            executed, facts = "in a row", dict(agreement)
            try:
                times = timer.times_us([work], row=_ROW)
                alone = timer.times_us([work], row=1)
                context.add(name, "photographs", "µs", alone, {"batch": count, "executed": "alone"})
            except UnavailableError as error:
                if device.failed:
                    raise
                executed, times = "call by call", timer.called_times_us(work)
                facts["note"] = f"it cannot be recorded as a graph: {error}"
            each = median(times) / count
            facts |= {
                "µs per image": each,
                "images/s": 1e6 / each,
                **_matrix_share(context, name, count, each, operations),
            }
            context.add(name, "photographs", "µs", times, {"batch": count, "executed": executed}, facts)
            speed = 1e6 / each if count == _SPEED_BATCH else speed
            network.release(timer.stream, count, height, width)
    finally:
        timer.stream.synchronize()
        pixels.close()
        maps.close()
    return speed


def _maps(
    stream: Stream, network: DeviceNetwork, pixels: Buffer, maps: Buffer, count: int, size: tuple[int, int]
) -> NDArray[np.uint8]:
    result: NDArray[Any] = np.empty((count, *size), network.map_type)
    network.enqueue(stream, pixels, maps, count, *size)
    stream.to_host(result, maps)
    stream.synchronize()
    return result if result.dtype == np.uint8 else np.rint(result * 255).astype(np.uint8)


def _agreement(
    context: CheckContext, name: str, pictures: Sequence[Picture], found: NDArray[np.uint8]
) -> dict[str, str | int | float]:
    """Facts about the agreement of maps and boxes with those of the FP32 network on the CPU."""
    pairs = [(case, levels) for picture, levels in zip(pictures, found, strict=False) if (case := picture.reference)]
    if not pairs:
        context.absent(f"{name}: agreement with the CPU", "there is no map of the CPU to compare with")
        return {}
    errors = [float(np.abs(case.probability.astype(np.int16) - levels).mean()) / 255 for case, levels in pairs]
    expected = sum(len(postprocess(case.probability, case.frame, case.params)) for case, _ in pairs)
    here = sum(len(postprocess(levels, case.frame, case.params)) for case, levels in pairs)
    return {
        "map error, mean absolute": float(np.mean(errors)),
        "photographs compared": len(pairs),
        "boxes": here,
        "boxes of the FP32 network on the CPU": expected,
    }


def _matrix_share(context: CheckContext, name: str, batch: int, each_us: float, work: int | None) -> dict[str, float]:
    """Share of the rate of FP16 matrix products in the results of the facts, as a fact."""
    path = context.files.work / "facts.json"
    facts = load_results(path).measurements if path.is_file() else ()
    rates = [
        one.facts["TFLOP/s"] for one in find(facts, subject="torch matrix product") if "float16" in one.group.split()
    ]
    if work is None or not rates:
        missing = "the network's multiplications are not known" if work is None else "no rate was measured"
        context.absent(f"{name}, batch {batch}: share of the FP16 matrix rate", missing)
        return {}
    return {"share of the FP16 matrix rate": 2 * work / (each_us * 1e6) / float(rates[0])}


def pictures_of(context: CheckContext) -> list[Picture]:
    policy = fixed_policy(context.effort.size)
    maps = {case.name: case for case in timed_cases(context).get("real", [])}
    images = photographs(context.files.data)[:_IMAGES] or [("drawn page", drawn_photograph())]
    return [Picture(preprocess(decode(encoded), policy)[0], maps.get(name)) for name, encoded in images]
