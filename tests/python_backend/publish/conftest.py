# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from ocdserve.backend import DetectorSpec


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose network no one loads."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "network.onnx").write_bytes(b"weights")
    (folder / "detector.json").write_text(DetectorSpec(name="mine", model="network.onnx").to_json())
    return folder
