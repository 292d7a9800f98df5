# SPDX-License-Identifier: Apache-2.0
"""The served models over a stand-in for Triton's module."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FAKE = Path(__file__).resolve().parents[2] / "fakes" / "pb_utils.py"


@pytest.fixture
def pb_utils(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location("triton_python_backend_utils", FAKE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    return module


@pytest.fixture
def models(pb_utils: ModuleType) -> Iterator[ModuleType]:
    """`ocdserve.backend.triton.models`, imported over the stand-in."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("ocdserve.backend.triton")]:
            del sys.modules[name]

    forget()
    yield importlib.import_module("ocdserve.backend.triton.models")
    forget()
