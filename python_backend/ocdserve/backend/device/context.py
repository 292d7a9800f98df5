# SPDX-License-Identifier: Apache-2.0
"""The primary context of one GPU: current in a thread while it works, unusable after a failure, closed once.

pycuda keeps a stack of contexts per thread, and its objects must be destroyed with theirs current. So every use of the
GPU pushes the context and pops it again, and objects of pycuda are dropped only inside such a block.
"""

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ocdserve.backend.device import driver
from ocdserve.backend.device.deferred_release import DeferredRelease
from ocdserve.backend.device.driver import check
from ocdserve.backend.device.protocol import DeviceError
from ocdserve.backend.kernels.gpu.compile import architecture_of

# How long `close` waits for other threads that are inside a call; with a GPU that hangs, none returns.
_CLOSE_WAIT_S = 30.0

_thread = threading.local()


class CudaContext:
    """The primary context of a GPU, which TensorRT and CUDA's runtime share. Thread-safe.

    Attributes:
        libraries: The driver's two packages.
        index: The GPU's number.
        name: Its model.
        multiprocessors: Its streaming multiprocessors.
        compute_capability: For example (9, 0).
        architecture: What kernels are compiled for, for example `sm_90`.
        releases: Frees that wait until they are allowed.

    Raises:
        UnavailableError: The driver cannot create the context, or the GPU is too old.
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
        self.releases = DeferredRelease(self.working)

    @property
    def failed(self) -> bool:
        """Whether an error made the device unusable for this process."""
        return bool(self._failure)

    def working(self, about: str = "") -> AbstractContextManager[None]:
        """Make the GPU current in the calling thread inside the `with` block.

        Args:
            about: What the work is about, for messages.

        Raises:
            DeviceError: A call of the driver inside failed, the device failed before, or it is closed.
            DeviceMemoryError: The device has not enough memory.
        """
        return _Working(self, about)

    def enter(self) -> bool:
        """Make the context current, for `working`; returns whether it already was.

        Raises:
            DeviceError: The device failed before, or is closed.
        """
        stack: list[CudaContext] = _thread.__dict__.setdefault("stack", [])
        with self._changed:
            if self._failure or (self._closed and self._closer != threading.get_ident()):
                raise self._refusal()
            self._users += 1
        inside = bool(stack) and stack[-1] is self
        if not inside:
            try:
                self._context.push()
            except BaseException:
                self._remove_user()
                raise
        stack.append(self)
        return inside

    def leave(self, inside: bool) -> None:
        """Undo `enter`."""
        _thread.stack.pop()
        try:
            if not inside:
                self.libraries.pycuda.Context.pop()
        finally:
            self._remove_user()

    def note(self, error: BaseException) -> None:
        """Remember an error after which the device is unusable."""
        if isinstance(error, DeviceError) and error.sticky:
            self._failure = self._failure or str(error)

    def close(self, release_all: Callable[[], None]) -> None:
        """Release the context, once no other thread is inside a call; calling it again does nothing.

        Args:
            release_all: Releases what was made in the context; called with it current, unless the GPU failed.

        Raises:
            DeviceError: The calling thread is inside `working`.
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
                    with contextlib.suppress(DeviceError), self.working():
                        self.libraries.pycuda.Context.synchronize()
                        self.releases.finish()
                        release_all()
                self._release()
        finally:
            self._closer = None
            self.releases.discard()

    def _release(self) -> None:
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

    def _remove_user(self) -> None:
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

    def __init__(self, context: CudaContext, about: str) -> None:
        self._context = context
        self._about = about
        self._inside = False

    def __enter__(self) -> None:
        try:
            self._inside = self._context.enter()
        except self._context.libraries.pycuda.Error as error:
            self._translate(error)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        del traceback
        try:
            self._context.leave(self._inside)
        except self._context.libraries.pycuda.Error as second:
            error = error or second
        if error is not None:
            self._translate(error)

    def _translate(self, error: BaseException) -> None:
        translated = driver.translated(error, self._about)
        self._context.note(translated or error)
        if translated is not None:
            raise translated from error
