# SPDX-License-Identifier: Apache-2.0
"""Builds that die: by SIGKILL at every step at which they write, and by Ctrl-C."""

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

# Prints what happened to the build that was killed at each step: the number of the signal, 0 for one that was finished.
KILLED_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
import onnxruntime
from ocdserve.builder import BuildConfig, DataConfig, EngineConfig, build

network, cache, root = map(Path, sys.argv[1:])
CHANGES = {"os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}

def build_until(step):
    folder = root / f"{step:03}"
    folder.mkdir()
    left = step
    def die_at_the_step(event, args):
        nonlocal left
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(args[0]).startswith(str(folder)):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(die_at_the_step)
    build(BuildConfig(
        network, folder / "bundle", "dbnet", precision="int8", runtime="tensorrt-rtx", gate=False,
        data=DataConfig(calibration_cache=cache), engine=EngineConfig(("sm_89",), 1, store=folder / "engines"),
    ))
    os._exit(0)

step, died = 0, True
while died:
    step += 1
    child = os.fork()
    if not child:
        build_until(step)
    status = os.waitpid(child, 0)[1]
    died = os.WIFSIGNALED(status)
    print(os.WTERMSIG(status) if died else os.WEXITSTATUS(status), flush=True)
"""


@pytest.fixture
def network(tmp_path: Path, small_network: Callable[..., onnx.ModelProto]) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save(small_network(), str(path))
    return path


def test_killed_at_any_step_a_build_leaves_whole_bundles_and_engines_or_none(network: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra tensorrt-rtx)")
    cache = tmp_path / "given.cache"
    # 3c23d70a is 0.01.
    cache.write_text("TRT-8601-EntropyCalibration2\nd0: 3c23d70a\na1: 3c23d70a\nj: 3c23d70a\n")
    root = tmp_path / "builds"
    root.mkdir()
    command = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(network), str(cache), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    ends = [int(line) for line in done.stdout.split()]
    # Five files of the bundle, two of the engine, their folders and renames are more steps than this.
    assert len(ends) > 12 and ends == [signal.SIGKILL] * (len(ends) - 1) + [0]
    bundles = [_whole_bundle(folder) for folder in sorted(root.iterdir())]
    assert bundles == [False] * (len(ends) - 1) + [True]
    engines = [_whole_engines(folder / "engines") for folder in sorted(root.iterdir())]
    assert engines == sorted(engines) and engines[0] == 0 and engines[-1] == 1


def _whole_bundle(folder: Path) -> bool:
    bundle = folder / "bundle"
    if not bundle.exists():
        return False
    Bundle.load(bundle)
    names = {"calibration.cache", "detector.json", "model.onnx", "model.plan", "report.json"}
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
    # A shell that started the tests in the background has told them, and so their children, to ignore the signal.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from ocdserve.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    output, scratch = tmp_path / "out" / "bundle", tmp_path / "scratch"
    scratch.mkdir()
    arguments = ["build", "--onnx", network, "--preset", "dbnet", "--output", output, "--precision", "int8"]
    arguments += ["--calibration-images", pictures, "--calibration-count", "4", "--min-agreement", "0"]
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
