# SPDX-License-Identifier: Apache-2.0
"""Pages of a file in process."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ocdserve.backend import Detector, DetectorSpec, NetworkSpec
from ocdserve.backend.network.load import load_network
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.contract import InvalidInputError, Limits

BARS = [(10, 10, 50, 20), (40, 30, 90, 42), (20, 40, 60, 50)]


@pytest.fixture
def detector(tiny_network: Any) -> Detector:
    """Finds what is dark on white."""
    spec = DetectorSpec(network=NetworkSpec(mean=(0, 0, 0), std=(255, 255, 255)))
    bundle = Bundle(spec, tiny_network(weights=(-1 / 3, -1 / 3, -1 / 3), bias=1.0))
    return Detector(bundle, load_network(bundle), Limits(2_000_000))


def document(form: str, **options: Any) -> bytes:
    """Three pages of 128 x 64 pixels or points, each with a black bar."""
    pages = [Image.new("RGB", (128, 64), "white") for _ in BARS]
    for page, bar in zip(pages, BARS, strict=True):
        ImageDraw.Draw(page).rectangle(bar, fill="black")
    stream = io.BytesIO()
    pages[0].save(stream, form, save_all=True, append_images=pages[1:], **options)
    return stream.getvalue()


def centre(found: Any) -> Any:
    [quad] = found.quads
    return quad.mean(axis=0)


@pytest.mark.parametrize(("form", "dpi"), [("TIFF", 72), ("PDF", 72), ("PDF", 144), ("GIF", 72)])
def test_every_page_is_detected_with_its_number(detector: Detector, form: str, dpi: float, tmp_path: Path) -> None:
    file = tmp_path / "document"
    file.write_bytes(document(form, **({"resolution": 72} if form == "PDF" else {})))
    scale = dpi / 72
    for image in (file, str(file), file.read_bytes()):
        found = list(detector.detect_pages(image, dpi=dpi))
        assert [(each.page, each.width, each.height) for each in found] == [
            (number, 128 * scale, 64 * scale) for number in (1, 2, 3)
        ]
        for each, bar in zip(found, BARS, strict=True):
            np.testing.assert_allclose(centre(each), np.add(bar[:2], bar[2:]) / 2 * scale, atol=1.5 * scale)


def test_pages_are_chosen(detector: Detector) -> None:
    data = document("TIFF")
    assert [found.page for found in detector.detect_pages(data, pages=[3, 1])] == [3, 1]
    chosen = detector.detect(data, page=2)
    assert chosen.page == 2
    np.testing.assert_array_equal(chosen.quads, next(iter(detector.detect_pages(data, pages=[2]))).quads)
    with pytest.raises(InvalidInputError, match="has 3 pages, and one image is detected at a time"):
        detector.detect(data)
    with pytest.raises(InvalidInputError, match="from 1 to 3, the pages of this TIFF file; got 4"):
        list(detector.detect_pages(data, pages=[4]))


def test_pixels_are_one_page(detector: Detector) -> None:
    pixels = np.full((64, 128, 3), 255, np.uint8)
    assert [found.page for found in detector.detect_pages(pixels)] == [1]
    assert detector.detect(pixels, page=1).page == 1
    with pytest.raises(InvalidInputError, match="pixels are one image without pages"):
        detector.detect(pixels, page=2)


def test_the_limit_of_pixels_holds_for_pages(detector: Detector) -> None:
    with pytest.raises(InvalidInputError, match=r"dpi=1400; at most 2000000 are served\. Use dpi=\d+ or less"):
        list(detector.detect_pages(document("PDF", resolution=72), dpi=1400))


def test_a_pdf_given_to_detect_is_called_a_pdf(detector: Detector) -> None:
    with pytest.raises(InvalidInputError, match="this is a PDF document"):
        detector.detect(document("PDF", resolution=72))
