# SPDX-License-Identifier: Apache-2.0
"""Times of the stages on the GPU: what each takes, against the memory's speed and against others' ways.

Every time is of recorded graphs between events. "In a row": many executions in one graph, buffers taking turns so that
the GPU's cache does not hold them, unless it says so. "Alone": one execution to a graph, its start included.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device
from ocdserve.backend.gpu.postprocess import GpuPostprocess
from ocdserve.backend.gpu.preprocess import GpuPreprocess, OutputForm, bytes_moved
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages.image import decode
from ocdserve.perf.gpu_check.cases import Case, container_of
from ocdserve.perf.gpu_check.check_context import Setting
from ocdserve.perf.gpu_check.cpu_baselines import time_cpu_postprocess, time_cpu_resize
from ocdserve.perf.gpu_check.cpu_fallbacks import left_to_cpu
from ocdserve.perf.gpu_check.machine_baselines import time_machine_libraries
from ocdserve.perf.gpu_check.memory_bandwidth import measure_memory
from ocdserve.perf.gpu_check.real_maps import drawn_photograph, fixed_policy, photographs, timed_cases
from ocdserve.perf.gpu_check.steps import time_steps
from ocdserve.perf.gpu_check.timing import GraphTimer, Work

# What a detection is on the GPU, bytes.
_ROW = 48


def check_stages(setting: Setting) -> None:
    """The whole part."""
    with setting.device() as device:
        timer = GraphTimer(device, setting.effort)
        memory = measure_memory(setting, device, timer)
        images = [decode(encoded) for _, encoded in photographs(setting.files)[:8]] or [decode(drawn_photograph())]
        cases = timed_cases(setting)
        for batch in setting.effort.batches:
            setting.go_on(f"preprocessing, batch {batch}")
            _preprocess(setting, device, timer, images, batch, memory)
        for kind, maps in cases.items():
            for batch in setting.effort.batches:
                setting.go_on(f"post-processing, batch {batch}, {kind}")
                _postprocess(setting, device, timer, maps, f"batch {batch}, {kind}", batch, memory)
        setting.go_on("baselines on the CPU")
        time_cpu_resize(setting, images)
        for kind, maps in cases.items():
            cpu_us = time_cpu_postprocess(setting, maps, kind)
            for batch in setting.effort.batches:
                ours = setting.record.value("post-processing", f"batch {batch}, {kind}")
                if ours:
                    setting.record.count("times faster than the CPU", f"batch {batch}, {kind}", cpu_us / ours, "x")
        setting.go_on("the machine's own libraries")
        time_machine_libraries(setting, images[0], cases)
        for kind, maps in cases.items():
            for batch in setting.effort.batches:
                setting.go_on(f"steps of the post-processing, batch {batch}, {kind}")
                time_steps(setting, device, timer, _batch_of(maps, batch), f"batch {batch}, {kind}")
        timer.close()


def _batch_of(maps: Sequence[Case], batch: int, begin: int = 0) -> list[Case]:
    return list(islice(cycle(maps), begin, begin + batch))


def _preprocess(
    setting: Setting,
    device: Device,
    timer: GraphTimer,
    images: Sequence[NDArray[np.uint8]],
    batch: int,
    memory: float,
) -> None:
    size = setting.effort.size
    for form in (OutputForm(), OutputForm("float16"), OutputForm("float16", "float")):
        name = "preprocessing" if form == OutputForm() else f"preprocessing to {form.element}, {form.interpolation}"
        rotation = setting.effort.rotation if batch == 1 else 2
        with ExitStack() as stack:
            works: list[Work] = []
            chosen: list[NDArray[np.uint8]] = []
            for index in range(rotation):
                stage = GpuPreprocess(device, fixed_policy(size), batch, form)
                stack.callback(stage.close)
                output = device.allocate(form.size(batch, size))
                stack.callback(output.close)
                chosen = list(islice(cycle(images), index, index + batch))
                stage.stage(chosen, timer.stream)
                works.append(_launch(stage, output, batch, size))
            timer.stream.synchronize()
            frames = [Frame.of(image.shape[0], image.shape[1], fixed_policy(size)) for image in chosen]
            floor = bytes_moved(form, frames, size) / memory
            _note_times(setting, timer, works, name, f"batch {batch}", batch, floor)


def _launch(stage: GpuPreprocess, output: Buffer, batch: int, size: tuple[int, int]) -> Work:
    return lambda stream: stage.launch(stream, output, batch, size)


def _postprocess(
    setting: Setting, device: Device, timer: GraphTimer, maps: Sequence[Case], case: str, batch: int, memory: float
) -> None:
    rotation = setting.effort.rotation if batch == 1 else 2
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
            works.append(_enqueue(stage, buffer))
            works[-1](timer.stream)
            timer.stream.synchronize()
            with left_to_cpu() as told:
                boxes += sum(len(found) for found in stage.results(timer.stream, buffer))
            setting.record.deviations += [f"{case}: {text}" for text in told]
        least = container.nbytes + _ROW * boxes / rotation
        _note_times(setting, timer, works, "post-processing", case, batch, least / memory)
        setting.record.count("boxes an image", case, boxes / rotation / batch, "")


def _enqueue(stage: GpuPostprocess, buffer: Buffer) -> Callable[..., None]:
    return lambda stream: stage.enqueue(stream, buffer)


def _note_times(
    setting: Setting, timer: GraphTimer, works: Sequence[Work], name: str, case: str, batch: int, floor_us: float
) -> None:
    """In a row over changing buffers, in a row over the same, and alone."""
    in_a_row = timer.times_us(works, max(setting.effort.row, len(works)))
    value = setting.record.time(name, case, in_a_row, per=batch)
    share = floor_us / batch / value if value else 0.0
    setting.record.count(f"{name}, share of the memory's speed", case, share, "", "least bytes over the measured copy")
    setting.record.time(f"{name}, in the cache", case, timer.times_us(works[:1]), per=batch)
    setting.record.time(f"{name}, alone", case, timer.times_us(works[:1], row=1), per=batch)
