# SPDX-License-Identifier: Apache-2.0
"""Device tensors to and from other libraries by DLPack, as Triton's Python backend does it: unversioned capsules.

A consumer that calls `__dlpack__` names a stream, which then waits for the producer's work; a bare capsule has no
such guarantee.
"""

import ctypes
import itertools
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from ocdserve.backend.device.buffers import ForeignBuffer
from ocdserve.backend.device.protocol import Buffer, Stream
from ocdserve.backend.device.stream import CudaStream
from ocdserve.contract import InvalidInputError

_CUDA = 2  # kDLCUDA
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLDataTypeCode by NumPy's kind
_LEGACY_DEFAULT = 1  # CU_STREAM_LEGACY
_UNSYNCHRONISED = -1

# Capsules keep the addresses of these names.
_FRESH = ctypes.create_string_buffer(b"dltensor")
_TAKEN = ctypes.create_string_buffer(b"used_dltensor")


class _Tensor(ctypes.Structure):  # DLManagedTensor
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("kind", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("delete", ctypes.c_void_p),
    )


_Delete = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_new: Any = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_pointer: Any = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_rename: Any = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(
    ("PyCapsule_SetName", ctypes.pythonapi)
)
# A capsule that is being destroyed must not become an object again: its address only.
_is_valid: Any = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_dying_pointer: Any = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

# Exported tensors by the address of their description: the description, its shape, and the tensor.
_exported: dict[int, tuple[object, ...]] = {}


@dataclass(frozen=True)
class DeviceTensor:
    """A C-contiguous tensor in a GPU's memory.

    Attributes:
        buffer: Its memory; the tensor starts at its first byte.
        shape: Its shape.
        dtype: Type of its elements.
        device_index: The GPU's number.
        stream: Where the work that writes the content is queued; None: the content is complete.
        owner: What else keeps the memory alive.

    Raises:
        InvalidInputError: The buffer is too small, or DLPack has no such type.
    """

    buffer: Buffer
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    device_index: int = 0
    stream: CudaStream | None = None
    owner: object = None

    def __post_init__(self) -> None:
        if self.dtype.kind not in _KINDS:
            raise InvalidInputError(f"dtype must be of integers, floats or booleans; got {self.dtype}")
        if min(self.shape, default=0) < 0 or self.nbytes > self.buffer.size:
            raise InvalidInputError(
                f"a tensor of {self.shape} {self.dtype} has {self.nbytes} bytes; its buffer has {self.buffer.size}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the content."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __dlpack_device__(self) -> tuple[int, int]:
        """Device type and number."""
        return _CUDA, self.device_index

    def __dlpack__(self, stream: int | None = None, **_unused: object) -> object:
        """A capsule of the tensor, which lives as long as the consumer needs it.

        Args:
            stream: The consumer's `CUstream`; None is the legacy default stream, -1 asks for no synchronisation.
        """
        if self.stream is not None and stream != _UNSYNCHRONISED:
            self.stream.precede(stream or _LEGACY_DEFAULT)
        shape = (ctypes.c_int64 * len(self.shape))(*self.shape)
        managed = _Tensor(
            data=self.buffer.pointer,
            device_type=_CUDA,
            device_index=self.device_index,
            dimensions=len(self.shape),
            kind=_KINDS[self.dtype.kind],
            bits=8 * self.dtype.itemsize,
            lanes=1,
            shape=shape,
            delete=ctypes.cast(_forget_callback, ctypes.c_void_p).value,
        )
        address = ctypes.addressof(managed)
        _exported[address] = (managed, shape, self)
        return _new(address, ctypes.addressof(_FRESH), ctypes.cast(_drop_callback, ctypes.c_void_p))


def from_dlpack(source: Any, stream: Stream | None = None) -> DeviceTensor:
    """Take a tensor from an object with `__dlpack__`, or from a capsule.

    Args:
        source: The object, or a capsule whose producer has completed the content.
        stream: Where the tensor will be used; the content is there for what is queued on it from now on. None: the
            producer's work must be finished.

    Raises:
        InvalidInputError: It is not in a GPU's memory, was consumed before, is not C-contiguous, or has a type that
            NumPy lacks.
    """
    if hasattr(source, "__dlpack__"):
        kind, index = source.__dlpack_device__()
        if kind != _CUDA:
            raise InvalidInputError(f"the tensor must lie in a GPU's memory; got DLPack device {int(kind)}, {index}")
        source = source.__dlpack__(stream=stream.handle if stream else _UNSYNCHRONISED)
    try:
        address = _pointer(source, ctypes.addressof(_FRESH))
    except ValueError as error:
        raise InvalidInputError(f"a capsule named 'dltensor' is needed, not consumed before; got {source!r}") from error
    tensor = _Tensor.from_address(address)
    shape = tuple(tensor.shape[i] for i in range(tensor.dimensions))
    dtype = _dtype(tensor)
    if tensor.device_type != _CUDA:
        raise InvalidInputError(f"the tensor must lie in a GPU's memory; got DLPack device {tensor.device_type}")
    if tensor.strides:
        strides = [tensor.strides[i] for i in range(tensor.dimensions)]
        # The stride of a dimension of length 1 has no meaning.
        dense = list(itertools.accumulate(shape[:0:-1], lambda size, length: size * length, initial=1))[::-1]
        if any(got != want for got, want, length in zip(strides, dense, shape, strict=False) if length > 1):
            raise InvalidInputError(f"the tensor must be C-contiguous; got strides {strides} of {shape}")
    _rename(source, ctypes.addressof(_TAKEN))
    owner = _Owner()
    if tensor.delete:
        weakref.finalize(owner, _Delete(tensor.delete), address).atexit = False
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return DeviceTensor(
        ForeignBuffer((tensor.data or 0) + tensor.byte_offset, size), shape, dtype, tensor.device_index, owner=owner
    )


class _Owner:
    """Released with the last tensor over memory that was consumed."""


def _dtype(tensor: _Tensor) -> "np.dtype[Any]":
    kinds = {code: kind for kind, code in _KINDS.items()}
    try:
        if tensor.lanes != 1:
            raise TypeError
        return np.dtype(f"{kinds[tensor.kind]}{tensor.bits // 8}")
    except (KeyError, TypeError) as error:
        raise InvalidInputError(
            f"the tensor's type must be one of NumPy's; got DLPack code {tensor.kind} of {tensor.bits} bits"
        ) from error


def _forget(address: int) -> None:
    _exported.pop(address, None)


def _drop(capsule: int) -> None:
    """A capsule that was never consumed releases its tensor."""
    if _is_valid(capsule, ctypes.addressof(_FRESH)):
        _exported.pop(_dying_pointer(capsule, ctypes.addressof(_FRESH)), None)


# Kept alive as long as the module: other libraries call them.
_forget_callback = _Delete(_forget)
_drop_callback = _Delete(_drop)
