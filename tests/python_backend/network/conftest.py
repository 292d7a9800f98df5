# SPDX-License-Identifier: Apache-2.0
"""The device whose memory is the host's."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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
