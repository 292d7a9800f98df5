# SPDX-License-Identifier: Apache-2.0
"""Page-locked memory of decoded images: the image's until nothing refers to it, then another's."""

import gc
import threading
from typing import Any

import numpy as np
import pytest
from host_device import HostDevice
from numpy.typing import DTypeLike, NDArray

from ocdserve.backend.device.protocol import DeviceError, DeviceMemoryError
from ocdserve.backend.gpu.memory import ImagePool, locked_bytes

MIB = 1 << 20


class LockingDevice(HostDevice):
    """Records the sizes that are locked, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.locked: list[int] = []
        self.fails = False

    def host_array(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        if self.fails:
            raise DeviceError("cuMemHostRegister failed")
        array = super().host_array(shape, dtype)
        self.locked.append(array.nbytes)
        return array


@pytest.fixture
def device() -> LockingDevice:
    return LockingDevice()


def address(array: NDArray[np.uint8]) -> int:
    return array.ctypes.data


def test_an_array_has_spare_bytes_behind_it(device: LockingDevice) -> None:
    pool = ImagePool(device)
    image = pool.array(720, 1280)
    assert (image.shape, image.dtype, image.flags.c_contiguous) == ((720, 1280, 3), np.uint8, True)
    image[:] = 7

    held = locked_bytes(image)

    assert held is not None and len(held) == 3 * 720 * 1280 + 3
    assert np.shares_memory(held, image)
    assert held[-4:].tolist() == [7, 0, 0, 0]


def test_memory_is_another_s_with_the_last_reference_and_not_before(device: LockingDevice) -> None:
    pool = ImagePool(device)
    image = pool.array(100, 100)
    first, part = address(image), image[50:, 2:][::2]
    part[:] = 9

    del image
    other = pool.array(100, 100)
    assert address(other) != first

    other[:] = 1
    assert (part == 9).all()
    del part
    assert address(pool.array(90, 110)) == first
    assert device.locked == [MIB, MIB]


@pytest.mark.parametrize(
    ("height", "width", "locked"),
    [(1, 1, MIB), (720, 1280, 3 * MIB), (1080, 1920, 6 * MIB), (1519, 1080, 5 * MIB), (2448, 3264, 24 * MIB)],
)
def test_sizes_are_rounded_up_so_that_similar_images_share_memory(
    device: LockingDevice, height: int, width: int, locked: int
) -> None:
    ImagePool(device).array(height, width)
    assert device.locked == [locked]


def test_beyond_its_bound_images_have_ordinary_memory(device: LockingDevice) -> None:
    pool = ImagePool(device, 8 * MIB)
    images = [pool.array(10, 10) for _ in range(9)]
    assert len(device.locked) == 8
    assert [locked_bytes(image) is None for image in images] == [False] * 8 + [True]

    images.pop(0)
    assert locked_bytes(pool.array(20, 20)) is not None
    assert len(device.locked) == 8


def test_a_large_image_has_ordinary_memory(device: LockingDevice) -> None:
    image = ImagePool(device).array(3400, 3400)
    assert image.shape == (3400, 3400, 3)
    assert locked_bytes(image) is None
    assert device.locked == []


def test_memory_of_another_size_makes_room(device: LockingDevice) -> None:
    pool = ImagePool(device, 16 * MIB)
    small = [pool.array(10, 10) for _ in range(16)]
    assert locked_bytes(pool.array(700, 700)) is None
    del small

    assert locked_bytes(pool.array(700, 700)) is not None
    assert device.locked == [MIB] * 16 + [2 * MIB]


def test_where_memory_cannot_be_locked_none_is_counted(device: LockingDevice) -> None:
    pool = ImagePool(device, 8 * MIB)
    device.fails = True
    for _ in range(9):
        with pytest.raises(DeviceError):
            pool.array(10, 10)
    device.fails = False
    assert all(locked_bytes(pool.array(10, 10)) is not None for _ in range(8))


def test_where_the_system_locks_no_more_memory_is_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any) -> Any:
        raise DeviceMemoryError("cuMemHostRegister failed: CUDA_ERROR_OUT_OF_MEMORY")

    pool = ImagePool(HostDevice(), 8 * MIB)
    with monkeypatch.context() as full:
        full.setattr(HostDevice, "host_array", failing)
        images = [pool.array(10, 20) for _ in range(9)]
    assert [(image.shape, locked_bytes(image)) for image in images] == [((10, 20, 3), None)] * 9
    assert all(locked_bytes(pool.array(10, 10)) is not None for _ in range(8))


def test_other_arrays_and_parts_of_an_image_are_not_taken_for_one(device: LockingDevice) -> None:
    image = ImagePool(device).array(20, 20)
    assert locked_bytes(np.zeros((20, 20, 3), np.uint8)) is None
    assert locked_bytes(image[1:]) is None
    assert locked_bytes(image[:, :5]) is None
    assert locked_bytes(np.frombuffer(bytes(1200), np.uint8).reshape(20, 20, 3)) is None


def test_memory_may_be_given_back_by_the_garbage_collector_in_a_thread_that_asks_for_it() -> None:
    """`array` must not wait for itself."""

    class CollectingDevice(HostDevice):
        def host_array(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
            gc.collect()
            return super().host_array(shape, dtype)

    pool = ImagePool(CollectingDevice())
    for _ in range(3):
        circle: list[Any] = [pool.array(10, 10)]
        circle.append(circle)
        del circle
    assert locked_bytes(pool.array(10, 10)) is not None


def test_many_threads_never_share_memory(device: LockingDevice) -> None:
    pool, wrong = ImagePool(device, 16 * MIB), []

    def work(value: int) -> None:
        for side in range(1, 200):
            image = pool.array(side, 3 * side)
            image[:] = value
            if (image != value).any():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    # A thread holds an image until it has the next one.
    assert len(device.locked) <= 16


def test_closing_releases_what_is_idle_and_leaves_the_rest(device: LockingDevice) -> None:
    pool = ImagePool(device)
    image, idle = pool.array(10, 10), pool.array(10, 10)
    image[:] = 5
    del idle

    pool.close()
    pool.close()

    assert (image == 5).all()
