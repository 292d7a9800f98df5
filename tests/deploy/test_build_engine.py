# SPDX-License-Identifier: Apache-2.0
"""charts/ocdserve/files/build_engine.sh: an engine is built once for all that it depends on."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.prometheus import FILES

# In place of the real module, which asks a driver and TensorRT.
TARGETS = """
import importlib.metadata, os, sys, types
importlib.metadata.version = lambda name: os.environ["VERSION"]
for name in ("ocdserve", "ocdserve.builder", "ocdserve.builder.engine", "ocdserve.builder.engine.targets"):
    sys.modules[name] = module = types.ModuleType(name)
module.present_gpu = lambda: (os.environ["ARCHITECTURE"], "NVIDIA L4")
module.runtime_version = lambda runtime: {"tensorrt": os.environ["TENSORRT"]}[runtime]
"""
BUILD = """#!/bin/bash
echo "$@" >>builds
while [[ $1 != --output ]]; do shift; done
mkdir -p "$2" && touch "$2/detector.json"
"""


@pytest.fixture
def build_engine(tmp_path: Path) -> Callable[..., Path]:
    """A function that runs files/build_engine.sh on another machine, and returns what the server is given."""
    script = (FILES / "build_engine.sh").read_text("utf-8")
    for name in ("engines", "built"):
        (tmp_path / name).mkdir()
        script = script.replace(f"/{name}", str(tmp_path / name))
    (tmp_path / "sitecustomize.py").write_text(TARGETS)
    programs = {"ocdserve": BUILD, "python": f'#!/bin/bash\nexec {sys.executable} "$@"\n'}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(*options: str, architecture: str = "sm_89", tensorrt: str = "10.13.3", ocdserve: str = "0.2.0") -> Path:
        more = {"ARCHITECTURE": architecture, "TENSORRT": tensorrt, "VERSION": ocdserve, "PYTHONPATH": str(tmp_path)}
        environment = {**os.environ, **more, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        command = ["bash", "-euc", script, "build_engine", *options]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
        return (tmp_path / "built" / "bundle").resolve()

    return run


def test_an_engine_is_built_once_for_an_architecture_a_tensorrt_and_options(
    build_engine: Callable[..., Path], tmp_path: Path
) -> None:
    from ocdserve.builder.engine import targets

    assert callable(targets.present_gpu) and callable(targets.runtime_version)
    first = build_engine("--onnx", "default")
    assert re.fullmatch(r"sm_89-trt10\.13\.3-[0-9a-f]{12}", first.name) and (first / "detector.json").is_file()
    assert build_engine("--onnx", "default") == first
    others = [
        build_engine("--onnx", "default", "--precision", "fp16"),
        build_engine("--onnx", "default", architecture="sm_90"),
        build_engine("--onnx", "default", tensorrt="10.14.1"),
        build_engine("--onnx", "default", ocdserve="0.3.0"),
    ]
    network = tmp_path / "ocdnet.onnx"
    for content in (b"one", b"another"):
        network.write_bytes(content)
        others.append(build_engine("--onnx", str(network)))
    assert len({first, *others}) == 7
    assert build_engine("--onnx", "default") == first
    assert len((tmp_path / "builds").read_text().splitlines()) == 7
