# SPDX-License-Identifier: Apache-2.0
"""Measure in about 10 seconds what this processor gives: the built-in detectors on a drawn receipt, decoding included.

On one thread, one picture after the other, and on all cores, as many pictures at a time. On a busy machine the times
are larger; on one thread the detectors take turns, so that their ratios change less.
"""

import argparse
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from ocdserve.backend.cores import core_count
from ocdserve.backend.processor import cpu_flags, cpu_model, cpuinfo, float32_set, instruction_sets
from ocdserve.contract import not_one_of

if TYPE_CHECKING:
    from ocdserve.backend import Bundle, Detector

# Seconds on one thread, of all detectors together; on all cores, of each.
_ONE_THREAD_S, _ALL_CORES_S = 4.0, 1.0
_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Speed:
    """What one detector gives.

    Attributes:
        bundle: Its name.
        width: Of the picture in the network, in pixels.
        height: The same.
        ms_one_thread: Median milliseconds of a picture on one thread.
        pictures_per_s_all_cores: Pictures per second on all cores.
    """

    bundle: str
    width: int
    height: int
    ms_one_thread: float
    pictures_per_s_all_cores: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--runtime", metavar="NAME", help="runtime of the networks (default: the fastest installed)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    from ocdserve.backend.network.load import chosen_runtime
    from ocdserve.backend.network.options import CPU_RUNTIMES, RUNTIMES
    from ocdserve.backend.spec.bundle import BUILT_IN, Bundle
    from ocdserve.perf.inputs.pictures import encoded, receipt
    from ocdserve.perf.series.threads import opencv_threads

    if args.runtime is not None and args.runtime not in CPU_RUNTIMES:
        raise not_one_of("--runtime", args.runtime, CPU_RUNTIMES)
    image = receipt().image
    bundles = {name: Bundle.load(name) for name in BUILT_IN}
    runtime = chosen_runtime(bundles["default"], args.runtime)
    with opencv_threads(1):
        speeds = measured({name: _loaded(bundle, runtime) for name, bundle in bundles.items()}, encoded(image))
    description = cpuinfo()
    flags = cpu_flags(description)
    used = float32_set(flags)
    # bfloat16 is used where the processor has it, by OpenVINO.
    has_bf16 = runtime == "openvino" and "BF16" in instruction_sets(flags)
    halved = [name for name, bundle in bundles.items() if has_bf16 and bundle.spec.precision == "bf16"]
    facts = {
        "processor": cpu_model(description),
        "cores": core_count(),
        "runtime": f"{runtime} {metadata.version(RUNTIMES[runtime].distributions[0])}" if runtime else "",
        "instruction_set": used,
        "in_bf16": halved,
        "picture": f"receipt, {image.width} x {image.height}",
    }
    if args.json:
        print(json.dumps({**facts, "detectors": [asdict(speed) for speed in speeds]}))
        return 0
    print(f"{facts['processor']}, {facts['cores']} cores; {facts['runtime']}{f' with {used}' if used else ''}")
    print(f"a drawn {facts['picture']}, decoded each time\n")
    print(f"{'':10}{'':6}{'network size':>12}{'ms, one thread':>17}{'pictures per second, all cores':>33}")
    for speed in speeds:
        size = f"{speed.width} x {speed.height}"
        precision = "BF16" if speed.bundle in halved else "FP32"
        print(
            f"{speed.bundle:10}{precision:6}{size:>12}{speed.ms_one_thread:>17.0f}{speed.pictures_per_s_all_cores:>33.1f}"
        )
    return 0


def measured(detectors: Mapping[str, "Detector"], encoded: bytes) -> list[Speed]:
    """The speed of each detector, by its name.

    Args:
        detectors: Loaded so that an image takes one thread, and that the network takes as many at a time as there are
            cores; the caller sets OpenCV's threads.
        encoded: The picture.
    """
    sizes = {name: detector.preprocess(encoded)[0].shape[:2] for name, detector in detectors.items()}
    times = _on_one_thread(detectors, encoded)
    speeds = []
    for name, detector in detectors.items():
        height, width = sizes[name]
        speeds.append(Speed(name, width, height, median(times[name]) * 1e3, _on_all_cores(detector, encoded)))
    return speeds


def _on_one_thread(detectors: Mapping[str, "Detector"], encoded: bytes) -> dict[str, list[float]]:
    """Seconds of each call, the detectors taking turns."""
    for detector in detectors.values():
        detector.detect(encoded)
    times: dict[str, list[float]] = {name: [] for name in detectors}
    end = perf_counter() + _ONE_THREAD_S
    while perf_counter() < end or any(len(each) < _LEAST_ROUNDS for each in times.values()):
        for name, detector in detectors.items():
            start = perf_counter()
            detector.detect(encoded)
            times[name].append(perf_counter() - start)
    return times


def _on_all_cores(detector: "Detector", encoded: bytes) -> float:
    """Pictures per second of as many callers as there are cores."""
    cores = core_count()

    def rate(seconds: float) -> float:
        count, start = 0, perf_counter()
        while not count or perf_counter() < start + seconds:
            detector.detect(encoded)
            count += 1
        return count / (perf_counter() - start)

    with ThreadPoolExecutor(cores) as callers:
        list(callers.map(rate, [0.0] * cores))  # a stream's first picture takes longer
        return sum(callers.map(rate, [_ALL_CORES_S] * cores))


def _loaded(bundle: "Bundle", runtime: str | None) -> "Detector":
    """A detector that takes one thread per image, and as many images at a time as there are cores."""
    from ocdserve.backend import Detector
    from ocdserve.backend.network.load import load_network
    from ocdserve.backend.network.options import RuntimeOptions

    cores = core_count()
    # OpenVINO divides its threads among its streams; a session of ONNX Runtime computes in each caller's own thread.
    options = RuntimeOptions(runtime, cores, cores) if runtime == "openvino" else RuntimeOptions(runtime, 1)
    return Detector(bundle, load_network(bundle, options))
