# SPDX-License-Identifier: Apache-2.0
"""Compiled `.cu` files, loaded on a GPU."""

from typing import Any

from ocdserve.backend.device.context import CudaContext
from ocdserve.backend.device.protocol import DeviceError, DeviceMemoryError, Kernel
from ocdserve.backend.kernels.gpu.compile import compile_for
from ocdserve.contract import UnavailableError

# Dynamic shared memory that a kernel may use without `allow_shared`.
_SHARED_DEFAULT = 48 * 1024


class CudaKernel:
    """One kernel.

    Args:
        name: Its name in the source.
        function: pycuda's function.
        attribute: `function_attribute` that allows more shared memory.
    """

    def __init__(self, name: str, function: Any, attribute: Any) -> None:
        self.name = name
        self.function = function
        self._attribute = attribute
        self._allowed = _SHARED_DEFAULT

    def allow_shared(self, size: int) -> None:
        """Allow launches with `size` bytes of dynamic shared memory; the device must be current."""
        if size > self._allowed:
            self.function.set_attribute(self._attribute, size)
            self._allowed = size


class CudaModule:
    """A loaded file; the device unloads it when it closes.

    Raises:
        UnavailableError: It cannot be compiled or loaded.
    """

    def __init__(self, context: CudaContext, source: str) -> None:
        self._context = context
        self._source = source
        self._kernels: dict[str, CudaKernel] = {}
        compiled = compile_for(source, context.architecture)
        try:
            with context.working(source):
                self._module: Any = context.libraries.pycuda.module_from_buffer(compiled.image)
        except (DeviceError, DeviceMemoryError) as error:
            raise UnavailableError(f"{source}, compiled for {compiled.target}, cannot be loaded: {error}") from error

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name.

        Raises:
            UnavailableError: There is none.
        """
        if name not in self._kernels:
            pycuda = self._context.libraries.pycuda
            try:
                with self._context.working(name):
                    function = self._module.get_function(name)
            except DeviceError as error:
                raise UnavailableError(f"{self._source} has no kernel {name!r}: {error}") from error
            attribute = pycuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._kernels[name] = CudaKernel(name, function, attribute)
        return self._kernels[name]

    def unload(self) -> None:
        """Release its memory; the device must be current. Functions of pycuda would keep it."""
        for kernel in self._kernels.values():
            kernel.function = None
        self._kernels.clear()
        self._module = None
