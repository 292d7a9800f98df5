# SPDX-License-Identifier: Apache-2.0
"""The real device: one GPU, through pycuda, in the primary context, which TensorRT and CUDA's runtime share.

Contexts of pycuda are a stack of each thread, and its objects complain when they go elsewhere. So every use of the GPU
pushes the context and pops it again, nothing of pycuda is dropped but inside such a block, and the device is closed
before the interpreter ends.
"""

import atexit
import contextlib
import threading
import weakref
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ocdserve.backend.cuda import driver, presence
from ocdserve.backend.cuda.buffers import CudaBuffer, DevicePool
from ocdserve.backend.cuda.compile import architecture_of
from ocdserve.backend.cuda.device import Buffer, Device, DeviceError, Module, Stream
from ocdserve.backend.cuda.driver import check
from ocdserve.backend.cuda.host_memory import LockedPages
from ocdserve.backend.cuda.module import CudaModule
from ocdserve.backend.cuda.returns import Returns
from ocdserve.backend.cuda.stream import CudaStream
from ocdserve.contract import UnavailableError

# How long `close` waits for other threads that are inside a call; a GPU that hangs lets none out.
_CLOSE_WAIT_S = 30.0

_thread = threading.local()
_open: "weakref.WeakSet[CudaDevice]" = weakref.WeakSet()


def open_device(index: int = 0) -> "CudaDevice":
    """One of this machine's GPUs, counted as the driver does, `CUDA_VISIBLE_DEVICES` regarded.

    Raises:
        UnavailableError: There is no such GPU, it is too old, or something is not installed; the message says what.
    """
    libraries = driver.load()
    presence.present_gpu(index)
    device = CudaDevice(libraries, index)
    _open.add(device)
    return device


class CudaDevice:
    """One GPU; usable from any thread. `open_device` makes it.

    Attributes:
        libraries: The driver's two packages.
        index: The GPU's number.
        name: Its model.
        multiprocessors: Its streaming multiprocessors.
        compute_capability: For example (9, 0).
        architecture: What kernels are compiled for, for example `sm_90`.
        returns: What is on its way back.
    """

    def __init__(self, libraries: driver.Libraries, index: int) -> None:
        self.libraries = libraries
        self.index = index
        pycuda = libraries.pycuda
        try:
            device = pycuda.Device(index)
            self.name = str(device.name())
            self.compute_capability: tuple[int, int] = device.compute_capability()
            self.multiprocessors = int(device.get_attribute(pycuda.device_attribute.MULTIPROCESSOR_COUNT))
            self.architecture = architecture_of(*self.compute_capability)
            self._context: Any = device.retain_primary_context()
        except pycuda.Error as error:
            raise driver.translated(error, f"GPU {index}") or error from error
        self._failure = ""
        self._closed = False
        self._closer: int | None = None
        self._users = 0
        self._changed = threading.Condition()
        self._modules: dict[str, CudaModule] = {}
        self._module_lock = threading.Lock()
        self._streams: set[int] = set()
        self.returns = Returns(self.working)
        try:
            with self.working():
                self._pool = DevicePool(libraries, index, lambda: tuple(self._streams))
        except UnavailableError:
            self._closed = True
            self._release_context()
            raise

    @property
    def failed(self) -> bool:
        """Whether work failed so that nothing more can be done on the device in this process."""
        return bool(self._failure)

    @property
    def used_bytes(self) -> int:
        """Device memory that this object gave out and did not get back."""
        with self.working():
            return self._pool.used()

    def current(self) -> AbstractContextManager[None]:
        """Makes the GPU the calling thread's inside the `with` block, for libraries that use CUDA themselves.

        Calls of this device inside are faster: they find it current.

        Raises:
            DeviceError: The device failed before, or is closed.
        """
        return _Working(self, "")

    def working(self, about: str = "") -> AbstractContextManager[None]:
        """As `current`, for calls of the driver: their errors come out as DeviceError or DeviceMemoryError.

        Args:
            about: What the work is about, for messages.
        """
        return _Working(self, about)

    def enter(self) -> bool:
        """Make the context current, for `working`; gives whether it was before.

        Raises:
            DeviceError: The device failed before, or is closed.
        """
        stack: list[CudaDevice] = _thread.__dict__.setdefault("stack", [])
        with self._changed:
            if self._failure or (self._closed and self._closer != threading.get_ident()):
                raise self._refusal()
            self._users += 1
        inside = bool(stack) and stack[-1] is self
        if not inside:
            try:
                self._context.push()
            except BaseException:
                self._one_less()
                raise
        stack.append(self)
        return inside

    def leave(self, inside: bool) -> None:
        """End what `enter` began."""
        _thread.stack.pop()
        try:
            if not inside:
                self.libraries.pycuda.Context.pop()
        finally:
            self._one_less()

    def judge(self, error: BaseException) -> None:
        """Note an error after which nothing more can be done."""
        if isinstance(error, DeviceError) and error.sticky:
            self._failure = self._failure or str(error)

    def allocate(self, size: int) -> Buffer:
        """Device memory of `size` bytes, aligned to 256, its content undefined.

        Raises:
            DeviceMemoryError: There is not that much; the message has the figures.
        """
        self.returns.drain()
        with self.working():
            return CudaBuffer(self._pool, max(size, 1), self.returns)

    def host_array(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A zeroed, page-locked host array; it is given back with its last reference, or with the device.

        The memory is the process's own, locked for the GPU: it stays valid when the device is closed.
        """
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self.working():
            pages = LockedPages(self.libraries, max(size, 1), self.returns)
        return np.asarray(pages)[:size].view(dtype).reshape(shape)

    def stream(self) -> Stream:
        """A new stream that does not wait for the legacy default stream."""
        with self.working():
            return CudaStream(self, self._streams)

    def module(self, source: str) -> Module:
        """The `.cu` file of that name in this package, compiled for this GPU and loaded.

        Raises:
            UnavailableError: It cannot be compiled or loaded; the message has the compiler's log.
        """
        with self._module_lock:
            if source not in self._modules:
                self._modules[source] = CudaModule(self, source)
            return self._modules[source]

    def close(self) -> None:
        """Give back all that this object holds, once no other thread is inside a call; calling it again does nothing.

        Raises:
            DeviceError: The calling thread is inside `current`.
        """
        if self in _thread.__dict__.get("stack", ()):
            raise DeviceError(f"{self.name} cannot be closed inside its own current()")
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._closer = threading.get_ident()
            idle = self._changed.wait_for(lambda: not self._users, _CLOSE_WAIT_S)
        try:
            if idle:
                if not self.failed:
                    self._give_all_back()
                self._release_context()
        finally:
            self._closer = None
            self.returns.discard()

    def _give_all_back(self) -> None:
        with contextlib.suppress(DeviceError), self.working():
            self.libraries.pycuda.Context.synchronize()
            self.returns.finish()
            for module in self._modules.values():
                module.unload()
            self._modules.clear()
            self._pool.close()

    def _release_context(self) -> None:
        """Drop the reference to the primary context.

        pycuda does it only in the thread that made the reference, where it leaves the context on the driver's stack;
        elsewhere it keeps the reference. Which of the two happened shows on an empty stack.
        """
        cuda = self.libraries.bindings
        kept = []
        while int(check(cuda.cuCtxGetCurrent(), "cuCtxGetCurrent")):
            kept.append(check(cuda.cuCtxPopCurrent(), "cuCtxPopCurrent"))
        self._context.detach()
        if int(check(cuda.cuCtxGetCurrent(), "cuCtxGetCurrent")):
            check(cuda.cuCtxPopCurrent(), "cuCtxPopCurrent")
        else:
            cuda.cuDevicePrimaryCtxRelease(self.index)
        for context in reversed(kept):
            check(cuda.cuCtxPushCurrent(context), "cuCtxPushCurrent")

    def _one_less(self) -> None:
        with self._changed:
            self._users -= 1
            if self._closed:
                self._changed.notify_all()

    def _refusal(self) -> DeviceError:
        if self._failure:
            return DeviceError(f"{self.name} failed before: {self._failure}", sticky=True)
        return DeviceError(f"{self.name} is closed: open it again with open_device({self.index}).")


class _Working:
    """A `with` block in which a device is current. A generator's frames would keep tracebacks, see `translated`."""

    def __init__(self, device: CudaDevice, about: str) -> None:
        self._device = device
        self._about = about
        self._inside = False

    def __enter__(self) -> None:
        try:
            self._inside = self._device.enter()
        except self._device.libraries.pycuda.Error as error:
            self._translate(error)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        del traceback
        try:
            self._device.leave(self._inside)
        except self._device.libraries.pycuda.Error as second:
            error = error or second
        if error is not None:
            self._translate(error)

    def _translate(self, error: BaseException) -> None:
        translated = driver.translated(error, self._about)
        self._device.judge(translated or error)
        if translated is not None:
            raise translated from error


@atexit.register
def _close_all() -> None:
    for device in tuple(_open):
        # At the end of the process nobody can mend it any more.
        with contextlib.suppress(UnavailableError):
            device.close()


_: type[Device] = CudaDevice  # held to the protocol by the type checker
