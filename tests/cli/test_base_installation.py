# SPDX-License-Identifier: Apache-2.0
"""Commands that run, or say what to install, where only the client is installed."""

import subprocess
import sys
from pathlib import Path

import pytest
from kserve_fakes import http_server

from ocdserve.builder.tao.cli import _TOOLS, ACTIONS
from ocdserve.cli.tao import OCDNET_COMMANDS

# What the extras install. A package that is blocked looks as one that is not installed.
PROGRAM = """
import sys
from importlib.machinery import PathFinder
blocked = (
    "PIL", "cv2", "cuda", "gevent", "geventhttpclient", "locust", "matplotlib", "omegaconf", "onnx",
    "onnx_graphsurgeon", "onnxruntime", "openvino", "polygraphy", "pyarrow", "pyclipper", "pycuda", "pytriton",
    "rapidocr", "shapely", "tensorrt", "tensorrt_rtx", "torch", "yaml",
)
if "shapely" in sys.argv[1]:
    blocked = tuple(name for name in blocked if name != "shapely")
find_spec = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *more: None if name.partition(".")[0] in blocked else find_spec(name, *more)
)
from ocdserve.cli import main
from ocdserve.cli.tao import main as ocdnet
words = sys.argv[2:]
sys.exit(ocdnet(words[1:]) if words[0] == "ocdnet" else main(words))
"""


def run(*words: str, installed: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, installed, *words], capture_output=True, text=True, check=False, timeout=60
    )


def test_doctor_reports_what_is_missing() -> None:
    done = run("doctor")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "--  default network" in done.stdout
    assert "--  reading" in done.stdout
    assert "pip install 'ocdserve[server]'" in done.stdout


def test_load_scenarios_are_listed() -> None:
    done = run("bench", "load", "--list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "scene        ocdnet_raw    grpc" in done.stdout


def test_help_of_ocdnet_lists_its_commands_and_the_extra() -> None:
    done = run("ocdnet", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gen_trt_engine, evaluate, inference, default_specs, train, retrain, export, prune, quantize" in done.stdout
    assert "automl, schema, resolve, import-nvocdr" in done.stdout
    assert "pip install 'ocdserve[builder]'" in done.stdout
    assert (*ACTIONS, *_TOOLS) == OCDNET_COMMANDS


@pytest.mark.parametrize(("installed", "code"), [("", 1), ("shapely", 0)])
def test_a_server_is_evaluated_with_one_small_package(installed: str, code: int, tmp_path: Path) -> None:
    for folder in ("img", "gt"):
        (tmp_path / folder).mkdir()
    (tmp_path / "img" / "a.jpg").write_bytes(b"jpeg")
    (tmp_path / "gt" / "gt_a.txt").write_text("0,0,10,0,10,10,0,10,word\n")
    with http_server() as (url, _):
        done = run("evaluate", "--data", str(tmp_path), "--url", url, installed=installed)
    assert done.returncode == code
    if installed:
        assert "precision" in done.stdout
    else:
        assert done.stderr == (
            "ocdserve evaluate: matching needs the package shapely: `pip install 'ocdserve[evaluate]'` (in a source "
            "tree: `make extra NAME=evaluate`); to detect in this process, 'ocdserve[server]'\n"
        )
