# SPDX-License-Identifier: Apache-2.0
"""The network in ONNX Runtime's CUDA execution provider, on tensors that are already on the GPU."""

import threading
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from ocdserve.backend.device.protocol import Buffer, Device, Stream
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.rewrite.fold import INPUT, OUTPUT, folded_network
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.contract import InvalidInputError, UnavailableError

PROVIDER = "CUDAExecutionProvider"
# From here on copies from host memory that were recorded still find their source when the graph is launched.
_RECORDED_FROM = (1, 31)
# See docs/decisions/0070-onnxruntime-on-cuda.md.
_FLOAT16 = {"prefer_nhwc": "1", "fuse_conv_bias": "1"}
_FLOAT32 = {"use_tf32": "0"}


class OnnxRuntimeCudaNetwork:
    """One session per stream, since a session is bound to its stream; a `DeviceNetwork`.

    Raises:
        InvalidInputError: ONNX Runtime cannot execute the bundle's network.
        UnavailableError: This ONNX Runtime has no CUDA provider, or the provider does not start.
    """

    # Name of the tensors' device in ONNX Runtime.
    _memory = "cuda"

    def __init__(self, bundle: Bundle, options: RuntimeOptions, device: Device | None = None) -> None:
        del device  # ONNX Runtime opens the GPU itself, by the index in the options
        self._name = bundle.model_path.name
        self._index = options.device
        self.map_type = options.map_type
        self._model = folded_network(bundle.model_path, bundle.spec.network, options.map_type)
        self._precision = _FLOAT16 if _has_float16_kernels(self._model) else _FLOAT32
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

    def enqueue(self, stream: Stream, pixels: Buffer, maps: Buffer, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.enqueue`."""
        session = self._session(stream)
        binding = session.io_binding()
        shape = (batch, height, width)
        binding.bind_input(INPUT, self._memory, self._index, np.uint8, [*shape, 3], pixels.pointer)
        element = np.uint8 if self.map_type == "uint8" else np.float32
        binding.bind_output(OUTPUT, self._memory, self._index, element, list(shape), maps.pointer)
        try:
            session.run_with_iobinding(binding, self._options)
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise UnavailableError(
                f"ONNX Runtime cannot execute {self._name} on {' x '.join(map(str, shape))} pixels: {error}"
            ) from error

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


def _has_float16_kernels(model: bytes) -> bool:
    """Whether a network computes convolutions in FP16."""
    graph = onnx.load_from_string(model).graph
    values = [attribute.t for node in graph.node if node.op_type == "Constant" for attribute in node.attribute]
    return any(
        len(tensor.dims) == 4 and tensor.data_type == TensorProto.FLOAT16 for tensor in [*graph.initializer, *values]
    )
