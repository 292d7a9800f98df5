# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from ocdserve.contract import is_image


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", True),
        ("a.JPEG", True),
        ("a.b.Png", True),
        ("a.bmp", True),
        ("a.webp", True),
        ("a.tif", True),
        ("a.TIFF", True),
        ("a.gif", True),
        ("a.jp2", True),
        ("a.AVIF", True),
        ("a.pdf", False),
        ("a.jpg.txt", False),
        ("jpg", False),
    ],
)
def test_an_image_is_known_by_its_suffix_in_any_case(name: str, expected: bool) -> None:
    assert is_image(Path("folder") / name) is expected
