# SPDX-License-Identifier: Apache-2.0
import io

import numpy as np
import pytest
from PIL import Image

from ocdserve.perf.inputs.pictures import Picture, demo_pictures


@pytest.fixture(scope="module")
def pictures() -> dict[str, Picture]:
    return {picture.name: picture for picture in demo_pictures()}


def test_there_are_three_pictures_with_their_texts(pictures: dict[str, Picture]) -> None:
    assert {name: (picture.image.size, len(picture.texts)) for name, picture in pictures.items()} == {
        "receipt": ((720, 1080), 26),
        "street": ((1280, 720), 10),
        "page": ((1240, 1000), 73),
    }
    assert "STATION" in pictures["street"].texts


def test_drawing_them_again_gives_the_same_bytes(pictures: dict[str, Picture]) -> None:
    for again in demo_pictures():
        assert again.image.tobytes() == pictures[again.name].image.tobytes()
        assert again.texts == pictures[again.name].texts
        assert np.array_equal(again.quads, pictures[again.name].quads)


@pytest.mark.parametrize("name", ["receipt", "street", "page"])
def test_every_quad_is_inside_the_picture_and_clockwise(name: str, pictures: dict[str, Picture]) -> None:
    picture = pictures[name]
    width, height = picture.image.size
    assert picture.quads.dtype == np.float32
    assert picture.quads.shape == (len(picture.texts), 4, 2)
    assert picture.quads.min() >= 0
    assert (picture.quads <= (width, height)).all()
    x, y = picture.quads[..., 0], picture.quads[..., 1]
    # The shoelace formula is positive for clockwise corners where y points down.
    area = 0.5 * (x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1)
    assert (area > 100).all()


@pytest.mark.parametrize("name", ["receipt", "page"])
def test_on_paper_all_ink_but_the_rules_lies_in_the_quads(name: str, pictures: dict[str, Picture]) -> None:
    picture = pictures[name]
    ink = np.asarray(picture.image.convert("L")) < 128
    inside = np.zeros_like(ink)
    for quad in picture.quads:
        left, top = np.floor(quad.min(0)).astype(int)
        right, bottom = np.ceil(quad.max(0)).astype(int)
        assert ink[top:bottom, left:right].mean() > 0.05
        inside[top:bottom, left:right] = True
    stray_rows = np.flatnonzero((ink & ~inside).any(1))
    rules = 2 if name == "receipt" else 0
    assert len(stray_rows) <= 3 * rules


def test_the_streets_signs_are_slanted_both_ways(pictures: dict[str, Picture]) -> None:
    across = pictures["street"].quads[:, 1] - pictures["street"].quads[:, 0]
    degrees = np.degrees(np.arctan2(across[:, 1], across[:, 0]))
    assert degrees.min() < -15
    assert degrees.max() > 15


def test_a_sign_is_where_its_quad_says(pictures: dict[str, Picture]) -> None:
    street = pictures["street"]
    quad = street.quads[street.texts.index("MARKET")]
    pixels = np.asarray(street.image)
    # Along its edges, in the margin around the ink, there is nothing but the yellow plate.
    for start, end in zip(quad, np.roll(quad, -1, 0), strict=True):
        for share in (0.2, 0.5, 0.8):
            x, y = (start + share * (end - start)).round().astype(int)
            assert np.abs(pixels[y, x].astype(int) - (240, 190, 30)).max() < 12
    middle = pixels[int(quad[:, 1].min()) : int(quad[:, 1].max()), int(quad[:, 0].min()) : int(quad[:, 0].max())]
    assert (middle.max(2) < 60).mean() > 0.05


def test_png_is_the_picture_without_loss(pictures: dict[str, Picture]) -> None:
    with Image.open(io.BytesIO(pictures["street"].png())) as image:
        assert image.format == "PNG"
        assert image.tobytes() == pictures["street"].image.tobytes()
