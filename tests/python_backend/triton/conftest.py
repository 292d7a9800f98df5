# SPDX-License-Identifier: Apache-2.0
"""The served models over a stand-in for Triton's module."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from served_models import RESIZE, Server, TinyNetwork

from ocdserve.backend import Bundle, Detector, DetectorSpec, NetworkSpec
from ocdserve.backend.network.load import load_network

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


@pytest.fixture
def bundle(tmp_path: Path, tiny_network: TinyNetwork) -> Bundle:
    network = NetworkSpec(mean=(0, 0, 0), std=(255, 255, 255))
    spec = DetectorSpec(network=network, resize=RESIZE)
    return Bundle(spec, tiny_network(weights=(1 / 3, 1 / 3, 1 / 3))).save(tmp_path / "model" / "bundle")


@pytest.fixture
def server(models: ModuleType, pb_utils: ModuleType, bundle: Bundle, tmp_path: Path) -> Iterator[Server]:
    server = Server(models, pb_utils, tmp_path / "model", bundle)
    yield server
    for model in server.running:
        model.finalize()


@pytest.fixture
def detector(bundle: Bundle) -> Detector:
    return Detector(bundle, load_network(bundle))
