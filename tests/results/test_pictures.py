# SPDX-License-Identifier: Apache-2.0
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ocdserve.contract import InvalidInputError
from ocdserve.results import picture_of, pixels_of
from ocdserve.results.detections import Detections
from ocdserve.results.pictures import QUAD_COLOUR

WIDTH, HEIGHT = 120, 90


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """A smooth image of waves, so that resampling it twice loses little."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(x / 9) * np.cos(y / 11), np.cos(x / 13 + y / 7), np.sin((x + 2 * y) / 17)]
    return (127 + 120 * np.stack(waves, axis=2)).astype(np.uint8)


def found(*quads: object, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Detections:
    corners = np.array(quads, np.float32).reshape(-1, 4, 2)
    return Detections(corners, np.full(len(corners), 0.5, np.float32), *size)


def box(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]


def test_the_crop_of_an_upright_box_is_that_part_of_the_image_bit_for_bit(pixels: NDArray[np.uint8]) -> None:
    crops = found(box(10, 20, 40, 15), box(0, 0, WIDTH, HEIGHT), box(100, 80, 20, 10)).crop(pixels)
    assert crops.sizes.tolist() == [[15, 40], [90, 120], [10, 20]]
    assert crops.pixels.shape == (3, 90, 120, 3)
    np.testing.assert_array_equal(crops[0], pixels[20:35, 10:50])
    np.testing.assert_array_equal(crops[1], pixels)
    np.testing.assert_array_equal(list(crops)[2], pixels[80:, 100:])
    assert not crops.pixels[0, 15:].any()
    assert not crops.pixels[0, :, 40:].any()


@given(
    st.tuples(st.floats(150, 200), st.floats(100, 140)),
    st.floats(-0.7, 0.7),
    st.lists(st.floats(-12, 12), min_size=4, max_size=4),
)
def test_the_crop_of_a_warped_image_is_the_image(centre: tuple[float, float], angle: float, pull: list[float]) -> None:
    y, x = np.mgrid[:60, :100]
    original = (127 + 100 * np.stack([np.sin(x / 15), np.cos(y / 12), np.sin((x + y) / 20)], axis=2)).astype(np.uint8)
    corners = np.array([-50 - 30j, 50 - 30j, 50 + 30j, -50 + 30j]) * 1.3 * np.exp(1j * angle) + complex(*centre)
    corners += np.array(pull) * np.exp(2j * np.arange(4))
    quad = np.stack([corners.real, corners.imag], axis=1)
    cv2 = pytest.importorskip("cv2", reason="OpenCV warps the picture for this test")
    # OpenCV's coordinates are of pixel centres, half a pixel from the edges that quads refer to.
    there = cv2.getPerspectiveTransform(
        np.array(box(-0.5, -0.5, 100, 60), np.float32), quad.astype(np.float32) - np.float32(0.5)
    )
    page = cv2.warpPerspective(original, there, (360, 260), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    [crop] = found(quad, size=(360, 260)).crop(page, turn_tall=None)
    back = np.asarray(Image.fromarray(crop).resize((100, 60), Image.Resampling.BICUBIC), np.int16)
    difference = np.abs(back - original)[2:-2, 2:-2]
    assert difference.mean() < 1.5
    assert difference.max() < 12


def test_crops_of_one_height_keep_their_proportions_up_to_a_limit(pixels: NDArray[np.uint8]) -> None:
    crops = found(box(10, 20, 40, 20), box(10, 20, 100, 20)).crop(pixels, height=32, max_width=100)
    assert crops.sizes.tolist() == [[32, 64], [32, 100]]
    assert crops.pixels.shape == (2, 32, 100, 3)


def test_scaling_down_averages() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 200
    [crop] = found(box(0, 0, 64, 64), size=(64, 64)).crop(stripes, height=8)
    assert abs(int(crop[3, 3, 0]) - 100) < 8


def test_a_tall_crop_is_rotated_counter_clockwise(pixels: NDArray[np.uint8]) -> None:
    quads = found(box(10, 20, 20, 30), box(10, 20, 20, 29))
    tall, short = quads.crop(pixels)
    np.testing.assert_array_equal(tall, np.rot90(pixels[20:50, 10:30]))
    np.testing.assert_array_equal(short, pixels[20:49, 10:30])
    np.testing.assert_array_equal(quads.crop(pixels, turn_tall=None)[0], pixels[20:50, 10:30])


def test_no_detections_have_no_crops(pixels: NDArray[np.uint8]) -> None:
    crops = found().crop(pixels)
    assert (len(crops), crops.pixels.shape, crops.sizes.shape) == (0, (0, 0, 0, 3), (0, 2))


def test_the_crop_of_a_quad_without_area_is_black(pixels: NDArray[np.uint8]) -> None:
    [crop] = found([[10, 10], [20, 10], [30, 10], [40, 10]]).crop(pixels)
    assert crop.shape[0] == 10 or crop.shape[1] == 10
    assert not crop.any()


def test_pixels_outside_of_the_image_are_black(pixels: NDArray[np.uint8]) -> None:
    [crop] = found(box(110, 10, 20, 10)).crop(pixels)
    np.testing.assert_array_equal(crop[:, :9], pixels[10:20, 110:119])
    assert not crop[:, 11:].any()


def test_every_kind_of_image_has_the_same_pixels(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    file = tmp_path / "a.png"
    file.write_bytes(buffer.getvalue())
    for image in (buffer.getvalue(), bytearray(buffer.getvalue()), file, str(file), Image.fromarray(pixels), pixels):
        np.testing.assert_array_equal(pixels_of(image), pixels)


def test_transparency_is_composited_on_white_as_the_server_does() -> None:
    glass = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert picture_of(glass).getpixel((3, 3)) == (255, 255, 255)


def test_drawing_does_not_change_the_given_pixels(pixels: NDArray[np.uint8]) -> None:
    before = pixels.copy()
    picture = found(box(10, 20, 40, 15)).draw(pixels)
    assert picture.getpixel((30, 20)) == QUAD_COLOUR
    np.testing.assert_array_equal(pixels, before)
    given = Image.fromarray(pixels)
    found(box(10, 20, 40, 15)).draw(given)
    np.testing.assert_array_equal(np.asarray(given), before)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: found(size=(9, 9)).crop(np.zeros((9, 8, 3), np.uint8)), "of 9x9 pixels; got one of 8x9"),
        (lambda: found(size=(9, 9)).draw(np.zeros((8, 9, 3), np.uint8)), "of 9x9 pixels; got one of 9x8"),
        (lambda: found().crop(np.zeros((HEIGHT, WIDTH), np.uint8)), r"shape \(H, W, 3\), RGB; got uint8 \(90, 120\)"),
        (lambda: found().crop(np.zeros((HEIGHT, WIDTH, 3))), "got float64"),
        (lambda: found().crop(b"no image"), "Pillow does not decode it"),
        (lambda: found().crop(Path("none.png")), "cannot read the image file 'none.png': No such file"),
        (lambda: found().crop(3), "or a Pillow image; got int"),
        (lambda: found().crop(b"", height=0), "height must be at least 1 pixel; got 0"),
    ],
)
def test_invalid_input_is_refused_with_the_reason(call: object, reason: str) -> None:
    assert callable(call)
    with pytest.raises(InvalidInputError, match=reason):
        call()


def test_without_pillow_results_work_and_images_name_the_package() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("PIL", "cv2", "shapely", "pyclipper")))
import numpy as np
from ocdserve.client import Detections, UnavailableError
found = Detections(np.array([[[1, 1], [9, 1], [9, 5], [1, 5]]], np.float32), np.array([0.5], np.float32), 20, 10)
found.merged(found.reading_order().filter(min_score=0.1).paragraphs())
Detections.from_json(found.to_json()).to_coco(), found.to_rows(), found.to_icdar(), found.to_labelme("a.png")
for method in (found.crop, found.draw):
    try:
        method(np.zeros((10, 20, 3), np.uint8))
    except UnavailableError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    message = (
        "decoding, drawing and cropping need Pillow, which is not installed: `pip install 'ocdserve[images]'` (in a "
        "source tree: `make extra NAME=images`)"
    )
    assert done.stdout.splitlines() == [message] * 2
