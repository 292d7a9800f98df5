# SPDX-License-Identifier: Apache-2.0
"""Where the time of one image goes: the stages of the detector in this process, on the CPU or on the GPU."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter

from ocdserve.backend import Detector
from ocdserve.backend.stages.image import decode
from ocdserve.contract import RequestParameters
from ocdserve.perf.counting.hot_loops import PLAIN, HotLoop
from ocdserve.perf.counting.instructions import InstructionCounts
from ocdserve.perf.inputs.data_sets import DataSet
from ocdserve.perf.series.measurement import OURS, Measurement, case_of
from ocdserve.perf.series.samples import Progress
from ocdserve.perf.series.threads import opencv_threads

IN_ONNXRUNTIME = "ocdserve, ONNX Runtime"
ON_GPU = "ocdserve on the GPU"

# An encoded image to milliseconds by stage, in the order in which they run.
Timed = Callable[[bytes], Mapping[str, float]]


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        timed: Times one image; the stages are the same for each.
        factors: What was set, such as threads.
        baseline: Subject of the same factors and stages that ratios divide by; empty for none.
    """

    timed: Timed
    factors: Mapping[str, str | int | float] = field(default_factory=dict)
    baseline: str = ""


def cpu_stages(detector: Detector) -> Timed:
    """The stages on the CPU: decode, preprocess, network, postprocess."""

    def timed(encoded: bytes) -> Mapping[str, float]:
        begin = perf_counter()
        image = decode(encoded, detector.limits)
        decoded = perf_counter()
        pixels, frame = detector.preprocess(image)
        preprocessed = perf_counter()
        (probability,) = detector.infer([pixels])
        inferred = perf_counter()
        detector.postprocess(probability, frame, RequestParameters())
        end = perf_counter()
        return {
            "decode": (decoded - begin) * 1000,
            "preprocess": (preprocessed - decoded) * 1000,
            "network": (inferred - preprocessed) * 1000,
            "postprocess": (end - inferred) * 1000,
        }

    return timed


class GpuStages:
    """The stages that a detector on the GPU tells of: decoding, and the batch on the GPU with its copies.

    What the call takes beyond them is the stage `hand over`: queues and threads.

    Args:
        device: Index of the GPU.
        runtime: See `GpuDetector.load`.

    Raises:
        UnavailableError: There is no such GPU, or something that it needs is not installed.
    """

    def __init__(self, device: int = 0, runtime: str | None = None) -> None:
        from ocdserve.backend.gpu.detector import GpuDetector

        self._lock = Lock()
        self._ms: dict[str, float] = {}
        self._detector = GpuDetector.load(runtime=runtime, device=device, observer=self._told)

    def __call__(self, encoded: bytes) -> Mapping[str, float]:
        """Milliseconds of one image by stage."""
        with self._lock:
            self._ms = {}
        begin = perf_counter()
        self._detector.detect(encoded)
        total = (perf_counter() - begin) * 1000
        with self._lock:
            ms = {stage: self._ms[stage] for stage in ("decode", "gpu")}
        return ms | {"hand over": max(0.0, total - sum(ms.values()))}

    def close(self) -> None:
        """Give the GPU back."""
        self._detector.close()

    def _told(self, stage: str, seconds: float, images: int) -> None:
        with self._lock:
            self._ms[stage] = self._ms.get(stage, 0.0) + seconds * 1000


def measure_stages(
    subjects: Mapping[str, Subject], data_sets: Sequence[DataSet], rounds: int, progress: Progress
) -> tuple[Measurement, ...]:
    """Time the stages of each image, all subjects in turns; each sees every image once before, untimed.

    In this process OpenCV works on one thread.

    Args:
        subjects: By name.
        data_sets: Images.
        rounds: How often each is measured.
        progress: Is told of images done.

    Returns:
        A series for each data set, subject and stage. Fact `share`: the stage's share of the time of all stages.
    """
    times: dict[tuple[str, str, str], dict[str, float]] = {}
    total, done = sum(len(data.images) for data in data_sets), 0
    with opencv_threads(1):
        for data in data_sets:
            for index, image in enumerate(data.images):
                names = [*subjects]
                # A new shape is compiled, or its buffers are made, once.
                for name in names:
                    subjects[name].timed(image.encoded)
                for round_ in range(rounds):
                    first = (index + round_) % len(names)
                    for name in names[first:] + names[:first]:
                        for stage, ms in subjects[name].timed(image.encoded).items():
                            times.setdefault((data.name, name, stage), {})[case_of(image.name, round_)] = ms
                done += 1
                progress(done, total)
    sums: dict[tuple[str, str], float] = {}
    for (group, name, _), by_case in times.items():
        sums[group, name] = sums.get((group, name), 0.0) + sum(by_case.values())
    return tuple(
        Measurement(
            section="stages",
            subject=name,
            group=group,
            unit="ms",
            samples=tuple(by_case.values()),
            cases=tuple(by_case),
            factors={**subjects[name].factors, "stage": stage},
            facts={"share": sum(by_case.values()) / sums[group, name]},
            baseline=subjects[name].baseline,
        )
        for (group, name, stage), by_case in times.items()
    )


def share_of(measurements: Sequence[Measurement], subject: str, group: str, stages: Sequence[str]) -> float:
    """Share of some stages in the time of all stages of a subject and group; 0 where it has none of them."""
    return sum(
        float(one.facts["share"])
        for one in measurements
        if (one.subject, one.group) == (subject, group) and one.factors["stage"] in stages
    )


def instruction_series(loops: Sequence[HotLoop], counts: InstructionCounts) -> tuple[Measurement, ...]:
    """Counted instructions of both ways of each piece of work, ours as the baseline."""
    return tuple(
        Measurement(
            section="stages",
            subject=subject,
            group=loop.name,
            unit="instructions",
            samples=(counts.per_call[counted.name],),
            cases=(case_of(loop.name, 0),),
            factors={"counted by": str(counts.tool)},
            baseline=OURS,
        )
        for loop in loops
        for subject, counted in ((OURS, loop.ours), (PLAIN, loop.plain))
    )
