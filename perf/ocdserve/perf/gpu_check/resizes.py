# SPDX-License-Identifier: Apache-2.0
"""Preprocessing on the GPU against OpenCV: differing bytes over random sizes."""

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Device, Stream
from ocdserve.backend.gpu.preprocess import GpuPreprocess
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.perf.gpu_check.check_context import OutOfTimeError, Setting

_SEED = 9
_WHAT = "random sizes"
# Sizes between two looks at the clock.
_STEP = 20


def check_resizes(setting: Setting, device: Device, stream: Stream) -> None:
    """Count the bytes that differ from OpenCV's, then those of batches of mixed sizes from the CPU stage's.

    Raises:
        OutOfTimeError: The time is up; what was compared until then is in the record.
    """
    rng = np.random.default_rng(_SEED)
    stage = GpuPreprocess(device, _fixed(1, 1), max_batch=4)
    sizes = differing = compared = 0
    begin = len(setting.record.figures)
    try:
        for index in range(setting.effort.resizes):
            if index % _STEP == 0:
                setting.go_on(f"preprocessing from size {index} of {setting.effort.resizes} on")
            source, target = random_sizes(rng)
            image = _noise(rng, *source)
            stage.policy = _fixed(*target)
            expected = cv2.resize(image, target[::-1], interpolation=cv2.INTER_LINEAR)
            (found,) = _on_gpu(stage, stream, [image])
            wrong = int(np.count_nonzero(found != expected))
            if wrong:
                setting.record.deviations.append(f"resize {source} to {target}: {wrong} of {found.size} bytes differ")
            sizes, differing, compared = sizes + 1, differing + wrong, compared + found.size
            _note(setting, begin, sizes, differing, compared)
        _check_batches(setting, stage, stream, rng)
    except OutOfTimeError:
        _note(setting, begin, sizes, differing, compared)
        raise
    finally:
        stage.close()


def random_sizes(rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of a source and of its target, OpenCV's special cases (half, same, one side) among them."""
    high = int(rng.choice([4, 40, 300, 1400], p=[0.15, 0.35, 0.35, 0.15]))
    source_height, source_width, height, width = (int(side) for side in rng.integers(1, high + 1, 4))
    kind = int(rng.integers(8))
    if kind == 0:
        return (2 * height, 2 * width), (height, width)
    if kind == 1:
        return (height, width), (height, width)
    if kind == 2:
        return (source_height, width), (height, width)
    return (source_height, source_width), (height, width)


def _note(setting: Setting, begin: int, sizes: int, differing: int, compared: int) -> None:
    del setting.record.figures[begin:]
    setting.record.count("sizes compared", _WHAT, sizes, "")
    setting.record.count("bytes compared", _WHAT, compared, "")
    setting.record.count("differing bytes", _WHAT, differing, "")


def _check_batches(setting: Setting, stage: GpuPreprocess, stream: Stream, rng: np.random.Generator) -> None:
    differing = compared = 0
    for policy in (
        ResizePolicy("letterbox", width=640, height=352),
        ResizePolicy("short_side", side=352, largest_side=800),
        ResizePolicy("long_side", side=320, shrink=True),
    ):
        setting.go_on(f"preprocessing of batches, {policy.kind}")
        images = [_noise(rng, *(int(side) for side in rng.integers(20, 500, 2))) for _ in range(4)]
        stage.policy = policy
        for image, found in zip(images, _on_gpu(stage, stream, images), strict=True):
            expected, _ = preprocess(image, policy)
            height, width = expected.shape[:2]
            differing += int(np.count_nonzero(found[:height, :width] != expected)) + int(
                np.count_nonzero(found[height:])
            )
            differing += int(np.count_nonzero(found[:, width:]))
            compared += found.size
    setting.record.count("bytes compared", "batches of mixed sizes", compared, "")
    setting.record.count("differing bytes", "batches of mixed sizes", differing, "")
    if differing:
        setting.record.deviations.append(f"batches of mixed sizes: {differing} of {compared} bytes differ")


def _on_gpu(stage: GpuPreprocess, stream: Stream, images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    prepared = stage(images, stream)
    result = np.empty(prepared.shape, np.uint8)
    stream.to_host(result, prepared.data)
    stream.synchronize()
    return result


def _noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    return np.frombuffer(rng.bytes(3 * height * width), np.uint8).reshape(height, width, 3)


def _fixed(height: int, width: int) -> ResizePolicy:
    return ResizePolicy("fixed", width=width, height=height, side=1, stride=1, bucket=1)
