# SPDX-License-Identifier: Apache-2.0
"""The kernel `rectify_lines` on the emulated device: the bytes of the CPU's rectification."""

from pathlib import Path

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, KernelFault, Schedule, package_sources, without_barrier
from numpy.typing import NDArray

from ocdserve.backend.gpu.rectify import GpuRectify
from ocdserve.backend.stages.image import decode
from ocdserve.backend.stages.rectify import LinePlan, rectify
from ocdserve.contract import InvalidInputError
from ocdserve.results.reading.lines import LINE

Pixels = NDArray[np.uint8]


def cut(
    device: EmulatedDevice,
    images: list[tuple[Pixels, NDArray[np.float32]]],
    shape: tuple[int, int, int],
    upside_down: bool = False,
) -> Pixels:
    """A batch of (lines, height, width) from quads of images, 7 beside the lines."""
    count, height, width = shape
    subject, stream = GpuRectify(device, count), device.stream()
    buffers, lines = [], []
    for pixels, quads in images:
        buffers.append(device.allocate(pixels.nbytes))
        stream.to_device(buffers[-1], pixels)
        plan = LinePlan.of(quads, height, (pixels.shape[0], pixels.shape[1]), width)
        plan.lines["pixels"], plan.lines["pitch"] = buffers[-1].pointer, pixels.strides[0]
        plan.lines["upside_down"] = upside_down
        lines.append(plan.lines)
    output = device.allocate(3 * count * height * width)
    subject.stage(np.concatenate(lines))
    subject.launch(stream, output, count, height, width, 7)
    found = np.empty((count, height, width, 3), np.uint8)
    stream.to_host(found, output)
    stream.synchronize()
    subject.close()
    for buffer in (*buffers, output):
        buffer.close()
    stream.close()
    assert device.allocated == 0
    return found


def expected(images: list[tuple[Pixels, NDArray[np.float32]]], shape: tuple[int, int, int]) -> Pixels:
    """The same by the CPU."""
    count, height, width = shape
    batch = np.full((count, height, width, 3), 7, np.uint8)
    lines = [line.pixels for pixels, quads in images for line in rectify(pixels, quads, height, width)]
    for target, line in zip(batch, lines, strict=False):
        target[:, : line.shape[1]] = line
    return batch


def quads_around(rng: np.random.Generator, count: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Quads of all sizes, in and beside an image, a third of them far from rectangles."""
    centres = rng.uniform(-0.2, 1.2, (count, 1, 2)) * size[::-1]
    scales = np.exp(rng.uniform(0, 5, (count, 1, 2)))
    corners = centres + scales * rng.normal([[-1, -1], [1, -1], [1, 1], [-1, 1]], 0.1, (count, 4, 2))
    corners[::3] += rng.normal(0, 30, (len(corners[::3]), 4, 2))
    return corners.astype(np.float32)


def test_lines_of_several_images_have_the_bytes_of_the_cpu(
    emulated_device: EmulatedDevice, rng: np.random.Generator
) -> None:
    for _ in range(25):
        images = []
        for _ in range(2):
            height, width = map(int, rng.integers(1, 90, 2))
            images.append((rng.integers(0, 256, (height, width, 3), np.uint8), quads_around(rng, 3, (height, width))))
        shape = (8, int(rng.integers(1, 20)), int(rng.integers(1, 140)))
        np.testing.assert_array_equal(cut(emulated_device, images, shape), expected(images, shape))


def test_lines_of_a_receipt_have_the_bytes_of_the_cpu(
    emulated_device: EmulatedDevice, shared_data: Path, rng: np.random.Generator
) -> None:
    pixels = decode(min((shared_data / "receipts" / "img").iterdir()).read_bytes())
    images = [(pixels, quads_around(rng, 30, (pixels.shape[0], pixels.shape[1])))]
    np.testing.assert_array_equal(cut(emulated_device, images, (32, 48, 640)), expected(images, (32, 48, 640)))


def test_a_line_is_turned_by_180_degrees(emulated_device: EmulatedDevice, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (60, 90, 3), np.uint8)
    quads = quads_around(rng, 5, (60, 90))
    found = cut(emulated_device, [(pixels, quads)], (5, 12, 200), upside_down=True)
    for target, line in zip(found, rectify(pixels, quads, 12, 200), strict=True):
        width = line.pixels.shape[1]
        np.testing.assert_array_equal(target[:, :width], line.pixels[::-1, ::-1])
        assert (target[:, width:] == 7).all()


@pytest.mark.parametrize("width", [33, 64])
def test_no_access_leaves_a_buffer_and_threads_do_not_race(
    cuda_compiler: None, rng: np.random.Generator, width: int
) -> None:
    device = EmulatedDevice(Schedule(seed=3), check_races=True)
    images = [(rng.integers(0, 256, (9, 13, 3), np.uint8), quads_around(rng, 3, (9, 13)))]
    np.testing.assert_array_equal(cut(device, images, (4, 10, width)), expected(images, (4, 10, width)))


def test_the_barrier_is_needed(cuda_compiler: None, rng: np.random.Generator) -> None:
    source = without_barrier(package_sources()["preprocess.cu"], 2)
    device = EmulatedDevice(Schedule(seed=1), sources={"preprocess.cu": source})
    images = [(rng.integers(0, 256, (9, 13, 3), np.uint8), quads_around(rng, 3, (9, 13)))]
    with pytest.raises((AssertionError, KernelFault)):
        np.testing.assert_array_equal(cut(device, images, (4, 10, 64)), expected(images, (4, 10, 64)))


def test_a_batch_holds_as_many_lines_as_were_said(emulated_device: EmulatedDevice) -> None:
    subject = GpuRectify(emulated_device, 4)
    for count in (0, 5):
        with pytest.raises(InvalidInputError, match=rf"^a batch must be of 1 to 4 lines; got {count}$"):
            subject.stage(np.zeros(count, LINE))
    subject.close()
