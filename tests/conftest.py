# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests, and the settings of Hypothesis."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, require_compiler
from hypothesis import settings

from ocdserve.contract import UnavailableError
from tests.deploy.prometheus import find_tool

if TYPE_CHECKING:
    from ocdserve.backend import Reader

REPOSITORY = Path(__file__).resolve().parents[1]

# Shared machines are too uneven for a deadline; the default run draws the same examples every time, `explore`
# (make test-long) new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("repeatable")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded as their property `printed`: the workers of pytest-xdist cannot print."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    texts = [text for report in reports for name, text in report.user_properties if name == "printed"]
    if texts:
        terminalreporter.section("figures")
        terminalreporter.write("\n".join(texts) + "\n")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs with ground truth, next to the repository on machines that have it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real photographs: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def reader() -> "Reader":
    """The default detector and recogniser in the default runtime, on one thread."""
    from ocdserve.backend import Reader

    return Reader.load(threads=1)


DECODING = """
import io, re, sys
from PIL import Image
from ocdserve.backend.stages.image import decode

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

def encoded(width):
    stream = io.BytesIO()
    Image.new("RGB", (width, 4000), (90, 30, 200)).save(stream, FORM, **OPTIONS)
    return stream.getvalue()

small, large = encoded(100), encoded(5000)
decode(small)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
decode(large)
print((status("VmHWM") - before) / 20_000_000)
"""


@pytest.fixture
def bytes_per_pixel() -> Callable[..., float]:
    """Most memory that a process takes to decode an image of 20 megapixels, by form and options of Pillow."""

    def measured(form: str, **options: object) -> float:
        script = f"FORM, OPTIONS = {form!r}, {options!r}\n{DECODING}"
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return float(ran.stdout)

    return measured


@pytest.fixture(scope="session")
def tool() -> Callable[[str], Path]:
    """A function that finds a program that checks docker/ or charts/, and skips the test where it is not installed."""

    def find(name: str) -> Path:
        found = find_tool(name)
        if found is None:
            pytest.skip(f"{name} is not installed; scripts/install_deploy_tools.sh does it")
        return found

    return find


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with the same seed in every run."""
    return np.random.default_rng(20260101)


@pytest.fixture(scope="session")
def cuda_compiler() -> None:
    """Skip tests that run CUDA kernels on the CPU where no compiler is installed."""
    try:
        require_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def emulated_device(cuda_compiler: None) -> Iterator[EmulatedDevice]:
    """A GPU that executes kernels on the CPU, and queued work only when its stream is synchronised."""
    device = EmulatedDevice()
    yield device
    device.close()
