# SPDX-License-Identifier: Apache-2.0
"""Detectors loaded before a fork: in the child they work, or refuse at once, and the child can end."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ocdserve.backend import Bundle, DetectorSpec, NetworkSpec

# Children of `os.fork` end as gunicorn's workers do, by SystemExit: through all exit handlers.
PROGRAM = """
import multiprocessing, os, sys, warnings
from concurrent.futures import ProcessPoolExecutor
import numpy as np
from ocdserve.backend import Detector

warnings.simplefilter("ignore", DeprecationWarning)
image = np.zeros((64, 64, 3), np.uint8)
image[20:40, 10:50] = 255
context = multiprocessing.get_context("fork")
parent = os.getpid()


def work():
    assert os.getpid() != parent
    try:
        return f"found {len(detector.detect(image))}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


# First these: the exit handlers of such a child join the processes of multiprocessing that its parent still knows of.
detectors = {}
for runtime in ("onnxruntime", "openvino"):
    detectors[runtime] = detector = Detector.load(sys.argv[1], runtime, threads=2)
    detector.detect(image)
    child = os.fork()
    if not child:
        print(runtime, "fork", work(), flush=True)
        sys.exit(7)
    status = os.waitpid(child, 0)[1]
    assert os.WEXITSTATUS(status) == 7, status
for runtime, detector in detectors.items():
    process = context.Process(target=lambda: print(runtime, "process", work(), flush=True))
    process.start()
    process.join()
    assert process.exitcode == 0
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        print(runtime, "pool", pool.submit(work).result(), flush=True)
    print(runtime, "parent", f"found {len(detector.detect(image))}", flush=True)
"""


@pytest.fixture
def folder(tiny_network: Callable[..., Path], tmp_path: Path) -> Path:
    spec = DetectorSpec(network=NetworkSpec(mean=(0, 0, 0), std=(255, 255, 255)))
    Bundle(spec, tiny_network()).save(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_detector_works_in_a_forked_child_or_refuses(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    refused = r"UnavailableError: this network was loaded in process \d+ and is used in its child \d+: .*Load a "
    said = [
        "onnxruntime fork found 1",
        f"openvino fork {refused}",
        *(f"onnxruntime {way} found 1" for way in ("process", "pool", "parent")),
        *(f"openvino {way} {refused}" for way in ("process", "pool")),
        "openvino parent found 1",
    ]
    for line, pattern in zip(done.stdout.splitlines(), said, strict=True):
        assert re.match(pattern, line)
