# SPDX-License-Identifier: Apache-2.0
"""Preprocessing and rectification on the GPU compared with the CPU's: differing bytes over random sizes and quads."""

from collections.abc import Sequence
from contextlib import closing

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Device, Stream
from ocdserve.backend.gpu.preprocess import GpuPreprocess, Source, sources_of
from ocdserve.backend.gpu.rectify import GpuRectify
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.backend.stages.rectify import LinePlan, rectify
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.report.targets import LINES

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


def check_lines(context: CheckContext, device: Device, stream: Stream) -> None:
    """Count the bytes of text lines, of quads of any form in and beside images, that differ from the CPU's.

    Raises:
        OutOfTimeError: The time is up; comparisons so far are in the context.
    """
    rng = np.random.default_rng(_SEED)
    stage = GpuRectify(device, _STEP)
    differing = compared = 0
    try:
        for first in range(0, context.effort.resizes, _STEP):
            context.checkpoint(f"rectification from line {first} of {context.effort.resizes} on")
            image = _noise(rng, *(int(side) for side in rng.integers(1, 600, 2)))
            quads = random_quads(rng, _STEP, (image.shape[0], image.shape[1]))
            height, width = (int(length) for length in rng.integers((1, 1), (65, 700)))
            found = _cut_on_gpu(device, stage, stream, image, quads, (height, width))
            for index, (line, ours) in enumerate(zip(rectify(image, quads, height, width), found, strict=True)):
                cut = line.pixels.shape[1]
                wrong = int(np.count_nonzero(ours[:, :cut] != line.pixels)) + int(np.count_nonzero(ours[:, cut:]))
                if wrong:
                    quad = quads[index].tolist()
                    context.part.findings.append(
                        f"line of {quad} at {height} pixels: {wrong} of {ours.size} bytes differ"
                    )
                differing, compared = differing + wrong, compared + ours.size
            facts = {"bytes compared": compared, "differing bytes": differing}
            context.add("rectification", LINES, "cases", [first + _STEP], facts=facts)
    finally:
        stage.close()


def random_quads(rng: np.random.Generator, count: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Quads (count, 4, 2) of all sizes and directions, in and beside an image of that size, some of them crossed."""
    centres = rng.uniform(-0.2, 1.2, (count, 1, 2)) * size[::-1]
    sides, angles = np.exp(rng.uniform(0, 6, (count, 1, 2))), rng.uniform(0, 2 * np.pi, count)
    turns = np.stack([np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)], axis=1).reshape(-1, 2, 2)
    quads = (rng.normal([[-1, -1], [1, -1], [1, 1], [-1, 1]], 0.1, (count, 4, 2)) * sides) @ turns + centres
    quads[::4] += rng.normal(0, 30, quads[::4].shape)
    rounded: NDArray[np.float32] = quads.astype(np.float32)
    return rounded


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


def _cut_on_gpu(
    device: Device,
    stage: GpuRectify,
    stream: Stream,
    image: NDArray[np.uint8],
    quads: NDArray[np.float32],
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Lines of a (height, width), 0 beside them."""
    plan = LinePlan.of(quads, size[0], (image.shape[0], image.shape[1]), size[1])
    found = np.empty((len(quads), *size, 3), np.uint8)
    with closing(device.allocate(image.nbytes)) as source, closing(device.allocate(found.nbytes)) as target:
        stream.to_device(source, image)
        plan.lines["pixels"], plan.lines["pitch"] = source.pointer, image.strides[0]
        stage.stage(plan.lines)
        stage.launch(stream, target, len(quads), *size, 0)
        stream.to_host(found, target)
        stream.synchronize()
    return found


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
