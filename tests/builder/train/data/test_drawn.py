# SPDX-License-Identifier: Apache-2.0
"""Drawn pages: the same from a seed, with quads around the ink, in fonts that have every character."""

from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest

from ocdserve.builder.train.data.drawing.fonts import _installed, faces
from ocdserve.builder.train.data.drawing.sheet import Sheet, homography_between, put
from ocdserve.builder.train.data.drawing.words import alphabet
from ocdserve.builder.train.data.drawn import drawn_pages
from ocdserve.contract import InvalidInputError

_FOLDER = Path(matplotlib.get_data_path(), "fonts", "ttf")
_FONTS = [_FOLDER / name for name in ("DejaVuSans.ttf", "DejaVuSerif-Italic.ttf", "STIXGeneral.ttf")]


def test_pages_follow_from_the_seed_and_their_index() -> None:
    first = list(drawn_pages(6, (200, 280), 7, fonts=_FONTS))
    again = list(drawn_pages(6, (200, 280), 7, fonts=reversed(_FONTS)))
    other = list(drawn_pages(6, (200, 280), 8, fonts=_FONTS))
    for (page, truth), (same_page, same_truth) in zip(first, again, strict=True):
        assert page.dtype == np.uint8
        assert page.shape == (200, 280, 3)
        assert np.array_equal(page, same_page)
        assert truth.ignored == same_truth.ignored
        assert all(map(np.array_equal, truth.polygons, same_truth.polygons))
    assert not any(np.array_equal(page, different) for (page, _), (different, _) in zip(first, other, strict=True))


def test_most_pages_have_text_and_some_have_none() -> None:
    truths = [truth for _, truth in drawn_pages(40, (160, 160), 3, fonts=_FONTS)]
    without = sum(not truth.polygons for truth in truths)
    assert 1 <= without <= 12
    for truth in truths:
        assert len(truth.ignored) == len(truth.polygons)
        for polygon, ignored in zip(truth.polygons, truth.ignored, strict=True):
            assert polygon.dtype == np.float64
            assert polygon.shape == (4, 2)
            # Texts that are not ignored lie on the page, but for a margin around their ink.
            assert ignored or (polygon.min() > -8 and polygon.max() < 168)
            assert cv2.contourArea(polygon.astype(np.float32), oriented=True) > 0  # clockwise, as y points down


@pytest.mark.parametrize("turn", [0, 30, 180])
def test_a_quad_surrounds_its_ink_closely_through_any_homography(turn: int) -> None:
    face = faces(_FONTS)[0]
    sheet = Sheet(300, 80, (255, 255, 255))
    sheet.write("Harbour 12.4", (12, 55), face, 40, (0, 0, 0))
    page = np.full((400, 400, 3), 255, np.uint8)
    half = np.array([(-150, -40), (150, -40), (150, 40), (-150, 40)], np.float64)
    cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    target = half @ np.array([(cosine, sine), (-sine, cosine)]) + 200
    (quad,) = put(page, sheet, homography_between(half + np.array((150, 40)), target))
    ink = np.argwhere(page[..., 0] < 128)[:, ::-1] + 0.5
    across, down = quad[1] - quad[0], quad[3] - quad[0]
    along = (ink - quad[0]) @ across / np.linalg.norm(across)
    below = (ink - quad[0]) @ down / np.linalg.norm(down)
    # A margin of 0.09 em is 3.6 pixels.
    assert 2 < along.min() < 6
    assert 2 < np.linalg.norm(across) - along.max() < 6
    assert 2 < below.min() < 6
    assert 2 < np.linalg.norm(down) - below.max() < 6


@pytest.mark.parametrize("size", [(32, 32), (40, 300), (500, 64)])
def test_pages_may_be_small_or_elongated(size: tuple[int, int]) -> None:
    for page, truth in drawn_pages(25, size, 9, fonts=_FONTS):
        assert page.shape == (*size, 3)
        assert all(np.isfinite(polygon).all() for polygon in truth.polygons)


def test_a_text_that_the_border_cuts_off_is_ignored() -> None:
    cut = whole = 0
    for _, truth in drawn_pages(30, (120, 120), 1, fonts=_FONTS):
        for polygon, ignored in zip(truth.polygons, truth.ignored, strict=True):
            out = max(0.0, -float(polygon.min()), float(polygon.max()) - 120)
            cut += ignored
            whole += not ignored
            assert not (ignored and out == 0)
    assert cut > 3
    assert whole > 30


def test_a_font_is_used_for_scripts_of_which_it_has_every_character() -> None:
    found = {face.path.name: face for face in faces([*_FONTS, _FOLDER / "cmr10.ttf"])}
    assert {"Latin", "accented", "Cyrillic", "Greek"} <= set(found["DejaVuSans.ttf"].scripts)
    assert "CJK" not in found["DejaVuSans.ttf"].scripts
    assert found["cmr10.ttf"].scripts == ("Latin",)
    for name, face in found.items():
        font = face.at(24)
        missing = bytes(font.getmask("\U0010fffe"))
        for script in face.scripts:
            absent = [character for character in alphabet(script) if bytes(font.getmask(character)) == missing]
            assert not absent, (name, absent)


def test_fonts_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (no_font := tmp_path / "a.ttf").write_bytes(b"text")
    with pytest.raises(InvalidInputError, match=r"a\.ttf is no font that FreeType reads"):
        next(drawn_pages(1, (64, 64), 0, fonts=[no_font]))
    with pytest.raises(InvalidInputError, match="none of the 1 fonts has all letters of one script"):
        next(drawn_pages(1, (64, 64), 0, fonts=[_FOLDER / "STIXSizOneSymReg.ttf"]))


def test_installed_fonts_that_cannot_be_read_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"text")
    for name in ("Deja.ttf", "SomeEmoji.ttf"):
        (tmp_path / name).symlink_to(_FONTS[0])
    monkeypatch.setattr("ocdserve.builder.train.data.drawing.fonts._SYSTEM", (str(tmp_path),))
    _installed.cache_clear()
    try:
        names = {face.path.name for face in faces()}
    finally:
        _installed.cache_clear()
    assert {"Deja.ttf", "STIXGeneral.ttf"} <= names
    assert not names & {"broken.ttf", "SomeEmoji.ttf", "cmsy10.ttf", "LastResortHE-Regular.ttf"}


def test_photographs_become_grounds(tmp_path: Path) -> None:
    photograph = tmp_path / "green.png"
    cv2.imwrite(str(photograph), np.full((90, 120, 3), (30, 200, 40), np.uint8))
    pages = [page for page, _ in drawn_pages(12, (96, 96), 2, [photograph], _FONTS)]
    assert sum(bool(abs(page[2:4, 2:4].astype(int) - (40, 200, 30)).max() < 90) for page in pages) >= 3
    with pytest.raises(InvalidInputError, match=r"missing\.jpg cannot be read"):
        list(drawn_pages(12, (96, 96), 2, [tmp_path / "missing.jpg"], _FONTS))


def test_pages_do_not_depend_on_the_processor_s_own_resizing() -> None:
    pages = []
    for is_used in (True, False):
        cv2.ipp.setUseIPP(is_used)
        try:
            pages.append([page for page, _ in drawn_pages(8, (150, 150), 4, fonts=_FONTS)])
            assert cv2.ipp.useIPP() == is_used
        finally:
            cv2.ipp.setUseIPP(True)
    assert all(map(np.array_equal, *pages))
