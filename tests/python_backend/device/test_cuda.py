# SPDX-License-Identifier: Apache-2.0
"""The runtime on a simulated driver, by the real pycuda and cuda.bindings, in processes of their own.

In this process the driver would be there for all tests, and a failure of the GPU would last.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ocdserve.backend.device.driver import load
from ocdserve.backend.kernels.gpu import nvrtc
from ocdserve.contract import UnavailableError

CASES = Path(__file__).with_name("simulated")
SIMULATION = Path(__file__).resolve().parents[2] / "fakes" / "libcuda"

_HEAD = """
import threading, time
import numpy as np
from ocdserve.backend.device.cuda import open_device
device = open_device()
stream = device.stream()
buffer = device.allocate(100)
array = device.host_array(100, np.uint8)
stream.fill(buffer, 7, 100)
stream.to_host(array, buffer)
"""


@pytest.fixture(scope="module")
def simulated_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 that computes on the host."""
    missing = [name for name in ("pycuda", "cuda.bindings") if not _is_installed(name)]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: run make venv-dev and scripts/install_pycuda.sh")
    if shutil.which("g++") is None:
        pytest.skip("no g++, which compiles the simulated driver")
    folder = tmp_path_factory.mktemp("libcuda")
    built = subprocess.run(
        [str(SIMULATION / "build.sh"), sys.executable, str(folder)], capture_output=True, text=True, check=False
    )
    assert (built.returncode, built.stderr) == (0, "")
    return folder


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _run(driver: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(driver),
            "OCDSERVE_KERNEL_CACHE": str(driver / "kernels"),
            "PYTHONPATH": str(CASES),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_every_case_passes_on_the_simulated_driver(simulated_driver: Path) -> None:
    files = sorted(map(str, CASES.glob("*_cases.py")))
    assert len(files) == 2

    result = _run(simulated_driver, "-m", "pytest", "-p", "simulation", "-p", "no:cacheprovider", *files)

    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"(\d+) passed in", result.stdout)
    assert passed and int(passed[1]) >= 40, result.stdout
    assert "PyCUDA" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    "program",
    [
        "stream.synchronize(); print(array[0])",
        "with stream.capture() as capture: stream.fill(buffer, 1, 100)\ncapture.graph.launch(stream); print(7)",
        "device.close(); print(array[0])",
        "del stream, buffer, array, device; print(7)",
        "threading.Thread(target=lambda: (time.sleep(0.3), stream.synchronize(), print(array[0]))).start()",
        # A daemon thread is inside a call, or between two, when the interpreter ends.
        "def forever():\n try:\n  while True: stream.synchronize()\n except Exception: pass\n"
        "threading.Thread(target=forever, daemon=True).start(); time.sleep(0.1); print(array[0])",
        "import gc; gc.disable(); array = [array]; array.append(array); stream.self = stream; print(7)",
    ],
    ids=["nothing closed", "graph", "closed", "dropped", "thread", "daemon", "cycles"],
)
def test_the_interpreter_ends_cleanly(simulated_driver: Path, program: str) -> None:
    result = _run(simulated_driver, "-c", _HEAD + program)

    assert (result.returncode, result.stdout, result.stderr) == (0, "7\n", "")


def test_a_process_whose_gpu_failed_ends_cleanly(simulated_driver: Path) -> None:
    program = (
        "import ctypes; ctypes.CDLL('libcuda.so.1').fake_inject(b'cuStreamSynchronize', 700, 0)\n"
        "try: stream.synchronize()\n"
        "except Exception as error: print(type(error).__name__, device.failed)\n"
    )

    result = _run(simulated_driver, "-c", _HEAD + program)

    assert (result.returncode, result.stdout, result.stderr) == (0, "DeviceError True\n", "")


def test_the_doctor_describes_gpu_and_driver(simulated_driver: Path) -> None:
    result = _run(simulated_driver, "-m", "ocdserve.cli", "doctor", "--json")

    findings = json.loads(result.stdout)
    assert findings["GPU"]["ok"], result.stdout
    assert findings["GPU"]["found"] == "2 x Simulated GPU 0, compute capability 9.0"
    assert findings["GPU driver"]["found"].endswith("CUDA 12.9")
    assert re.fullmatch(r"NVRTC 12\.\d+\.\d+, for sm_75 to sm_\d+", findings["kernel compiler"]["found"])
    assert findings["pycuda"]["ok"] and findings["cuda.bindings"]["ok"]


def test_a_release_runs_without_the_compiler(simulated_driver: Path, tmp_path: Path) -> None:
    (tmp_path / "test.cu").write_text('extern "C" __global__ void add(int* value) { ++*value; }\n', encoding="utf-8")
    program = (
        "import sys; from pathlib import Path\n"
        "from ocdserve.backend.kernels.gpu import compile, nvrtc\n"
        "compile.FOLDER = Path(sys.argv[1]); compile.SHIPPED = compile.FOLDER / 'cubins'\n"
        "compile.compile_release(compile.SHIPPED, ['sm_90'])\n"
        "nvrtc.load = None\n"
        "from ocdserve.backend import doctor\n"
        "from ocdserve.backend.device.cuda import open_device\n"
        "device = open_device(); print(device.module('test.cu').kernel('add').name)\n"
        "print(*(finding.found for finding in doctor.examine() if finding.name == 'kernel compiler'))\n"
    )

    result = _run(simulated_driver, "-c", program, str(tmp_path))

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "add\nnot needed: there are cubins for sm_90; this GPU runs sm_90\n"


def test_without_gpu_and_packages_the_error_says_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_compiler() -> None:
        raise UnavailableError("nvidia-cuda-nvrtc-cu12 is not installed. Install what compiles the kernels.")

    monkeypatch.setattr(
        "ocdserve.backend.device.probe.missing",
        lambda: ["this machine has no NVIDIA driver", "the module pycuda is not installed"],
    )
    monkeypatch.setattr(nvrtc, "load", no_compiler)
    monkeypatch.setattr("ocdserve.backend.kernels.gpu.compile.SHIPPED", Path("nowhere"))

    with pytest.raises(UnavailableError) as info:
        load()

    assert str(info.value) == (
        "the GPU path cannot run: this machine has no NVIDIA driver; the module pycuda is not installed; "
        "nvidia-cuda-nvrtc-cu12 is not installed. Install the packages, for which pycuda needs a C++ compiler and "
        "CUDA's headers: `pip install 'ocdserve[gpu]'` (in a source tree: `make extra NAME=gpu`). A GPU path needs an "
        "NVIDIA GPU and its driver: 580 or newer, or 525 for CUDA 12; the CPU path is complete."
    )
