# SPDX-License-Identifier: Apache-2.0
"""The device interface of the GPU stages.

`device.cuda.CudaDevice` is the real one. The stages know only these protocols, so that the tests can run the same
launches, copies and graphs on a device that executes the kernels on the CPU.

All work is asynchronous in the order of its stream; only `Stream.synchronize` waits.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ocdserve.contract import UnavailableError


class DeviceError(UnavailableError):
    """A CUDA call failed, or work that was queued did.

    Attributes:
        code: `CUresult`; 0 where no call was made, because the device failed before or is closed.
        sticky: Whether nothing more can be done on the device in this process.
    """

    def __init__(self, message: str, code: int = 0, sticky: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.sticky = sticky


class DeviceMemoryError(UnavailableError):
    """The device has not enough free memory; it can still be used."""


class Buffer(Protocol):
    """Device memory; `close` releases it, also while work on it is still queued on its device's streams."""

    @property
    def pointer(self) -> int:
        """Device address."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def close(self) -> None:
        """Release the memory; calling it again does nothing."""
        ...


# Scalars are NumPy scalars, so that their width is that of the kernel's parameter.
KernelArgument = Buffer | np.generic
Dim3 = tuple[int, int, int]


class Kernel(Protocol):
    """One `__global__` function of a loaded module."""

    @property
    def name(self) -> str:
        """Its name in the source."""
        ...


class Module(Protocol):
    """A compiled `.cu` file, loaded."""

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name; the `.cu` file declares it `extern "C"`.

        Raises:
            UnavailableError: There is none.
        """
        ...


class Graph(Protocol):
    """Recorded work, launched as one."""

    def launch(self, stream: "Stream") -> None:
        """Queue all of it; host arrays are read and written when it executes, as they are then."""
        ...

    def close(self) -> None:
        """Release the graph; calling it again does nothing."""
        ...


class Capture(Protocol):
    """A capture; `graph` is available once its `with` block has ended."""

    @property
    def graph(self) -> Graph:
        """What was recorded."""
        ...


class Event(Protocol):
    """A point in a stream's work."""

    def elapsed_ms(self, since: "Event") -> float:
        """Time between the two points; waits for both.

        Raises:
            DeviceError: The work failed.
        """
        ...

    def synchronize(self) -> None:
        """Wait until the stream has come to this point.

        Raises:
            DeviceError: The work failed.
        """
        ...

    def close(self) -> None:
        """Release the event; calling it again does nothing."""
        ...


class Stream(Protocol):
    """A queue of work."""

    @property
    def handle(self) -> int:
        """`CUstream`, for libraries that take one."""
        ...

    def launch(
        self, kernel: Kernel, grid: Dim3, block: Dim3, arguments: Sequence[KernelArgument], shared: int = 0
    ) -> None:
        """Queue a kernel; `shared` is its dynamic shared memory in bytes."""
        ...

    def to_device(self, target: Buffer, source: NDArray[Any], offset: int = 0) -> None:
        """Queue a copy of a C-contiguous host array to `target`, `offset` bytes from its start.

        The array must stay alive and unchanged until it has happened; only from `Device.host_array` is it
        asynchronous.
        """
        ...

    def to_host(self, target: NDArray[Any], source: Buffer, offset: int = 0) -> None:
        """Queue a copy into a C-contiguous host array from `source`, `offset` bytes from its start."""
        ...

    def copy(self, target: Buffer, source: Buffer, size: int, target_offset: int = 0, source_offset: int = 0) -> None:
        """Queue a copy of `size` bytes between two buffers of the device."""
        ...

    def fill(self, target: Buffer, value: int, size: int, offset: int = 0) -> None:
        """Queue setting `size` bytes from `offset` to the byte `value`."""
        ...

    def record(self) -> Event:
        """An event after everything queued so far."""
        ...

    def wait(self, event: Event) -> None:
        """Let work queued from now on wait for an event of another stream."""
        ...

    def synchronize(self) -> None:
        """Wait for all work queued so far.

        Raises:
            DeviceError: The work failed; the device is then unusable for this process.
        """
        ...

    def capture(self) -> AbstractContextManager[Capture]:
        """Record what is queued inside the `with` block instead of executing it."""
        ...

    def close(self) -> None:
        """Wait for the work and release the stream."""
        ...


class Device(Protocol):
    """One GPU, as this process sees it; thread-safe."""

    @property
    def name(self) -> str:
        """The GPU's model."""
        ...

    @property
    def multiprocessors(self) -> int:
        """Streaming multiprocessors."""
        ...

    @property
    def failed(self) -> bool:
        """Whether work failed so that nothing more can be done on the device in this process."""
        ...

    def allocate(self, size: int) -> Buffer:
        """Device memory of `size` bytes, aligned to 256, its content undefined.

        Raises:
            DeviceMemoryError: There is not enough free memory; the message has the figures.
        """
        ...

    def fetch(self, source: Buffer, size: int, index: int) -> Buffer:
        """A copy of the first `size` bytes of a buffer in the memory of the GPU with that index, complete on return.

        Raises:
            DeviceMemoryError: There is not enough free memory; the message has the figures.
            DeviceError: The copy failed.
        """
        ...

    def host_array(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A zeroed, page-locked host array; it is unlocked with its last reference."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Make the GPU current in the calling thread inside the `with` block, for other libraries that use CUDA."""
        ...

    def stream(self) -> Stream:
        """A new stream that does not wait for the legacy default stream."""
        ...

    def module(self, source: str) -> Module:
        """The `.cu` file of that name in this package (`postprocess.cu`), compiled for this GPU and loaded.

        Raises:
            UnavailableError: It cannot be compiled or loaded; the message has the compiler's log.
        """
        ...

    def close(self) -> None:
        """Release everything that this object holds."""
        ...
