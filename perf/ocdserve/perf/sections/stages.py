# SPDX-License-Identifier: Apache-2.0
"""The section `stages`: where the time of one image goes, on the CPU, on the GPU or in a server."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from time import perf_counter

from ocdserve.backend import Detector
from ocdserve.backend.stages.image import decode
from ocdserve.contract import RequestParameters, UsageError
from ocdserve.perf.counting.hot_loops import BASELINE, HotLoop, hot_loops
from ocdserve.perf.counting.instructions import InstructionCounts, count_instructions
from ocdserve.perf.inputs.data_sets import DataSet
from ocdserve.perf.sections.plan import Plan, ProgressLine, say
from ocdserve.perf.sections.server_breakdown import STEPS, ServedStages
from ocdserve.perf.series.measurement import OURS, Measurement, case_of
from ocdserve.perf.series.samples import Progress, in_turns
from ocdserve.perf.series.threads import opencv_threads

IN_ONNXRUNTIME = "ocdserve, ONNX Runtime"
ON_GPU = "ocdserve on the GPU"

_ROUNDS = 2

# An encoded image to milliseconds by stage, in the order in which they run.
Timed = Callable[[bytes], Mapping[str, float]]


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        timed: Times one image; returns the same stages for each.
        factors: What was set, such as threads.
        baseline: Subject with the same factors and stages that ratios divide by; empty for none.
    """

    timed: Timed
    factors: Mapping[str, str | int | float] = field(default_factory=dict)
    baseline: str = ""


def measure(plan: Plan) -> tuple[Measurement, ...]:
    """Time the stages in this process on one thread and, as the options say, on the GPU and in a server.

    Raises:
        UsageError: `--hops` is no gRPC URL.
        UnavailableError: There is no GPU, or no server.
    """
    url = plan.options.hops
    if url and not url.startswith("grpc://"):
        raise UsageError(f"--hops must be grpc://HOST:PORT, the protocol of the server's statistics; got {url!r}")
    # Most other detectors use ONNX Runtime: shows how much of their time is due to it.
    other = Detector.load(runtime="onnxruntime", threads=1)
    subjects = {
        OURS: Subject(cpu_stages(Detector.load(threads=1)), {"threads": 1}, baseline=OURS),
        IN_ONNXRUNTIME: Subject(cpu_stages(other), {"threads": 1}, baseline=OURS),
    }
    with ExitStack() as stack:
        if plan.options.gpu:
            gpu = GpuStages()
            stack.callback(gpu.close)
            subjects[ON_GPU] = Subject(gpu)
        for model in STEPS if url else ():
            served = ServedStages(url, model)
            stack.callback(served.close)
            subjects[f"{model}, served"] = Subject(served)
        measurements = measure_stages(subjects, plan.data_sets, _ROUNDS * plan.rounds, ProgressLine("stages"))
    for data in plan.data_sets:
        share = share_of(measurements, OURS, data.name, ("preprocess", "postprocess"))
        say(f"stages: preprocess and postprocess take {share:.1%} of the time in process on {data.name}")
    return (*measurements, *(_instructions() if plan.options.instructions else ()))


def cpu_stages(detector: Detector) -> Timed:
    """The stages on the CPU: decode, preprocess, network, postprocess."""

    def timed(encoded: bytes) -> Mapping[str, float]:
        begin = perf_counter()
        image = decode(encoded, detector.limits)
        decoded = perf_counter()
        pixels, frame = detector.preprocess(image)
        preprocessed = perf_counter()
        (probability,) = detector.infer([pixels], [frame])
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
    """The stages that a detector on the GPU reports: decoding, and the batch on the GPU with its copies.

    The rest of the call is the stage `hand over`: queues and threads.

    Args:
        device: Index of the GPU.
        runtime: See `GpuDetector.load`.

    Raises:
        UnavailableError: There is no such GPU, or a package that it needs is not installed.
    """

    def __init__(self, device: int = 0, runtime: str | None = None) -> None:
        from ocdserve.backend.gpu.detector import GpuDetector

        self._lock = Lock()
        self._ms: dict[str, float] = {}
        self._detector = GpuDetector.load(runtime=runtime, device=device, observer=self._observe)

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
        """Release the GPU."""
        self._detector.close()

    def _observe(self, stage: str, seconds: float, images: int) -> None:
        with self._lock:
            self._ms[stage] = self._ms.get(stage, 0.0) + seconds * 1000


def measure_stages(
    subjects: Mapping[str, Subject], data_sets: Sequence[DataSet], rounds: int, progress: Progress
) -> tuple[Measurement, ...]:
    """Time the stages of each image, subjects alternating, after one untimed run of each; OpenCV uses one thread.

    Args:
        subjects: By name.
        data_sets: Images.
        rounds: How often each is measured.
        progress: Receives the number of images done.

    Returns:
        A series per data set, subject and stage. Fact `share`: the stage's share of the time of all stages.
    """
    times: dict[tuple[str, str, str], dict[str, float]] = {}
    total, done = sum(len(data.images) for data in data_sets), 0
    with opencv_threads(1):
        for data in data_sets:
            for index, image in enumerate(data.images):
                calls = {name: partial(subject.timed, image.encoded) for name, subject in subjects.items()}
                # The first image of a shape compiles the network or allocates buffers.
                for call in calls.values():
                    call()
                for round_ in range(rounds):
                    for name, _, stages in in_turns(calls, index + round_):
                        for stage, ms in stages.items():
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
    """Share of some stages in the time of all stages of a subject and group; 0 if it has none of them."""
    return sum(
        float(one.facts["share"])
        for one in measurements
        if (one.subject, one.group) == (subject, group) and one.factors["stage"] in stages
    )


def _instructions() -> tuple[Measurement, ...]:
    loops = hot_loops()
    say("stages: counting instructions")
    counts = count_instructions([counted for loop in loops for counted in (loop.ours, loop.baseline)])
    if counts.reason:
        say(f"stages: instructions cannot be counted here: {counts.reason}")
        return ()
    return instruction_series(loops, counts)


def instruction_series(loops: Sequence[HotLoop], counts: InstructionCounts) -> tuple[Measurement, ...]:
    """Counted instructions of both implementations of each hot loop, ours as the baseline."""
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
        for subject, counted in ((OURS, loop.ours), (BASELINE, loop.baseline))
    )
