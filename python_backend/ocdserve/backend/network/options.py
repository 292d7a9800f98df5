# SPDX-License-Identifier: Apache-2.0
"""The table of runtimes, and how one executes a network."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from ocdserve.backend.cores import core_count
from ocdserve.backend.spec.bundle import AnyBundle
from ocdserve.contract import InvalidInputError, not_one_of

MapType = Literal["uint8", "float32"]
PixelType = Literal["uint8", "float32"]
# The engines of the table, for type checkers.
EngineRuntime = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Runtime:
    """Something that executes networks.

    Attributes:
        name: In options and in `detector.json`.
        title: In messages.
        module: Python module that it needs.
        distributions: Packages that provide the module, the usual one first.
        requirement: See `install_command`.
        network: Where its network is made, `module:callable` in this package, called with the bundle and the options;
            on a GPU also with the device.
        recogniser: The same of a recogniser's network.
        on_gpu: Whether it needs a GPU; what it makes is then a `DeviceNetwork` or `DeviceRecogniser`, else a `Network`
            or `RecogniserNetwork`.
        takes_engine: Whether it executes the bundle's engine instead of its ONNX.
    """

    name: str
    title: str
    module: str
    distributions: tuple[str, ...]
    requirement: str
    network: str
    recogniser: str
    on_gpu: bool = False
    takes_engine: bool = False


# Those of the CPU come fastest first.
RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            "openvino",
            "OpenVINO",
            "openvino",
            ("openvino",),
            "ocdserve[server]",
            "openvino:OpenVinoNetwork",
            "openvino:OpenVinoRecogniser",
        ),
        Runtime(
            "onnxruntime",
            "ONNX Runtime",
            "onnxruntime",
            ("onnxruntime", "onnxruntime-gpu"),
            "ocdserve[server]",
            "onnxruntime:OnnxRuntimeNetwork",
            "onnxruntime:OnnxRuntimeRecogniser",
        ),
        Runtime(
            "tensorrt",
            "TensorRT",
            "tensorrt",
            ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
            "ocdserve[gpu]",
            "tensorrt:load_engine",
            "tensorrt_recogniser:load_recogniser_engine",
            on_gpu=True,
            takes_engine=True,
        ),
        Runtime(
            "tensorrt-rtx",
            "TensorRT-RTX",
            "tensorrt_rtx",
            ("tensorrt-rtx-cu13",),
            "ocdserve[tensorrt-rtx]",
            "tensorrt:load_engine",
            "tensorrt_recogniser:load_recogniser_engine",
            on_gpu=True,
            takes_engine=True,
        ),
        Runtime(
            "onnxruntime-cuda",
            "ONNX Runtime for CUDA",
            "onnxruntime",
            ("onnxruntime-gpu",),
            "onnxruntime-gpu[cuda,cudnn]",
            "onnxruntime_cuda:OnnxRuntimeCudaNetwork",
            "onnxruntime_cuda:OnnxRuntimeCudaRecogniser",
            on_gpu=True,
        ),
    )
}
CPU_RUNTIMES = tuple(runtime.name for runtime in RUNTIMES.values() if not runtime.on_gpu)
GPU_RUNTIMES = tuple(runtime.name for runtime in RUNTIMES.values() if runtime.on_gpu)
ENGINE_RUNTIMES = tuple(runtime.name for runtime in RUNTIMES.values() if runtime.takes_engine)
# What networks are built for; ONNX Runtime for CUDA executes those for ONNX Runtime.
BUILD_RUNTIMES = CPU_RUNTIMES + ENGINE_RUNTIMES
# Executes any bundle on a GPU.
ANY_BUNDLE_ON_GPU = "onnxruntime-cuda"


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime executes.

    Attributes:
        runtime: None takes the one that the bundle was built for, else the fastest installed one of the CPU: OpenVINO
            (measured 3.2 times as fast as ONNX Runtime on the default network), else ONNX Runtime.
        threads: Cores for one network; None: all that this process may use.
        streams: Images in the network at the same time; the threads are divided among them. One stream
            has the lowest latency, as many as threads the highest throughput (OpenVINO; ONNX Runtime
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
        if self.runtime is not None and self.runtime not in tuple(RUNTIMES):  # a tuning file may hold anything
            raise not_one_of("runtime", self.runtime, RUNTIMES)
        if self.threads is not None and self.threads < 1:
            raise InvalidInputError(f"threads must be at least 1; got {self.threads}")
        if not 1 <= self.streams <= self.thread_count:
            raise InvalidInputError(f"streams must be from 1 to the {self.thread_count} threads; got {self.streams}")
        for name, types in (("map_type", get_args(MapType)), ("pixel_type", get_args(PixelType))):
            if getattr(self, name) not in types:
                raise not_one_of(name, getattr(self, name), types)
        if self.device < 0:
            raise InvalidInputError(f"device must be the index of a GPU, counted from 0; got {self.device}")

    @property
    def thread_count(self) -> int:
        """Number of threads: as given, or the cores that this process may use."""
        return self.threads or core_count()


def gpu_runtime(bundle: AnyBundle[Any], runtime: str | None = None) -> str:
    """The GPU runtime for a bundle: the given one, else the one it was built for, else ONNX Runtime for CUDA.

    Raises:
        InvalidInputError: The given runtime does not use a GPU.
    """
    if runtime is None:
        return bundle.spec.runtime if bundle.spec.runtime in GPU_RUNTIMES else ANY_BUNDLE_ON_GPU
    if runtime not in GPU_RUNTIMES:
        raise not_one_of("on a GPU the runtime", runtime, GPU_RUNTIMES)
    return runtime
