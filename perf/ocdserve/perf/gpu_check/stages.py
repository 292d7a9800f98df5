# SPDX-License-Identifier: Apache-2.0
"""Times of the stages on the GPU, compared with the memory bandwidth, the CPU and other libraries.

All times are of recorded graphs, between events. Factor `executed`:

- "in a row": many executions in one graph, with alternating buffers that the GPU's cache does not hold;
- "in the cache": the same with one set of buffers;
- "alone": one execution per graph, including its start.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import perf_counter

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Device
from ocdserve.backend.gpu.postprocess import GpuPostprocess
from ocdserve.backend.gpu.preprocess import GpuPreprocess, OutputForm, bytes_moved
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages.image import decode
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.perf.gpu_check.check_context import CheckContext, Values
from ocdserve.perf.gpu_check.exactness import cpu_fallbacks
from ocdserve.perf.gpu_check.facts import time_other_libraries
from ocdserve.perf.gpu_check.maps import container_of, drawn_photograph, timed_cases
from ocdserve.perf.gpu_check.steps import time_steps
from ocdserve.perf.gpu_check.timing import GraphTimer, Work
from ocdserve.perf.inputs.data_sets import photographs
from ocdserve.perf.inputs.maps import Case, fixed_policy
from ocdserve.perf.series.measurement import find
from ocdserve.perf.series.threads import opencv_threads
from ocdserve.perf.subjects.baseline import baseline_postprocess

# Bytes of a detection on the GPU.
_ROW = 48
# Smallest fill, and the host's part of the copies.
_SMALL = 256
_HOST_SHARE = 16

Image = NDArray[np.uint8]


def check_stages(context: CheckContext) -> None:
    """Measure the GPU's bandwidth, all stages with all batches and maps, and what they are compared with."""
    with context.device() as device:
        timer = GraphTimer(device, context.effort)
        bandwidth = measure_bandwidth(context, device, timer)
        images = [decode(encoded) for _, encoded in photographs(context.files.data)[:8]] or [decode(drawn_photograph())]
        cases = timed_cases(context)
        batches = context.effort.batches
        for batch in batches:
            context.checkpoint(f"preprocessing, batch {batch}")
            _time_preprocess(context, device, timer, images, batch, bandwidth)
        for kind, maps in cases.items():
            for batch in batches:
                context.checkpoint(f"post-processing, batch {batch}, {kind}")
                _time_postprocess(context, device, timer, maps, kind, batch, bandwidth)
        context.checkpoint("baselines on the CPU")
        height, width = context.effort.size
        resizes = [partial(cv2.resize, image, (width, height)) for image in images]
        _time_on_cpu(context, "cv2.resize on the CPU", "photographs", resizes)
        for kind, maps in cases.items():
            _compare_with_cpu(context, maps, kind)
        context.checkpoint("other libraries")
        _time_other_libraries(context, images[0], cases)
        for kind, maps in cases.items():
            for batch in batches:
                context.checkpoint(f"steps of the post-processing, batch {batch}, {kind}")
                time_steps(context, device, timer, _batch_of(maps, batch), kind)
        timer.close()


def measure_bandwidth(context: CheckContext, device: Device, timer: GraphTimer) -> float:
    """Measure copies and the smallest graphs.

    Returns:
        The GPU's memory bandwidth in bytes per microsecond; bytes read and bytes written both count.
    """
    size = context.effort.copy_bytes
    context.checkpoint("the memory bandwidth")
    source, target = device.allocate(size), device.allocate(size)
    host = device.host_array(max(size // _HOST_SHARE, 1), "u1")
    copies: tuple[tuple[str, int, int, Work], ...] = (
        ("copy on the GPU", size, 2 * size, lambda stream: stream.copy(target, source, size)),
        ("copy to the host", host.nbytes, host.nbytes, lambda stream: stream.to_host(host, source)),
        ("copy from the host", host.nbytes, host.nbytes, lambda stream: stream.to_device(target, host)),
    )
    speeds = []
    try:
        timer.stream.fill(source, 0x5A, size)
        for subject, count, moved, work in copies:
            times = timer.times_us([work], row=2)
            speeds.append(moved / median(times))
            context.add(subject, f"{count} bytes", "µs", times, facts={"GB/s": speeds[-1] / 1000})
        for executed, row in (("in a row", None), ("alone", 1)):
            times = timer.times_us([lambda stream: stream.fill(target, 0, _SMALL)], row)
            context.add("smallest fill", f"{_SMALL} bytes", "µs", times, {"executed": executed})
    finally:
        timer.stream.synchronize()
        source.close()
        target.close()
    return speeds[0]


def _time_other_libraries(context: CheckContext, image: Image, cases: Mapping[str, Sequence[Case]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        masks = {kind: maps[0].probability > 76 for kind, maps in cases.items()}
        np.savez(inputs, image=image, size=np.array(context.effort.size), **masks)
        time_other_libraries(context, "PyTorch and CuPy", [str(inputs)])


def _batch_of(maps: Sequence[Case], batch: int, begin: int = 0) -> list[Case]:
    return list(islice(cycle(maps), begin, begin + batch))


def _time_preprocess(
    context: CheckContext, device: Device, timer: GraphTimer, images: Sequence[Image], batch: int, bandwidth: float
) -> None:
    size = context.effort.size
    policy = fixed_policy(size)
    for form in (OutputForm(), OutputForm("float16"), OutputForm("float16", "float")):
        name = "preprocessing" if form == OutputForm() else f"preprocessing to {form.element}, {form.interpolation}"
        with ExitStack() as stack:
            works: list[Work] = []
            chosen: list[Image] = []
            for index in range(_rotation(context, batch)):
                stage = GpuPreprocess(device, policy, batch, form)
                stack.callback(stage.close)
                output = device.allocate(form.size(batch, size))
                stack.callback(output.close)
                chosen = list(islice(cycle(images), index, index + batch))
                stage.stage(chosen, timer.stream)
                works.append(partial(stage.launch, output=output, count=batch, container=size))
            timer.stream.synchronize()
            frames = [Frame.of(image.shape[0], image.shape[1], policy) for image in chosen]
            least_us = bytes_moved(form, frames, size) / bandwidth
            _add_times(context, timer, works, name, "photographs", batch, least_us)


def _time_postprocess(
    context: CheckContext,
    device: Device,
    timer: GraphTimer,
    maps: Sequence[Case],
    kind: str,
    batch: int,
    bandwidth: float,
) -> None:
    rotation = _rotation(context, batch)
    with ExitStack() as stack:
        works: list[Work] = []
        boxes = 0
        for index in range(rotation):
            chosen = _batch_of(maps, batch, index)
            container = container_of(chosen)
            stage = GpuPostprocess(device, batch, container.shape[1], container.shape[2])
            stack.callback(stage.close)
            buffer = device.allocate(container.nbytes)
            stack.callback(buffer.close)
            timer.stream.to_device(buffer, container)
            stage.set([(item.frame, item.params) for item in chosen])
            works.append(partial(stage.enqueue, maps=buffer))
            works[-1](timer.stream)
            timer.stream.synchronize()
            with cpu_fallbacks() as fallbacks:
                boxes += sum(len(found) for found in stage.results(timer.stream, buffer))
            context.part.findings += [f"batch {batch}, {kind}: {text}" for text in fallbacks]
        least_us = (container.nbytes + _ROW * boxes / rotation) / bandwidth
        facts = {"boxes per image": boxes / rotation / batch}
        _add_times(context, timer, works, "post-processing", kind, batch, least_us, facts)


def _rotation(context: CheckContext, batch: int) -> int:
    """Sets of buffers: two larger batches exceed the cache."""
    return context.effort.rotation if batch == 1 else 2


def _add_times(
    context: CheckContext,
    timer: GraphTimer,
    works: Sequence[Work],
    subject: str,
    group: str,
    batch: int,
    least_us: float,
    facts: Values | None = None,
) -> None:
    """Add the times in a row, in the cache and alone; `least_us` is that of the bytes at full memory bandwidth."""
    for executed, row in (("in a row", max(context.effort.row, len(works))), ("in the cache", None), ("alone", 1)):
        rotated = executed == "in a row"
        times = timer.times_us(works if rotated else works[:1], row)
        also: dict[str, str | int | float] = {"µs per image": median(times) / batch}
        if rotated:
            time = median(times)
            also |= {"share of the memory bandwidth": least_us / time if time else 0.0, **(facts or {})}
        context.add(subject, group, "µs", times, {"batch": batch, "executed": executed}, also)


def _compare_with_cpu(context: CheckContext, maps: Sequence[Case], kind: str) -> None:
    """Time the CPU's post-processing and a plain loop, and add how much faster the GPU was."""
    cpu_us = []
    for subject, function in (
        ("post-processing on the CPU", postprocess),
        ("plain loop on the CPU", baseline_postprocess),
    ):
        context.checkpoint(f"{subject}, {kind}")
        calls = [partial(function, case.probability, case.frame, case.params) for case in maps]
        cpu_us.append(_time_on_cpu(context, subject, kind, calls))
    for ours in find(context.measurements.values(), subject="post-processing", group=kind, executed="in a row"):
        per_image = float(ours.facts["µs per image"])
        if per_image:
            context.add_facts(ours, {"times faster than the CPU": cpu_us[0] / per_image})


def _time_on_cpu(context: CheckContext, subject: str, group: str, calls: Sequence[Callable[[], object]]) -> float:
    """Time calls in turn on one thread, all of them at least once; returns the median in microseconds."""
    most_s = context.deadline.left_s / 15
    times: list[float] = []
    with opencv_threads():
        for call in calls:
            call()
        begin = perf_counter()
        for index in range(max(context.effort.repeats, len(calls))):
            started = perf_counter()
            calls[index % len(calls)]()
            now = perf_counter()
            times.append(1e6 * (now - started))
            if index + 1 >= len(calls) and now - begin > most_s:
                break
    context.add(subject, group, "µs", times, {"threads": 1})
    return median(times)
