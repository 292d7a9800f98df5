# SPDX-License-Identifier: Apache-2.0
"""Tensors to and from other libraries; NumPy, which has a DLPack of its own, is the other library.

It takes and gives host memory only, so the device in the description is exchanged on the way.
"""

import ctypes
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from ocdserve.backend.device.buffers import ForeignBuffer
from ocdserve.backend.device.dlpack import DeviceTensor, from_dlpack
from ocdserve.contract import InvalidInputError

CPU, CUDA = 1, 2

_pointer: Any = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def on(device: int, capsule: Any) -> Any:
    """The capsule, its tensor marked as on another kind of device."""
    # DLTensor: void* data; DLDevice{int32 type, int32 index}; ...
    ctypes.c_int32.from_address(_pointer(capsule, b"dltensor") + 8).value = device
    return capsule


class Given:
    """A tensor that NumPy accepts."""

    def __init__(self, tensor: DeviceTensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **_unused: object) -> Any:
        return on(CPU, self.tensor.__dlpack__())

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0


def tensor_of(array: Any, **named: Any) -> DeviceTensor:
    return DeviceTensor(ForeignBuffer(array.ctypes.data, array.nbytes), array.shape, array.dtype, **named)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i4", "i8", "f2", "f4", "f8"])
def test_another_library_reads_what_we_give(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)

    taken = np.from_dlpack(Given(tensor_of(array)))

    assert taken.dtype == array.dtype
    np.testing.assert_array_equal(taken, array)
    assert taken.ctypes.data == array.ctypes.data


@pytest.mark.parametrize("dtype", ["u1", "i1", "i4", "i8", "f2", "f4", "f8", "?"])
def test_we_read_what_another_library_gives(dtype: str) -> None:
    array = np.ones((2, 3, 4)).astype(dtype)

    taken = from_dlpack(on(CUDA, array.__dlpack__()))

    assert (taken.shape, taken.dtype, taken.device_index) == ((2, 3, 4), array.dtype, 0)
    assert (taken.buffer.pointer, taken.buffer.size) == (array.ctypes.data, array.nbytes)


def test_an_image_without_elements_is_a_tensor() -> None:
    array = np.zeros((0, 3), np.uint8)

    assert from_dlpack(on(CUDA, array.__dlpack__())).shape == (0, 3)


def test_an_exported_tensor_lives_as_long_as_its_consumer() -> None:
    class Owner:
        pass

    owner = Owner()
    seen = weakref.ref(owner)
    array = np.arange(5, dtype=np.float32)
    taken = np.from_dlpack(Given(tensor_of(array, owner=owner)))
    del owner
    gc.collect()
    assert seen() is not None

    del taken
    gc.collect()
    assert seen() is None


def test_an_unconsumed_capsule_keeps_nothing_alive() -> None:
    class Owner:
        pass

    owner = Owner()
    seen = weakref.ref(owner)
    capsule = tensor_of(np.arange(5), owner=owner).__dlpack__()
    del owner
    gc.collect()
    assert seen() is not None

    del capsule
    gc.collect()
    assert seen() is None


def test_an_imported_tensor_is_released_with_its_last_reference() -> None:
    array = np.arange(5)
    seen = weakref.ref(array)
    taken = from_dlpack(on(CUDA, array.__dlpack__()))
    del array
    gc.collect()
    assert seen() is not None

    del taken
    gc.collect()
    assert seen() is None


def test_a_capsule_is_consumed_once() -> None:
    capsule = on(CUDA, np.arange(5).__dlpack__())
    from_dlpack(capsule)

    with pytest.raises(
        InvalidInputError, match=r"a capsule named 'dltensor' is needed, not consumed before; got <capsule"
    ):
        from_dlpack(capsule)


def test_what_is_elsewhere_or_is_not_dense_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"must lie in a GPU's memory; got DLPack device 1, 0"):
        from_dlpack(np.arange(5))
    with pytest.raises(InvalidInputError, match=r"must lie in a GPU's memory; got DLPack device 1"):
        from_dlpack(np.arange(5).__dlpack__())
    with pytest.raises(InvalidInputError, match=r"must be C-contiguous; got strides \[1, 3\] of \(3, 4\)"):
        from_dlpack(on(CUDA, np.zeros((4, 3)).T.__dlpack__()))
    with pytest.raises(InvalidInputError, match=r"must be one of NumPy's; got DLPack code 5 of 64 bits"):
        from_dlpack(on(CUDA, np.zeros(3, np.complex64).__dlpack__()))


def test_a_tensor_larger_than_its_buffer_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"\(3, 2\) float32 has 24 bytes; its buffer has 20"):
        DeviceTensor(ForeignBuffer(4096, 20), (3, 2), np.dtype(np.float32))
    with pytest.raises(InvalidInputError, match="dtype must be of integers, floats or booleans; got complex64"):
        DeviceTensor(ForeignBuffer(4096, 20), (1,), np.dtype(np.complex64))
    with pytest.raises(InvalidInputError, match="needs an address and a size; got 20 bytes at 0x0"):
        ForeignBuffer(0, 20)
