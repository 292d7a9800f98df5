# SPDX-License-Identifier: Apache-2.0
"""Preprocessing on the GPU compared with OpenCV's: differing bytes over random sizes."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Device, Stream
from ocdserve.backend.gpu.preprocess import GpuPreprocess, Source, sources_of
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.perf.gpu_check.check_context import CheckContext

_SEED = 9
# Sizes between two checkpoints.
_STEP = 20


def check_resizes(context: CheckContext, device: Device, stream: Stream) -> None:
    """Count the bytes that differ from OpenCV's, then those of batches of mixed sizes from the CPU stage's.

    Raises:
        OutOfTimeError: The time is up; comparisons so far are in the context.
    """
    rng = np.random.default_rng(_SEED)
    stage = GpuPreprocess(device, _fixed(1, 1), max_batch=4)
    differing = compared = 0
    try:
        for index in range(context.effort.resizes):
            if index % _STEP == 0:
                context.checkpoint(f"preprocessing from size {index} of {context.effort.resizes} on")
            source, target = random_sizes(rng)
            image = _noise(rng, *source)
            stage.policy = _fixed(*target)
            expected = cv2.resize(image, target[::-1], interpolation=cv2.INTER_LINEAR)
            (found,) = _on_gpu(stage, stream, [image])
            wrong = int(np.count_nonzero(found != expected))
            if wrong:
                context.part.findings.append(f"resize {source} to {target}: {wrong} of {found.size} bytes differ")
            differing, compared = differing + wrong, compared + found.size
            _add(context, "random sizes", index + 1, differing, compared)
        _check_batches(context, stage, stream, rng)
    finally:
        stage.close()


def random_sizes(rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    """Heights and widths of a source and its target, including special cases of OpenCV (half, same, one side)."""
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


def _add(context: CheckContext, group: str, images: int, differing: int, compared: int) -> None:
    facts = {"bytes compared": compared, "differing bytes": differing}
    context.add("preprocessing", group, "cases", [images], facts=facts)


def _check_batches(context: CheckContext, stage: GpuPreprocess, stream: Stream, rng: np.random.Generator) -> None:
    policies = (
        ResizePolicy("letterbox", width=640, height=352),
        ResizePolicy("short_side", side=352, largest_side=800),
        ResizePolicy("long_side", side=320, shrink=True),
    )
    count = differing = compared = 0
    for policy in policies:
        context.checkpoint(f"preprocessing of batches, {policy.kind}")
        images = [_noise(rng, *(int(side) for side in rng.integers(20, 500, 2))) for _ in range(4)]
        stage.policy = policy
        for image, found in zip(images, _on_gpu(stage, stream, images), strict=True):
            expected, _ = preprocess(image, policy)
            height, width = expected.shape[:2]
            differing += int(np.count_nonzero(found[:height, :width] != expected))
            differing += int(np.count_nonzero(found[height:])) + int(np.count_nonzero(found[:, width:]))
            count, compared = count + 1, compared + found.size
    context.checkpoint("preprocessing of tiles")
    stage.policy = ResizePolicy("short_side", side=96, largest_side=256, tiles=True)
    for sides in rng.integers((20, 400), (60, 800), (4, 2)):
        image = _noise(rng, *(int(side) for side in sides))
        packed, frame = preprocess(image, stage.policy)
        for source, part in zip(sources_of(image, frame), frame.cut(packed), strict=True):
            (found,) = _on_gpu(stage, stream, [source])
            differing += int(np.count_nonzero(found != part))
            count, compared = count + 1, compared + found.size
    _add(context, "batches of mixed sizes", count, differing, compared)
    if differing:
        context.part.findings.append(f"batches of mixed sizes: {differing} of {compared} bytes differ")


def _on_gpu(stage: GpuPreprocess, stream: Stream, images: Sequence[Source]) -> NDArray[np.uint8]:
    prepared = stage(images, stream)
    result = np.empty(prepared.shape, np.uint8)
    stream.to_host(result, prepared.data)
    stream.synchronize()
    return result


def _noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    return np.frombuffer(rng.bytes(3 * height * width), np.uint8).reshape(height, width, 3)


def _fixed(height: int, width: int) -> ResizePolicy:
    return ResizePolicy("fixed", width=width, height=height, side=1, stride=1, bucket=1)
