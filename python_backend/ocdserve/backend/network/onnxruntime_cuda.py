# SPDX-License-Identifier: Apache-2.0
"""Networks in ONNX Runtime's CUDA execution provider, on tensors that are already on the GPU."""

import threading
from collections.abc import Sequence
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from ocdserve.backend.device.protocol import Buffer, Device, Stream
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.rewrite.fold import INPUT, OUTPUT, folded_network
from ocdserve.backend.network.rewrite.fold_recogniser import CLASSES, LINES, PROBABILITIES, reduced_recogniser
from ocdserve.backend.spec.bundle import Bundle, RecogniserBundle
from ocdserve.contract import InvalidInputError, UnavailableError

PROVIDER = "CUDAExecutionProvider"
# From here on copies from host memory that were recorded still find their source when the graph is launched.
_RECORDED_FROM = (1, 31)
# See docs/decisions/0070-onnxruntime-on-cuda.md.
_FLOAT16 = {"prefer_nhwc": "1", "fuse_conv_bias": "1"}
_FLOAT32 = {"use_tf32": "0"}

# Name, element, shape and memory of a tensor.
_Output: TypeAlias = tuple[str, Any, Sequence[int], Buffer]


class _OnnxRuntimeCuda:
    """One session per stream, since a session is bound to its stream.

    Args:
        name: Of the network's file, for messages.
        model: Serialised ONNX.
        index: Index of the GPU.

    Raises:
        UnavailableError: This ONNX Runtime has no CUDA provider.
    """

    # Name of the tensors' device in ONNX Runtime.
    _memory = "cuda"
    _input: str

    def __init__(self, name: str, model: bytes, index: int) -> None:
        self._name = name
        self._index = index
        self._model = model
        self._precision = _FLOAT16 if _has_float16_kernels(model) else _FLOAT32
        # By the stream itself: the handle of one that is gone may come again.
        self._sessions: WeakKeyDictionary[Stream, Any] = WeakKeyDictionary()
        self._unrecordable: str | None = None
        self._lock = threading.Lock()
        self._options = onnxruntime.RunOptions()
        # Callers synchronise the stream themselves.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._check_provider()

    def check(self, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.check`: the session itself rejects shapes that it does not take."""

    def _execute(self, stream: Stream, pixels: Buffer, shape: Sequence[int], outputs: Sequence[_Output]) -> None:
        session = self._session(stream)
        binding = session.io_binding()
        binding.bind_input(self._input, self._memory, self._index, np.uint8, [*shape, 3], pixels.pointer)
        for name, element, target_shape, target in outputs:
            binding.bind_output(name, self._memory, self._index, element, list(target_shape), target.pointer)
        try:
            session.run_with_iobinding(binding, self._options)
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise self._failed(shape, error) from error

    def _failed(self, shape: Sequence[int], error: Exception) -> UnavailableError:
        return UnavailableError(
            f"ONNX Runtime cannot execute {self._name} on {' x '.join(map(str, shape))} pixels: {error}"
        )

    def unrecordable(self) -> str:
        """See `DeviceNetwork.unrecordable`: ONNX Runtime is asked, which refuses graphs of its own where it is unsafe.

        Copies between parts on the CPU and on the GPU would be recorded with addresses that are soon used otherwise.
        """
        with self._lock:
            if self._unrecordable is None:
                self._unrecordable = self._refusal()
            return self._unrecordable

    def release(self, stream: Stream, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.release`: nothing is kept for a shape."""

    def close(self) -> None:
        """See `DeviceNetwork.close`."""
        with self._lock:
            self._sessions.clear()

    def _check_provider(self) -> None:
        available = onnxruntime.get_available_providers()
        if PROVIDER not in available:
            raise UnavailableError(
                f"this ONNX Runtime has no {PROVIDER}; it has {', '.join(available)}. Replace the package onnxruntime "
                "by onnxruntime-gpu."
            )

    def _session(self, stream: Stream) -> Any:
        with self._lock:
            if stream not in self._sessions:
                self._sessions[stream] = self._new_session(stream.handle)
            return self._sessions[stream]

    def _refusal(self) -> str:
        version = onnxruntime.__version__
        if tuple(map(int, version.split(".")[:2])) < _RECORDED_FROM:
            least = ".".join(map(str, _RECORDED_FROM))
            return f"ONNX Runtime {version} is too old for it, install onnxruntime-gpu {least} or newer"
        try:
            self._new_session(None)
        except (InvalidInputError, UnavailableError) as error:
            return str(error)
        return ""

    def _new_session(self, handle: int | None) -> Any:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        # A pattern allocates in the second run of a shape, and again in the first run after another shape.
        settings.enable_mem_pattern = False
        if hasattr(onnxruntime, "preload_dlls"):
            # Otherwise CUDA and cuDNN from wheels are not found.
            onnxruntime.preload_dlls()
        try:
            session = onnxruntime.InferenceSession(self._model, settings, providers=self._providers(handle))
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise InvalidInputError(f"ONNX Runtime cannot load {self._name}: {error}") from error
        wanted = self._providers(handle)[0][0]
        if session.get_providers()[0] != wanted:
            # ONNX Runtime has silently fallen back to the CPU, where the tensors' addresses are invalid.
            raise UnavailableError(
                f"ONNX Runtime's {wanted} does not start here; its log says which library is missing. Install CUDA and "
                "cuDNN in the versions that onnxruntime-gpu wants: pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        return session

    def _providers(self, handle: int | None) -> list[tuple[str, dict[str, str]]]:
        """Providers and their settings, in order of preference; None: for ONNX Runtime's own stream and graphs."""
        settings = {
            "device_id": str(self._index),
            # Autotuning would choose different kernels, with different last digits, from run to run.
            "cudnn_conv_algo_search": "HEURISTIC",
            **self._precision,
            **({"enable_cuda_graph": "1"} if handle is None else {"user_compute_stream": str(handle)}),
        }
        return [(PROVIDER, settings), ("CPUExecutionProvider", {})]


class OnnxRuntimeCudaNetwork(_OnnxRuntimeCuda):
    """A detector's network; a `DeviceNetwork`.

    Raises:
        InvalidInputError: ONNX Runtime cannot execute the bundle's network.
        UnavailableError: This ONNX Runtime has no CUDA provider, or the provider does not start.
    """

    _input = INPUT

    def __init__(self, bundle: Bundle, options: RuntimeOptions, device: Device | None = None) -> None:
        del device  # ONNX Runtime opens the GPU itself, by the index in the options
        self.map_type = options.map_type
        model = folded_network(bundle.model_path, bundle.spec.network, options.map_type)
        super().__init__(bundle.model_path.name, model, options.device)

    def enqueue(self, stream: Stream, pixels: Buffer, maps: Buffer, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.enqueue`."""
        element = np.uint8 if self.map_type == "uint8" else np.float32
        shape = (batch, height, width)
        self._execute(stream, pixels, shape, [(OUTPUT, element, shape, maps)])


class OnnxRuntimeCudaRecogniser(_OnnxRuntimeCuda):
    """A recogniser's network; a `DeviceRecogniser`.

    Raises:
        InvalidInputError: ONNX Runtime cannot execute the bundle's network.
        UnavailableError: This ONNX Runtime has no CUDA provider, or the provider does not start.
    """

    _input = LINES

    def __init__(self, bundle: RecogniserBundle, options: RuntimeOptions, device: Device | None = None) -> None:
        del device
        self._steps: dict[tuple[int, int], int] = {}
        model = reduced_recogniser(bundle.model_path, bundle.spec)
        super().__init__(bundle.model_path.name, model, options.device)

    def steps(self, stream: Stream, height: int, width: int) -> int:
        """See `DeviceRecogniser.steps`: the network is executed on one line."""
        if (height, width) not in self._steps:
            session, shape = self._session(stream), (1, height, width)
            lines = np.zeros((*shape, 3), np.uint8)
            try:
                (classes,) = session.run([CLASSES], {self._input: lines})
            except Exception as error:  # onnxruntime's exceptions share no public base class
                raise self._failed(shape, error) from error
            self._steps[height, width] = classes.shape[1]
        return self._steps[height, width]

    def enqueue(
        self, stream: Stream, lines: Buffer, classes: Buffer, probabilities: Buffer, batch: int, height: int, width: int
    ) -> None:
        """See `DeviceRecogniser.enqueue`."""
        shape = (batch, self.steps(stream, height, width))
        outputs: list[_Output] = [
            (CLASSES, np.int32, shape, classes),
            (PROBABILITIES, np.float32, shape, probabilities),
        ]
        self._execute(stream, lines, (batch, height, width), outputs)


def _has_float16_kernels(model: bytes) -> bool:
    """Whether a network computes convolutions in FP16."""
    graph = onnx.load_from_string(model).graph
    values = [attribute.t for node in graph.node if node.op_type == "Constant" for attribute in node.attribute]
    return any(
        len(tensor.dims) == 4 and tensor.data_type == TensorProto.FLOAT16 for tensor in [*graph.initializer, *values]
    )
