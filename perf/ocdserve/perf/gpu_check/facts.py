# SPDX-License-Identifier: Apache-2.0
"""What the machine has and how fast it can be: libraries of the later parts, and ceilings of copies and products."""

import ctypes
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ocdserve.backend.device.probe import driver_version
from ocdserve.backend.serve.preflight import find_libpython, libpython_name
from ocdserve.backend.serve.process.mps import PROGRAM
from ocdserve.perf.gpu_check.check_context import CheckContext

OTHER_LIBRARIES = Path(__file__).with_name("other_libraries.py")
_PACKAGES = (
    *("numpy", "pillow", "simplejpeg", "opencv-python-headless", "torch", "onnxruntime", "onnxruntime-gpu"),
    *("cuda-bindings", "pycuda"),
)
_PROGRAMS = ("g++", "compute-sanitizer", PROGRAM)


def check_facts(context: CheckContext) -> None:
    """Note versions and what is missing, open the GPU, and measure the ceilings."""
    findings = context.part.findings
    findings.append(f"driver {driver_version()}; Python {sys.version.split()[0]}: {', '.join(_versions())}")
    findings.append(f"ONNX Runtime: {_providers()}")
    findings.append(f"{libpython_name()}, which Triton's Python needs: {_libpython()}")
    findings += [f"{name}: {shutil.which(name) or 'not on the PATH'}" for name in _PROGRAMS]
    context.checkpoint("the device")
    with context.device() as device:
        for source in ("preprocess.cu", "labels.cu", "boxes.cu", "order.cu"):
            device.module(source)
    findings.append("all kernels were loaded")
    context.checkpoint("ceilings of copies and matrix products")
    time_other_libraries(context, "the ceilings", [])


def time_other_libraries(context: CheckContext, what: str, inputs: list[str]) -> None:
    """Run `other_libraries.py` in a process of its own, and add its measurements.

    Args:
        context: The part.
        what: Its name where it fails.
        inputs: File of its inputs; without one it measures the ceilings.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "outputs.json"
        command = [sys.executable, str(OTHER_LIBRARIES), str(outputs), str(context.effort.repeats), *inputs]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=max(5.0, context.deadline.left_s / 2), check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            context.absent(what, error)
        else:
            if ended.returncode:
                lines = [line for line in ended.stderr.splitlines() if line.strip()] or ["it wrote nothing"]
                context.absent(what, f"exit code {ended.returncode}: {lines[-1]}")
        found: dict[str, Any] = json.loads(outputs.read_text("utf-8")) if outputs.is_file() else {}
    for item in found.get("series", ()):
        context.add(item["subject"], item["group"], "µs", item["us"], facts=item["facts"])
    for absent, reason in found.get("absent", {}).items():
        context.absent(absent, reason)


def _versions() -> list[str]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found or ["no package that is asked for"]


def _providers() -> str:
    if importlib.util.find_spec("onnxruntime") is None:
        return "it is not installed"
    module: Any = importlib.import_module("onnxruntime")
    return ", ".join(module.get_available_providers())


def _libpython() -> str:
    if found := find_libpython():
        return str(found)
    try:
        ctypes.CDLL(libpython_name())
    except OSError as error:
        return f"it is missing ({error}), so the part served cannot run"
    return "the loader finds it"
