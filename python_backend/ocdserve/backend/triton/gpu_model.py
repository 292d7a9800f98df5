# SPDX-License-Identifier: Apache-2.0
"""Base of the served models on a GPU: the same contract as in `models`, and health.

A GPU failure is final for its process: all requests get an error, the model reports that it is not ready, and the
launcher, if there is one, is notified to end the process and to reload the model.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import triton_python_backend_utils as pb_utils

from ocdserve.backend.device import cuda
from ocdserve.backend.device.dlpack import DeviceTensor, from_dlpack
from ocdserve.backend.device.protocol import Device, DeviceMemoryError
from ocdserve.backend.gpu.steps import Tensor
from ocdserve.backend.serve.process.health import report_failure
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.triton.base_model import Model, Outputs
from ocdserve.backend.triton.options import ServingOptions
from ocdserve.backend.triton.waiter import Waiter
from ocdserve.contract import UnavailableError


class GpuModel(Model):
    """Base of the models on a GPU: health, errors, and tensors on the GPU."""

    _device: Device
    _index: int
    _step: Any
    _failed = False

    def _load(self, bundle: Bundle, options: ServingOptions) -> None:
        self._bundle = bundle
        self._index = options.runtime.device
        self._device = cuda.open_device(self._index)
        self._runner = ThreadPoolExecutor(options.slots)
        self._open(bundle, options)

    def _open(self, bundle: Bundle, options: ServingOptions) -> None:
        """Make what this model needs on `_device`."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """See `Model.is_ready`: False once the GPU has failed in this process."""
        return not self._failed

    def finalize(self) -> None:
        """See `Model.finalize`."""
        self._runner.shutdown()
        if not self._failed:
            self._step.close()
            self._device.close()
        self._metrics.close()

    def _send(self, sender: Any, result: Outputs | Exception, waiter: Waiter) -> None:
        super()._send(sender, result, waiter)
        if not isinstance(result, Exception):
            # Triton has copied them by now.
            for values in result.values():
                if isinstance(values, DeviceTensor):
                    values.buffer.close()
        elif isinstance(result, UnavailableError) and not self._failed and self._has_failed():
            self._failed = True
            report_failure(f"the GPU failed ({result})")

    def _has_failed(self) -> bool:
        # A library may have seen the GPU's error first; a call to the GPU reveals it.
        with contextlib.suppress(UnavailableError):
            self._device.stream().close()
        return self._device.failed

    def _input(self, request: Any, name: str) -> Tensor:
        """An input tensor, on this GPU or on the host."""
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor.is_cpu():
            values: Tensor = tensor.as_numpy()
            return values
        given = from_dlpack(tensor.to_dlpack())
        if given.device_index == self._index:
            return given
        # With an instance on each GPU, Triton passes tensors between them.
        copy = self._device.fetch(given.buffer, given.nbytes, given.device_index)
        return replace(given, buffer=copy, device_index=self._index, owner=None)

    def _code(self, error: Exception) -> Any:
        if isinstance(error, DeviceMemoryError):
            return pb_utils.TritonError.UNAVAILABLE
        return super()._code(error)

    def _tensor(self, name: str, values: Any) -> Any:
        if isinstance(values, DeviceTensor):
            return pb_utils.Tensor.from_dlpack(name, values)
        return super()._tensor(name, values)
