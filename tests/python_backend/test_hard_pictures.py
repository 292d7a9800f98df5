# SPDX-License-Identifier: Apache-2.0
"""Pictures on which text detectors are reported to fail, and what another detector finds in photographs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend import Detector
from ocdserve.backend.evaluation.matching import covered
from ocdserve.perf.subjects.rapidocr import load_rapidocr
from ocdserve.results.second_look import second_look

Detect = Callable[[bytes], NDArray[Any]]

# Boxes of RapidOCR that hold no text, by a corner in each: pedestrians on street signs.
NO_TEXT = {"e_french.jpg": ((390, 235), (390, 685))}
# A second look finds its only text, a word of 800 x 480 px with the score 0.55. RapidOCR's threshold is 0.5.
LOOKED_AT_AGAIN = "r_issue_170.png"


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> Path:
    folder = shared_data.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"no hard pictures: {folder} does not exist")
    return folder


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load()


@pytest.fixture(scope="module")
def rapidocr() -> Detect:
    return load_rapidocr(2)


def lines_of(ink: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Rectangles around the lines of horizontal text, (4, 2) each; dots belong to the letters below."""
    rows = np.flatnonzero(ink.any(axis=1))
    lines = []
    for line in np.split(rows, np.flatnonzero(np.diff(rows) > 6) + 1):
        columns = np.flatnonzero(ink[line].any(axis=0))
        (left, right), (top, bottom) = (columns[[0, -1]], line[[0, -1]])
        lines.append(np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float))
    return lines


def dark(picture: Image.Image) -> NDArray[np.bool_]:
    return np.asarray(picture.convert("L")) < 128


@pytest.mark.parametrize(("name", "lines"), [("tall_200x4000", 84), ("tall_250x9000", 204), ("tall_300x6000", 136)])
def test_every_line_of_a_page_is_found(name: str, lines: int, cases: Path, detector: Detector) -> None:
    path = cases / f"{name}.png"
    with Image.open(path) as picture:
        texts = lines_of(dark(picture))
    assert len(texts) == lines
    found = covered(texts, detector.detect(path).quads, margin=6.0)
    assert found.sum() == lines


def test_the_only_line_of_a_page_is_found_at_a_second_look(cases: Path, detector: Detector) -> None:
    path = cases / "one_line_1600.png"
    with Image.open(path) as picture:
        texts = lines_of(dark(picture))
    assert len(texts) == 1
    found = second_look(detector.detect, path)
    assert len(found) == 1
    assert covered(texts, found.quads, margin=6.0).all()


def test_text_that_only_the_opacity_shows_is_found(cases: Path, detector: Detector) -> None:
    path = cases / "white_on_transparent_rgba.png"
    with Image.open(path) as picture:
        texts = lines_of(np.asarray(picture.getchannel("A")) > 128)
    assert len(texts) == 3
    assert covered(texts, detector.detect(path).quads, margin=6.0).all()


def test_text_in_10_of_16_bits_is_found(cases: Path, detector: Detector) -> None:
    path = cases / "gray_10bit_in_16.png"
    with Image.open(path) as picture:
        texts = lines_of(np.asarray(picture) < 512)
    assert len(texts) == 3
    assert covered(texts, detector.detect(path).quads, margin=6.0).all()


def test_polygons_hold_curved_text_and_little_else(cases: Path, detector: Detector) -> None:
    path = cases / "curved_arc.png"
    found = detector.detect(path, polygons=True)
    assert found.polygons
    with Image.open(path) as picture:
        ink = dark(picture)
    inside = np.zeros(ink.shape, np.uint8)
    for polygon in found.polygons:
        inside |= cv2.fillPoly(np.zeros_like(inside), [np.rint(polygon).astype(np.int32)], (1,))
    assert ink[inside > 0].sum() >= 0.95 * ink.sum()
    # Letters are 40 px high: what is more than half as far from any ink is not text.
    distances = cv2.distanceTransform((~ink).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    assert (distances[inside > 0] > 20).mean() < 0.1


def test_a_column_that_leans_begins_at_its_top_left(cases: Path, detector: Detector) -> None:
    found = detector.detect(cases / "vertical_tilt_4.png")
    (quad,) = found.quads
    # The column leads from (240, 110) to (160, 1300).
    assert (quad[:2, 1] < 150).all() and (quad[2:, 1] > 1250).all()
    assert quad[0, 0] < quad[1, 0] and quad[3, 0] < quad[2, 0]


def picture_names() -> list[str]:
    """The photographs; none where they are not on this machine."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "pictures"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.long
@pytest.mark.parametrize("name", picture_names())
def test_nothing_that_rapidocr_finds_is_lost(
    name: str, shared_data: Path, detector: Detector, rapidocr: Detect
) -> None:
    encoded = (shared_data / "pictures" / name).read_bytes()
    no_text = shapely.MultiPoint(NO_TEXT.get(name, ()))
    theirs = [box.astype(float) for box in rapidocr(encoded)]
    texts = [box for box in theirs if not shapely.intersects(shapely.Polygon(box), no_text)]
    ours = second_look(detector.detect, encoded) if name == LOOKED_AT_AGAIN else detector.detect(encoded)
    lost = [box for box, found in zip(texts, covered(texts, ours.quads), strict=True) if not found]
    assert lost == []
