# SPDX-License-Identifier: Apache-2.0
"""The device whose memory is the host's, and a TensorRT that uses it."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from imaginary_tensorrt import ImaginaryTensorRt

from ocdserve.backend.network import tensorrt
from ocdserve.backend.network.engine_library import Library, Messages

FAKE = Path(__file__).resolve().parents[2] / "fakes" / "host_device.py"


@pytest.fixture(scope="session")
def host_device() -> ModuleType:
    """The module `tests/fakes/host_device.py`."""
    specification = importlib.util.spec_from_file_location("host_device", FAKE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def device(host_device: ModuleType) -> Any:
    """A fresh one."""
    return host_device.HostDevice()


@pytest.fixture
def trt(device: Any, host_device: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ImaginaryTensorRt:
    """Both libraries, as `TensorRtNetwork` sees them; compiled kernels are kept in `tmp_path / "kernels"`."""
    monkeypatch.setenv("OCDSERVE_KERNEL_CACHE", str(tmp_path / "kernels"))
    messages = Messages()
    module = ImaginaryTensorRt(device, host_device.memory, lambda text: messages.add(text, is_error=True))
    monkeypatch.setattr(tensorrt, "load", lambda runtime: Library(runtime, module, None, messages))
    return module
