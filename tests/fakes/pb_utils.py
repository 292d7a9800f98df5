# SPDX-License-Identifier: Apache-2.0
"""A stand-in for `triton_python_backend_utils`, which exists only inside of Triton's Python backend.

Holds what `ocdserve.backend.triton` uses, and refuses what the original refuses.
"""

import enum
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


class Tensor:
    """A named array, BYTES tensors are arrays of objects; or a tensor on a GPU."""

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"a tensor is made of a numpy array; got {type(array).__name__}")
        self._name = name
        self._array = array
        self._on_gpu: Any = None

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> "Tensor":
        """A tensor from an object with `__dlpack__`, here one on a GPU."""
        if tensor.__dlpack_device__()[0] != 2:
            raise TypeError("this stand-in takes tensors on a GPU only")
        result = Tensor(name, np.empty(0))
        result._on_gpu = tensor
        return result

    def is_cpu(self) -> bool:
        """Whether the tensor lies on the host."""
        return self._on_gpu is None

    def to_dlpack(self) -> Any:
        """A capsule."""
        if self._on_gpu is None:
            raise TypeError("this stand-in gives capsules of tensors on a GPU only")
        return self._on_gpu.__dlpack__()

    def name(self) -> str:
        """Name on the wire."""
        return self._name

    def shape(self) -> list[int]:
        """The dimensions, the batch first."""
        return list(self._array.shape if self._on_gpu is None else self._on_gpu.shape)

    def as_numpy(self) -> NDArray[Any]:
        """The array."""
        if self._on_gpu is not None:
            raise RuntimeError("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self._array


class ErrorCode(enum.Enum):
    """No numbers: the original rejects them."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)


class TritonError:
    """An error of one request."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = ErrorCode

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        if not isinstance(code, ErrorCode):
            raise TypeError(f"incompatible constructor arguments: {code!r}")
        self._message = message
        self._code = code

    def message(self) -> str:
        """What the client reads."""
        return self._message

    def code(self) -> ErrorCode:
        """One of the class's constants."""
        return self._code


TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class ResponseSender:
    """Takes the one response of a request."""

    def __init__(self) -> None:
        self.response: InferenceResponse | None = None
        self.answered = threading.Event()

    def send(self, response: "InferenceResponse", flags: int = 0) -> None:
        """Answer the request; a model that is not decoupled does it once, with the final flag."""
        if self.response is not None or flags != TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            raise ValueError("exactly one response, the final one")
        self.response = response
        self.answered.set()


class InferenceRequest:
    """One request as a model sees it; without `outputs` it asks for all of the model's."""

    def __init__(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        parameters: Mapping[str, Any] | None = None,
        timeout_us: int = 0,
    ) -> None:
        self._inputs = [
            Tensor(name, array) if isinstance(array, np.ndarray) else Tensor.from_dlpack(name, array)
            for name, array in inputs.items()
        ]
        self._outputs = list(outputs)
        self._parameters = json.dumps(parameters) if parameters is not None else ""
        self._timeout_us = timeout_us
        self.cancelled = False
        self.id = ""
        self._sender = ResponseSender()

    def get_response_sender(self) -> ResponseSender:
        """Where the answer goes."""
        return self._sender

    def request_id(self) -> str:
        """What the client calls it."""
        return self.id

    def timeout(self) -> int:
        """Microseconds that the client waits; 0 without a limit."""
        return self._timeout_us

    def is_cancelled(self) -> bool:
        """Whether the client has cancelled the request."""
        return self.cancelled

    def inputs(self) -> list[Tensor]:
        """Tensors that the client gave."""
        return self._inputs

    def requested_output_names(self) -> list[str]:
        """Outputs that the client wants."""
        return self._outputs

    def parameters(self) -> str:
        """JSON text; empty without parameters."""
        return self._parameters


class InferenceResponse:
    """Tensors, or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        if error is not None and output_tensors:
            raise ValueError("a response has tensors or an error")
        self._tensors = list(output_tensors)
        self._error = error

    def output_tensors(self) -> list[Tensor]:
        """The tensors."""
        return self._tensors

    def error(self) -> TritonError | None:
        """The error, if it is one."""
        return self._error


class _Metric:
    def __init__(self, labels: Mapping[str, str], buckets: Sequence[float] | None) -> None:
        if buckets is not None and list(buckets) != sorted(buckets):
            raise ValueError("buckets must rise")
        self.labels = dict(labels)
        self.observed: list[float] = []
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Add one value to a histogram."""
        self.observed.append(value)

    def increment(self, value: float) -> None:
        """Add to a counter."""
        if value < 0:
            raise ValueError("a counter never falls")
        self.total += value

    def set(self, value: float) -> None:
        """Set a gauge."""
        self.total = value

    def value(self) -> float:
        """Of a counter or a gauge."""
        return self.total


class MetricFamily:
    """Metrics of one name; `families` holds all that were made."""

    COUNTER, GAUGE, HISTOGRAM = range(3)
    families: ClassVar[list["MetricFamily"]] = []

    def __init__(self, name: str, description: str, kind: int) -> None:
        self.name = name
        self.description = description
        self.kind = kind
        self.metrics: list[_Metric] = []
        MetricFamily.families.append(self)

    def Metric(self, labels: Mapping[str, str], buckets: Sequence[float] | None = None) -> _Metric:  # noqa: N802
        """A metric of this family."""
        if (self.kind == MetricFamily.HISTOGRAM) != (buckets is not None):
            raise ValueError("histograms, and only they, have buckets")
        # Of the same name and labels there is one, even for several processes.
        made = (one for family in MetricFamily.families if family.name == self.name for one in family.metrics)
        metric = next((one for one in made if one.labels == labels), None) or _Metric(labels, buckets)
        self.metrics.append(metric)
        return metric


class Logger:
    """The server's log; `lines` holds what was written."""

    lines: ClassVar[list[str]] = []

    @staticmethod
    def log_error(message: str) -> None:
        """Write a line."""
        Logger.lines.append(message)

    log_warn = log_error


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    """The input of that name, None where the client left it out."""
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)
