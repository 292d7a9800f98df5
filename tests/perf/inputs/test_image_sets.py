# SPDX-License-Identifier: Apache-2.0
"""Images for load tests: drawn reproducibly, or read from folders."""

import io
from pathlib import Path

import pytest
from PIL import Image

from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs.image_sets import DRAWN, EncodedImage, ImageSet, draw_images, load_images


def size_of(image: EncodedImage) -> tuple[int, int]:
    with Image.open(io.BytesIO(image.encoded)) as opened:
        assert opened.format == "JPEG"
        return opened.size


@pytest.mark.parametrize("kind", ["scene", "sparse", "tiny", "mixed"])
def test_a_set_is_drawn_the_same_byte_for_byte(kind: str) -> None:
    first, again = draw_images(kind, 2, seed=5), draw_images(kind, 2, seed=5)
    assert first.images == again.images and first.digest == again.digest
    assert draw_images(kind, 1, seed=5).images == first.images[:1]
    assert draw_images(kind, 2, seed=6).digest != first.digest
    assert first.images[0].encoded != first.images[1].encoded


def test_kinds_have_the_sizes_of_their_names() -> None:
    assert size_of(draw_images("scene", 1, 0).images[0]) == (1280, 720)
    assert all(max(size_of(image)) <= 240 for image in draw_images("tiny", 3, 0).images)
    assert len({size_of(image) for image in draw_images("mixed", 8, 0).images}) == 8
    assert DRAWN["huge"].sizes == ((4000, 3000),)


def test_dense_pages_hold_many_words_and_sparse_images_few() -> None:
    def dark(kind: str) -> float:
        with Image.open(io.BytesIO(draw_images(kind, 1, 3).images[0].encoded)) as opened:
            histogram = opened.convert("L").histogram()
        return sum(histogram[:90]) / sum(histogram)

    assert dark("dense") > 0.05
    assert dark("sparse") < 0.005


@pytest.mark.parametrize(("kind", "count", "seed"), [("enormous", 1, 0), ("scene", 0, 0), ("scene", 1, -1)])
def test_invalid_drawing_arguments_are_refused(kind: str, count: int, seed: int) -> None:
    with pytest.raises(InvalidInputError):
        draw_images(kind, count, seed)


@pytest.mark.parametrize("place", ["", "img", "receipts/img"])
def test_images_are_found_in_a_folder_a_data_set_and_a_folder_of_data_sets(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / place / name).write_bytes(name.encode())
    found = load_images([tmp_path])
    assert [(image.name, image.encoded) for image in found.images] == [("a.png", b"a.png"), ("b.JPG", b"b.JPG")]


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=str(tmp_path)):
        load_images([tmp_path])


def test_a_set_must_hold_an_image() -> None:
    with pytest.raises(InvalidInputError, match="at least one image"):
        ImageSet("none", ())
