# SPDX-License-Identifier: Apache-2.0
"""Names of the runtimes and how one executes a network."""

import os
from dataclasses import dataclass
from typing import Literal, get_args

from ocdserve.backend.spec.bundle import Bundle
from ocdserve.contract import InvalidInputError

MapType = Literal["uint8", "float32"]
PixelType = Literal["uint8", "float32"]
# Fastest first.
CPU_RUNTIMES = ("openvino", "onnxruntime")
GPU_RUNTIMES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
RUNTIMES = CPU_RUNTIMES + GPU_RUNTIMES

# The Python module of each GPU runtime.
GPU_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx", "onnxruntime-cuda": "onnxruntime"}


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


def gpu_runtime(bundle: Bundle, runtime: str | None = None) -> str:
    """The GPU runtime for a bundle: as asked for, as the bundle was built for, or ONNX Runtime's CUDA provider.

    Raises:
        InvalidInputError: The runtime that was asked for is not one of a GPU.
    """
    if runtime is None:
        return bundle.spec.runtime if bundle.spec.runtime in GPU_RUNTIMES else "onnxruntime-cuda"
    if runtime not in GPU_RUNTIMES:
        raise InvalidInputError(f"on a GPU the runtime must be one of {', '.join(GPU_RUNTIMES)}; got {runtime!r}")
    return runtime
