# SPDX-License-Identifier: Apache-2.0
"""Reading on the GPU: times of rectification, and whole pages with and without a network, compared with the CPU."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device, Stream
from ocdserve.backend.gpu.detector import GpuDetector
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.gpu.reader import GpuReader
from ocdserve.backend.gpu.recogniser import GpuRecogniser
from ocdserve.backend.gpu.rectify import GpuRectify
from ocdserve.backend.network.load import load_device_recogniser
from ocdserve.backend.network.options import ANY_BUNDLE_ON_GPU, RuntimeOptions
from ocdserve.backend.network.protocols import DeviceRecogniser, RecogniserNetwork
from ocdserve.backend.network.recogniser import load_recogniser
from ocdserve.backend.recogniser import Recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec
from ocdserve.backend.stages.ctc import Steps
from ocdserve.backend.stages.image import decode
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.contract import OcdserveError, ReadingParameters
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.load.in_process import add_load, load_s
from ocdserve.perf.gpu_check.maps import drawn_photograph, timed_cases, timed_maps
from ocdserve.perf.gpu_check.network.engines import NETWORKS, RECOGNISER
from ocdserve.perf.gpu_check.network.stand_ins import stand_in, stand_in_bundle
from ocdserve.perf.gpu_check.timing import GraphTimer
from ocdserve.perf.inputs.data_sets import photographs
from ocdserve.perf.inputs.image_sets import PHOTOGRAPHS
from ocdserve.perf.load.drivers.sdk import closed_loop
from ocdserve.perf.load.loads import LoadResult
from ocdserve.perf.load.scenarios import Scenario
from ocdserve.perf.report.targets import NO_NETWORK
from ocdserve.results.detections import Detections
from ocdserve.results.reading import Reading
from ocdserve.results.reading.lines import LinePlan

_PARAMETERS = ReadingParameters(min_text_score=0.0, words=True, direction=False)
# Few, since the CPU reads a page in seconds, and a runtime prepares for each width of a line.
_PAGES = 2
# Numbers of concurrent callers, the first ones of the effort's.
_CALLERS = 2
_MOST_LINES = 32
# Of a line in the timed batches, pixels.
_HEIGHT, _WIDTH = 48, 320
_STEP = 8
_LETTERS = "ab"

Page = tuple[NDArray[np.uint8], Detections]


class KnownSteps:
    """A network, on the CPU and on a GPU, whose result does not depend on its input: `ab` again and again.

    Args:
        device: The GPU; None on the CPU.
        most: Most lines and columns of a batch.
    """

    def __init__(self, device: Device | None = None, most: tuple[int, int] = (_MOST_LINES, 4096)) -> None:
        self._buffers: list[Buffer] = []
        if device is None:
            return
        stream = device.stream()
        for array in _known(most[0] * most[1] // _STEP):
            buffer = device.allocate(array.nbytes)
            self._buffers.append(buffer)
            stream.to_device(buffer, array)
            stream.synchronize()
        stream.close()

    def infer(self, lines: Sequence[NDArray[np.uint8]]) -> list[Steps]:
        """See `RecogniserNetwork.infer`."""
        return [Steps(*_known(line.shape[1] // _STEP)) for line in lines]

    def steps(self, stream: Stream, height: int, width: int) -> int:
        """See `DeviceRecogniser.steps`."""
        return width // _STEP

    def check(self, batch: int, height: int, width: int) -> None:
        """See `DeviceRecogniser.check`."""

    def enqueue(
        self, stream: Stream, lines: Buffer, classes: Buffer, probabilities: Buffer, batch: int, height: int, width: int
    ) -> None:
        """See `DeviceRecogniser.enqueue`."""
        steps = width // _STEP
        for target, source in zip((classes, probabilities), self._buffers, strict=True):
            for line in range(batch):
                stream.copy(target, source, 4 * steps, 4 * steps * line)

    def unrecordable(self) -> str:
        """See `DeviceRecogniser.unrecordable`."""
        return ""

    def release(self, stream: Stream, batch: int, height: int, width: int) -> None:
        """See `DeviceRecogniser.release`."""

    def close(self) -> None:
        """See `DeviceRecogniser.close`."""
        for buffer in self._buffers:
            buffer.close()


def check_reading(
    context: CheckContext,
    load: Callable[[RecogniserBundle, RuntimeOptions, Device], DeviceRecogniser] = load_device_recogniser,
) -> None:
    """Time the rectification; compare and time reading without a network, then with the recogniser."""
    pages = _pages(context)[:_PAGES]
    with context.device() as device:
        timer = GraphTimer(device, context.effort)
        _time_rectification(context, device, timer, pages)
        timer.close()
    known = RecogniserBundle(RecogniserSpec(name=NO_NETWORK, characters=tuple(_LETTERS)), context.files.work)
    _check_reader(context, known, KnownSteps, KnownSteps(), pages)
    try:
        bundle = _carried(context)
        options = RuntimeOptions(ANY_BUNDLE_ON_GPU)
        reference = load_recogniser(bundle, RuntimeOptions("onnxruntime"))
        _check_reader(context, bundle, lambda device: load(bundle, options, device), reference, pages)
    except (OcdserveError, ImportError) as error:
        context.absent("the recogniser", error)


def _carried(context: CheckContext) -> RecogniserBundle:
    folder = context.files.carried / NETWORKS / RECOGNISER if context.files.carried else None
    return RecogniserBundle.load(folder if folder is not None and folder.is_dir() else None)


def _pages(context: CheckContext) -> list[Page]:
    """Photographs with the boxes of their maps, or a drawn page; all have some."""
    images = photographs(context.files.data)
    cases = {case.name: case for case in timed_cases(context).get("real", [])}
    found = [
        (decode(encoded), postprocess(cases[name].probability, cases[name].frame, cases[name].params))
        for name, encoded in images
        if name in cases
    ]
    if any(len(each) for _, each in found):
        return [page for page in found if len(page[1])]
    pixels = decode(drawn_photograph(context.effort.size))
    (case, *_) = timed_cases(context)["dense"]
    return [(pixels, postprocess(case.probability, case.frame, case.params))]


def _time_rectification(context: CheckContext, device: Device, timer: GraphTimer, pages: Sequence[Page]) -> None:
    pixels, found = pages[0]
    plan = LinePlan.of(found.quads, _HEIGHT, (found.height, found.width), _WIDTH)
    source = device.allocate(pixels.nbytes)
    plan.lines["pixels"], plan.lines["pitch"] = source.pointer, pixels.strides[0]
    output = device.allocate(_MOST_LINES * _HEIGHT * _WIDTH * 3)
    stage = GpuRectify(device, _MOST_LINES)
    try:
        timer.stream.to_device(source, pixels)
        for count in sorted({*context.effort.batches, _MOST_LINES}):
            context.checkpoint(f"rectification, {count} lines")
            stage.stage(plan.lines[np.arange(count) % len(plan.lines)])
            work = partial(stage.launch, output=output, count=count, height=_HEIGHT, width=_WIDTH, fill=128)
            for executed, row in (("in the cache", None), ("alone", 1)):
                times = timer.times_us([work], row)
                facts = {"µs per line": median(times) / count}
                context.add("rectification", PHOTOGRAPHS, "µs", times, {"batch": count, "executed": executed}, facts)
    finally:
        timer.stream.synchronize()
        for part in (stage, source, output):
            part.close()


def _check_reader(
    context: CheckContext,
    bundle: RecogniserBundle,
    load: Callable[[Device], DeviceRecogniser],
    reference: RecogniserNetwork,
    pages: Sequence[Page],
) -> None:
    name = bundle.spec.name
    detecting = stand_in_bundle(context.files.work / "reading", timed_maps(context))
    device = context.open_device()
    options = GpuOptions(slots=2, max_batch=max(context.effort.batches), max_lines=_MOST_LINES)
    detector = GpuDetector(detecting, device, stand_in(detecting, device), options)
    try:
        recogniser = GpuRecogniser(bundle, device, load(device), options)
    except BaseException:
        detector.close()
        raise
    with GpuReader(detector, recogniser) as reader:
        context.checkpoint(f"texts, {name}")
        _compare(context, reader.recogniser, Recogniser(bundle, reference), pages)
        for callers in context.effort.concurrencies[:_CALLERS]:
            context.checkpoint(f"pages, {name}, {callers} callers")
            scenario = Scenario("gpu-check", PHOTOGRAPHS, concurrency=callers, duration_s=load_s(context))
            call = _call_of(reader, pages)
            closed_loop(call, callers, callers)
            answers = closed_loop(call, callers, None, scenario.duration_s)
            result = LoadResult("in process", scenario, "", answers)
            add_load(context, f"pixels to texts, {name}", result, {"batch": 1})


def _compare(context: CheckContext, ours: GpuRecogniser, theirs: Recogniser, pages: Sequence[Page]) -> None:
    """Add how many lines read otherwise than on the CPU, and otherwise from run to run."""
    expected = [theirs.recognise(*page, _PARAMETERS) for page in pages]
    # Call by call, while it is recorded, and as a graph.
    runs = [[ours.recognise(*page, _PARAMETERS) for page in pages] for _ in range(3)]
    facts = {
        "lines that differ": _differing(runs[0], expected),
        "lines that differ from run to run": sum(_differing(run, runs[0]) for run in runs[1:]),
        "largest difference of a score": max(
            float(np.abs(one.text_scores - other.text_scores).max(initial=0))
            for one, other in zip(runs[0], expected, strict=True)
        ),
    }
    count = sum(map(len, expected))
    context.add(f"texts, {ours.spec.name}", PHOTOGRAPHS, "cases", [count], facts=facts)
    for kind in ("lines that differ", "lines that differ from run to run"):
        if facts[kind]:
            context.part.findings.append(f"{ours.spec.name}: {facts[kind]} of {count} {kind}")


def _differing(one: Sequence[Reading], other: Sequence[Reading]) -> int:
    """Lines whose texts or words are others."""

    def lines(readings: Sequence[Reading]) -> list[object]:
        return [
            (text, [word.text for word in words])
            for reading in readings
            for text, words in zip(reading.texts, reading.words or (), strict=True)
        ]

    return sum(ours != theirs for ours, theirs in zip(lines(one), lines(other), strict=True))


def _call_of(reader: GpuReader, pages: Sequence[Page]) -> Callable[[int], None]:
    def call(number: int) -> None:
        reader.read(pages[number % len(pages)][0])

    return call


def _known(steps: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    classes = (np.arange(steps) % (len(_LETTERS) + 1)).astype(np.int32)
    return classes, np.full(steps, 0.9, np.float32)
