# SPDX-License-Identifier: Apache-2.0
"""Runtimes that execute the network, behind one protocol."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

from numpy.typing import NDArray

from ocdserve.backend.bundle import Bundle
from ocdserve.backend.cuda.presence import missing
from ocdserve.contract import InvalidInputError, UnavailableError

__all__ = [
    "CPU_RUNTIMES",
    "GPU_RUNTIMES",
    "RUNTIMES",
    "Network",
    "RuntimeOptions",
    "check_executable",
    "check_gpu",
    "load_network",
]

MapType = Literal["uint8", "float32"]
PixelType = Literal["uint8", "float32"]
# Fastest first.
CPU_RUNTIMES = ("openvino", "onnxruntime")
GPU_RUNTIMES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
RUNTIMES = CPU_RUNTIMES + GPU_RUNTIMES

# The Python module of each GPU runtime.
_GPU_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx", "onnxruntime-cuda": "onnxruntime"}


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime executes.

    Attributes:
        runtime: None takes the one that the bundle was built for, and for a bundle that does not say the fastest
            of the CPU's that is installed: OpenVINO (measured 3.2 times as fast as ONNX Runtime on the default
            network), else ONNX Runtime.
        threads: Cores for one network; None: all that this process may use.
        streams: Images in the network at the same time; the threads are shared out among them. One stream
            gives the lowest latency, as many as threads the highest throughput (OpenVINO; ONNX Runtime
            runs one image after the other).
        map_type: uint8 as served, or float32.
        pixel_type: uint8 as served, or float32, 0 to 255 with fractions (runtimes of the CPU).
        device: Index of the GPU, for the runtimes that use one.

    Raises:
        InvalidInputError: A field is out of its range; the message names it.
    """

    runtime: str | None = None
    threads: int | None = None
    streams: int = 1
    map_type: MapType = "uint8"
    pixel_type: PixelType = "uint8"
    device: int = 0

    def __post_init__(self) -> None:
        if self.runtime is not None and self.runtime not in RUNTIMES:
            raise InvalidInputError(f"runtime must be one of {', '.join(RUNTIMES)}; got {self.runtime!r}")
        if self.threads is not None and self.threads < 1:
            raise InvalidInputError(f"threads must be at least 1; got {self.threads}")
        if not 1 <= self.streams <= self.thread_count:
            raise InvalidInputError(f"streams must be from 1 to the {self.thread_count} threads; got {self.streams}")
        for name, types in (("map_type", get_args(MapType)), ("pixel_type", get_args(PixelType))):
            if getattr(self, name) not in types:
                raise InvalidInputError(f"{name} must be one of {', '.join(types)}; got {getattr(self, name)!r}")
        if self.device < 0:
            raise InvalidInputError(f"device must be the index of a GPU, counted from 0; got {self.device}")

    @property
    def thread_count(self) -> int:
        """Threads in numbers: as given, or the cores that this process may use."""
        return self.threads or len(os.sched_getaffinity(0))


class Network(Protocol):
    """A compiled network."""

    def infer(self, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Probability maps of images.

        Every image is computed on its own, so that an answer does not depend on its neighbours.

        Args:
            images: uint8 (h, w, 3) RGB each, of the sizes that the resize policy gives; sizes may differ. Float32
                where `RuntimeOptions.pixel_type` says so.

        Returns:
            One map (h, w) an image: uint8, 255 times the probability, or float32 (`RuntimeOptions.map_type`).
        """
        ...


def load_network(bundle: Bundle, options: RuntimeOptions | None = None) -> Network:
    """Compile a bundle's network.

    A bundle of fixed network size is compiled for that one shape, others once for all shapes. In-process and
    served use come through here, so that they compile in the same mode: results of the two modes differ in
    their last digits.

    Raises:
        InvalidInputError: The bundle's network is not one that the runtime can execute.
        UnavailableError: The runtime is not installed, or the bundle was built for an engine.
    """
    options = options or RuntimeOptions()
    runtime = options.runtime or bundle.spec.runtime or next((name for name in CPU_RUNTIMES if _installed(name)), None)
    if runtime in GPU_RUNTIMES:
        return _load_gpu_network(bundle, replace(options, runtime=runtime))
    if runtime is not None and runtime not in CPU_RUNTIMES:
        raise UnavailableError(
            f"the bundle {bundle.spec.name} was built for the runtime {runtime}, which this version does not know. "
            f"Name the one to execute its ONNX: {', '.join(RUNTIMES)}."
        )
    if runtime is None or not _installed(runtime):
        raise UnavailableError(
            f"the runtime {runtime or ' or '.join(CPU_RUNTIMES)} is not installed. "
            "Run `pip install 'ocdserve[server]'`."
        )
    if runtime == "openvino":
        from ocdserve.backend.network.openvino import OpenVinoNetwork

        return OpenVinoNetwork(bundle, options)
    from ocdserve.backend.network.onnxruntime import OnnxRuntimeNetwork

    return OnnxRuntimeNetwork(bundle, options)


def check_executable(bundle: Bundle, runtime: str | None = None) -> None:
    """Raise UnavailableError where a bundle was built for a GPU and no runtime is named to take its place."""
    if runtime is None and bundle.spec.runtime in GPU_RUNTIMES:
        raise UnavailableError(
            f"the bundle {bundle.spec.name} was built for {bundle.spec.runtime}, which needs a GPU: say --gpu where "
            "there is one. To execute its ONNX on the CPU instead, name the runtime: "
            f"--runtime {' or --runtime '.join(CPU_RUNTIMES)}."
        )


def check_gpu(bundle: Bundle, runtime: str, device: int = 0) -> None:
    """Raise UnavailableError, with all that is missing, unless a GPU runtime can be used on this machine."""
    lacks = missing(device, [_GPU_MODULES[runtime]])
    if lacks:
        raise UnavailableError(
            f"the runtime {runtime} of the detector {bundle.spec.name} needs a GPU, but {'; '.join(lacks)}. See "
            f"`ocdserve doctor`. To execute the network on the CPU, name its runtime: {' or '.join(CPU_RUNTIMES)}."
        )


def _load_gpu_network(bundle: Bundle, options: RuntimeOptions) -> Network:
    if options.pixel_type != "uint8":
        raise InvalidInputError(f"networks on a GPU take uint8 pixels; got a request for {options.pixel_type}")
    from ocdserve.backend.cuda.host_network import HostNetwork
    from ocdserve.backend.cuda.opening import open_gpu_with_network

    return HostNetwork(*open_gpu_with_network(bundle, options), options.streams)


def _installed(runtime: str) -> bool:
    return importlib.util.find_spec(runtime) is not None
