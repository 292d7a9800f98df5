# SPDX-License-Identifier: Apache-2.0
"""The same work by the CPU, on one thread: what the GPU's times are compared with."""

from collections.abc import Callable, Sequence
from time import perf_counter

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.perf.gpu_check.cases import Case
from ocdserve.perf.gpu_check.check_context import Setting
from ocdserve.perf.series.threads import opencv_threads
from ocdserve.perf.subjects.baseline import plain_postprocess


def time_cpu_resize(setting: Setting, images: Sequence[NDArray[np.uint8]]) -> None:
    """Note the time of `cv2.resize` to the network's size."""
    height, width = setting.effort.size
    times = _times_us(
        [_bound(cv2.resize, image, (width, height)) for image in images], setting.effort.repeats, _share(setting)
    )
    setting.record.time("cv2.resize", "CPU, one thread", times)


def time_cpu_postprocess(setting: Setting, maps: Sequence[Case], kind: str) -> float:
    """Note the times of our post-processing and of a plain loop; returns the median of ours in microseconds."""
    found = 0.0
    for name, function in (("post-processing on the CPU", postprocess), ("plain loop on the CPU", plain_postprocess)):
        setting.go_on(f"{name}, {kind}")
        calls = [_bound(function, case.probability, case.frame, case.params) for case in maps]
        times = _times_us(calls, setting.effort.repeats, _share(setting))
        value = setting.record.time(name, f"one thread, {kind}", times)
        found = found or value
    return found


def _bound(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)


def _share(setting: Setting) -> float:
    """Seconds that one baseline may take."""
    return setting.deadline.left_s / 15


def _times_us(calls: Sequence[Callable[[], object]], repeats: int, most_s: float) -> list[float]:
    """Microseconds of calls in turns, each made once before; all calls at least once."""
    times: list[float] = []
    with opencv_threads():
        for call in calls:
            call()
        begin = perf_counter()
        for index in range(max(repeats, len(calls))):
            started = perf_counter()
            calls[index % len(calls)]()
            now = perf_counter()
            times.append(1e6 * (now - started))
            if index + 1 >= len(calls) and now - begin > most_s:
                break
    return times
