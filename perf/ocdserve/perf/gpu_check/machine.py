# SPDX-License-Identifier: Apache-2.0
"""The GPU of a measurement: model, driver, clocks."""

import csv
import ctypes
import io
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone

from ocdserve.backend.device.probe import present_gpu
from ocdserve.perf.series.environment import package_versions

_PACKAGES = (
    "cuda-bindings",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cuda-runtime-cu12",
    "nvidia-nvimgcodec-cu12",
    "onnx",
    "onnxruntime-gpu",
    "pycuda",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
)
_FIELDS = (
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "ecc.mode.current",
    "utilization.gpu",
)


@dataclass(frozen=True)
class Gpu:
    """The GPU, and its state at a point in time.

    Attributes:
        model: Its name.
        architecture: For example `sm_90`.
        cuda: Version of CUDA that the driver knows.
        time: Of the reading, UTC.
        state: What nvidia-smi says, by the name of its field; empty where it is missing.
        versions: Packages that matter for the GPU.
    """

    model: str
    architecture: str
    cuda: str
    time: str
    state: dict[str, str]
    versions: dict[str, str]

    @classmethod
    def current(cls, index: int = 0) -> "Gpu":
        """The GPU, now.

        Raises:
            UnavailableError: There is none, or no driver.
        """
        architecture, model = present_gpu(index)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(model, architecture, _cuda_version(), now, read_state(index), package_versions(_PACKAGES))


def read_state(index: int = 0) -> dict[str, str]:
    """What nvidia-smi says of the GPU's clocks, power and temperature; empty where it does not work."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader", f"--id={index}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    row = next(csv.reader(io.StringIO(answer), skipinitialspace=True), [])
    return dict(zip(_FIELDS, row, strict=False))


def _cuda_version() -> str:
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return "unknown"
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
