# SPDX-License-Identifier: Apache-2.0
"""The whole detector in this process under load: JPEG bytes to quads."""

import importlib.util
from collections.abc import Callable, Sequence

from ocdserve.backend import Bundle
from ocdserve.backend.device.protocol import Device
from ocdserve.backend.gpu.decode import DecoderKind
from ocdserve.backend.gpu.detector import GpuDetector
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.contract import OcdserveError
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.maps import drawn_photograph
from ocdserve.perf.gpu_check.network.engines import opened
from ocdserve.perf.gpu_check.network.stand_ins import STAND_INS
from ocdserve.perf.inputs.data_sets import photographs
from ocdserve.perf.inputs.image_sets import PHOTOGRAPHS
from ocdserve.perf.load.drivers.sdk import closed_loop
from ocdserve.perf.load.loads import LoadResult
from ocdserve.perf.load.scenarios import Scenario

SECTION = "gpu-end-to-end"
# Height and width of the photographs.
_PHOTOGRAPH = (720, 1280)
_SLOTS = 3
_MAX_BATCH = 8
_BATCHES = (1, 2, 4, _MAX_BATCH)
_CODEC = "nvidia.nvimgcodec"
# Latencies that are kept of each load.
_LATENCIES = 200


def measure_in_process(context: CheckContext, bundles: Sequence[Bundle]) -> None:
    """Measure the detector with each network; one that fails does not stop the next."""
    images = [encoded for _, encoded in photographs(context.files.data)] or [drawn_photograph()]
    decoders: list[DecoderKind] = ["cpu"]
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec(_CODEC):
        decoders.append("gpu")
    else:
        context.absent("JPEG decoded on the GPU", "nvImageCodec is not installed")
    for bundle in bundles:
        for decoder in decoders:
            try:
                device = context.open_device()
                with open_detector(bundle, device, decoder) as detector:
                    _load(context, name_of(bundle), detector, images, decoder)
            except OcdserveError as error:
                context.absent(f"{name_of(bundle)}, JPEG by the {decoder}", error)


def open_detector(bundle: Bundle, device: Device, decoder: DecoderKind = "cpu") -> GpuDetector:
    """The detector, warm; it closes the device."""
    options = GpuOptions(slots=_SLOTS, max_batch=_MAX_BATCH, decoder=decoder)
    detector = GpuDetector(bundle, device, opened(bundle, device), options)
    detector.warm_up([_PHOTOGRAPH], _BATCHES)
    return detector


def name_of(bundle: Bundle) -> str:
    """Name in the report."""
    return bundle.spec.name if bundle.spec.name in STAND_INS else bundle.model_path.parent.name


def load_s(context: CheckContext) -> float:
    """Seconds of a load run."""
    return max(0.01, min(context.effort.load_s, context.deadline.left_s / 4))


def _load(
    context: CheckContext, name: str, detector: GpuDetector, images: Sequence[bytes], decoder: DecoderKind
) -> None:
    for callers in context.effort.concurrencies:
        for batch in (1, _MAX_BATCH):
            context.checkpoint(f"{name}, JPEG by the {decoder}, {callers} callers, batch {batch}")
            scenario = Scenario("gpu-check", PHOTOGRAPHS, concurrency=callers, duration_s=load_s(context), batch=batch)
            call = call_of(detector, images, batch)
            closed_loop(call, callers, callers)
            answers = closed_loop(call, callers, None, scenario.duration_s)
            result = LoadResult("in process", scenario, "", answers)
            add_load(context, name, result, {"JPEG by": decoder, "batch": batch}, SECTION)


def call_of(detector: GpuDetector, images: Sequence[bytes], batch: int) -> Callable[[int], None]:
    """Sends the request of a number: that many images, in turn."""

    def call(number: int) -> None:
        detector.detect_batch([images[(number + index) % len(images)] for index in range(batch)])

    return call


def add_load(
    context: CheckContext,
    subject: str,
    result: LoadResult,
    factors: dict[str, str | int | float],
    section: str | None = None,
) -> None:
    """Add throughput and latencies of a load.

    Raises:
        UnavailableError: No request was answered.
    """
    result.percentile_ms(50)
    factors = {**factors, "driver": result.driver, "concurrency": result.scenario.concurrency or 0}
    facts = {"images": len(result.latencies_ms) * result.scenario.batch, "errors": sum(result.errors.values())}
    context.add(subject, PHOTOGRAPHS, "images/s", [result.images_per_second], factors, facts, section)
    context.add(subject, PHOTOGRAPHS, "ms", result.latencies_ms[:_LATENCIES], factors, facts, section)
    if result.errors:
        kinds = ", ".join(f"{count} {kind}" for kind, count in result.errors.items())
        context.part.findings.append(f"{subject}, {result.scenario.concurrency} callers: requests failed: {kinds}")
