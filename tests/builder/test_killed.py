# SPDX-License-Identifier: Apache-2.0
"""Interrupted builds: by SIGKILL while they write, and by Ctrl-C."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from ocdserve.backend import Bundle

# Prints in how many steps a whole build writes, then the exit code of a build killed at each chosen step: all steps, or
# as many as given, evenly spread from the first to the last.
KILLED_BUILDS = """
import os, signal, sys
from pathlib import Path
import onnxruntime
from ocdserve.builder import BuildConfig, DataConfig, EngineConfig, build

network, cache, root = map(Path, sys.argv[1:4])
CHANGES = {"os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}

def build_until(last, folder):
    step = 0
    def die_at_the_last_step(event, args):
        nonlocal step
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(args[0]).startswith(str(folder)):
            step += 1
            if step == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(die_at_the_last_step)
    build(BuildConfig(
        network, folder / "bundle", "dbnet", precision="int8", runtime="tensorrt-rtx", gate=False, trial=False,
        data=DataConfig(calibration_cache=cache), engine=EngineConfig(("sm_89",), 1, store=folder / "engines"),
    ))
    return step

def exit_code(last, name):
    folder = root / name
    folder.mkdir()
    child = os.fork()
    if not child:
        os._exit(build_until(last, folder))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

steps = exit_code(None, "whole")
print(steps, flush=True)
count = int(sys.argv[4]) or steps
for index in range(count):
    last = 1 + index * (steps - 1) // (count - 1)
    print(exit_code(last, f"{last:03}"), flush=True)
"""


@pytest.fixture
def network(tmp_path: Path, small_network: Callable[..., onnx.ModelProto]) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save(small_network(), str(path))
    return path


@pytest.mark.parametrize("chosen", [5, pytest.param(0, id="all", marks=pytest.mark.long)])
def test_killed_at_any_step_a_build_leaves_whole_bundles_and_engines_or_none(
    network: Path, tmp_path: Path, chosen: int
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra tensorrt-rtx)")
    cache = tmp_path / "given.cache"
    # 3c23d70a is 0.01.
    cache.write_text("TRT-8601-EntropyCalibration2\nd0: 3c23d70a\na1: 3c23d70a\nj: 3c23d70a\n")
    root = tmp_path / "builds"
    root.mkdir()
    command = [sys.executable, "-c", KILLED_BUILDS, str(network), str(cache), str(root), str(chosen)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    steps, *ends = (int(line) for line in done.stdout.split())
    # Five files of the bundle, two of the engine, their folders and renames are more steps than this.
    assert steps > 12 and ends == [-signal.SIGKILL] * (chosen or steps)
    folders = sorted(root.iterdir())
    assert [_whole_bundle(folder) for folder in folders] == [False] * len(ends) + [True]
    engines = [_whole_engines(folder / "engines") for folder in folders]
    assert engines == sorted(engines) and engines[0] == 0 and engines[-1] == 1


def _whole_bundle(folder: Path) -> bool:
    bundle = folder / "bundle"
    if not bundle.exists():
        return False
    Bundle.load(bundle)
    names = {"calibration.cache", "detector.json", "manifest.json", "model.onnx", "model.plan", "report.json"}
    assert {path.name for path in bundle.iterdir()} == names
    assert json.loads((bundle / "report.json").read_text())["engine"]["bytes"] == (bundle / "model.plan").stat().st_size
    return True


def _whole_engines(store: Path) -> int:
    entries = [path for path in store.glob("*") if not path.name.startswith(".")]
    for entry in entries:
        description = json.loads((entry / "engine.json").read_text())
        assert hashlib.sha256((entry / "engine.plan").read_bytes()).hexdigest() == description["plan_sha256"]
    return len(entries)


@pytest.mark.parametrize("moment", ["FP32 on the evaluation images", "calibration", "accuracy gate"])
def test_ctrl_c_ends_the_command_and_leaves_nothing(network: Path, pictures: Path, tmp_path: Path, moment: str) -> None:
    # A shell that starts the tests in the background makes them, and so their children, ignore the signal.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from ocdserve.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    output, scratch = tmp_path / "out" / "bundle", tmp_path / "scratch"
    scratch.mkdir()
    arguments = ["build", "--onnx", network, "--preset", "dbnet", "--output", output, "--precision", "int8"]
    arguments += ["--calibration-images", pictures, "--calibration-count", "4", "--min-agreement", "0", "--no-trial"]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        while moment not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert "Traceback" not in rest
    assert not output.exists() and not list(scratch.glob("ocdserve-*"))
    assert not output.parent.exists() or list(output.parent.iterdir()) == []
