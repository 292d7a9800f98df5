# SPDX-License-Identifier: Apache-2.0
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ocdserve.cli.detect.reports import Drawings
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections


def test_pictures_never_overwrite_each_other_nor_an_input(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 80)).save(buffer, "PNG")
    image = buffer.getvalue()
    none = Detections(np.empty((0, 4, 2), np.float32), np.empty(0, np.float32), 80, 80)
    (tmp_path / "b.png").write_bytes(image)
    drawings = Drawings(tmp_path, [tmp_path / "b.png", tmp_path.parent / "a.png"])
    names = [drawings.save(stem, image, none, "a.png").name for stem in ("a", "a", "A", "b")]
    assert names == ["a.png", "a-2.png", "A-3.png", "b-2.png"]
    assert (tmp_path / "b.png").read_bytes() == image
    with Image.open(tmp_path / "a-2.png") as written:
        assert written.size == (80, 80)


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match=r"cannot make the folder '.*file': File exists"):
        Drawings(tmp_path / "file")
