# SPDX-License-Identifier: Apache-2.0
"""Pages of a file through both detectors: split here, or chosen on the server."""

import asyncio
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ocdserve.client import (
    AsyncMockTransport,
    AsyncTextDetector,
    Detections,
    InferRequest,
    InvalidInputError,
    MockTransport,
    TextDetector,
)

URL = "grpc://server:8001"
Pages = Callable[..., list[Detections]]


def tiff(count: int) -> bytes:
    """Pages of 48, 49, 50... x 32 pixels."""
    first, *others = (Image.new("RGB", (48 + index, 32), (index, 0, 0)) for index in range(count))
    stream = io.BytesIO()
    first.save(stream, "TIFF", save_all=True, append_images=others)
    return stream.getvalue()


def answer(request: InferRequest) -> Mapping[str, NDArray[Any]]:
    """One box; the size of pixels, else 64 x 48. Pixels that are 52 wide are refused."""
    height, width = request.array.shape[1:3] if request.input_name == "PIXELS" else (48, 64)
    if width == 52:
        raise InvalidInputError("no picture of 52 columns")
    return {
        "QUADS": np.array([[[[1, 2], [11, 2], [11, 7], [1, 7]]]], np.float32),
        "SCORES": np.array([[0.5]], np.float32),
        "COUNT": np.array([[1]], np.int32),
        "SIZE": np.array([[height, width]], np.int32),
    }


class Asked:
    """Either detector, and the requests that it has sent."""

    def __init__(self, is_async: bool) -> None:
        self._is_async = is_async
        self.requests: list[InferRequest] = []

    def _answer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        self.requests.append(request)
        return answer(request)

    def pages(self, image: Any, collected: list[Detections], **options: Any) -> list[Detections]:
        """Results of `detect_pages`, added to `collected` as they come."""

        async def run() -> None:
            async with AsyncTextDetector(URL, transport=AsyncMockTransport(self._answer)) as detector:
                async for found in detector.detect_pages(image, **options):
                    collected.append(found)

        if self._is_async:
            asyncio.run(run())
        else:
            with TextDetector(URL, transport=MockTransport(self._answer)) as detector:
                for found in detector.detect_pages(image, **options):
                    collected.append(found)
        return collected

    def one(self, method: str, image: Any, **options: Any) -> Detections:
        """The result of `detect` or `detect_tiled`."""

        async def run() -> Detections:
            async with AsyncTextDetector(URL, transport=AsyncMockTransport(self._answer)) as detector:
                found: Detections = await getattr(detector, method)(image, **options)
                return found

        if self._is_async:
            return asyncio.run(run())
        with TextDetector(URL, transport=MockTransport(self._answer)) as detector:
            found: Detections = getattr(detector, method)(image, **options)
            return found


@pytest.fixture(params=[False, True], ids=["plain", "async"])
def asked(request: pytest.FixtureRequest) -> Asked:
    return Asked(request.param)


@pytest.mark.parametrize("kind", ["bytes", "path", "file"])
def test_every_page_has_a_result_with_its_number(asked: Asked, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "scan.tif"
    file.write_bytes(tiff(3))
    image: Any = {"bytes": tiff(3), "path": file, "file": io.BytesIO(tiff(3))}[kind]
    found = asked.pages(image, [], box_thresh=0.7)
    assert [(each.page, each.width, each.height) for each in found] == [(1, 48, 32), (2, 49, 32), (3, 50, 32)]
    assert sorted(request.array[0, 0, 0, 0] for request in asked.requests) == [0, 1, 2]
    assert {request.model for request in asked.requests} == {"ocdnet_raw"}
    assert [dict(request.parameters) for request in asked.requests] == [{"box_thresh": 0.7}] * 3


def test_pages_are_chosen_in_any_order(asked: Asked) -> None:
    assert [(each.page, each.width) for each in asked.pages(tiff(3), [], pages=[3, 1])] == [(3, 50), (1, 48)]


def test_a_file_of_one_page_is_sent_as_it_is(asked: Asked) -> None:
    [found] = asked.pages(b"\xff\xd8\xff and so on", [])
    assert (found.page, found.width) == (1, 64)
    [request] = asked.requests
    assert (request.model, request.array[0, 0]) == ("ocdnet", b"\xff\xd8\xff and so on")
    assert dict(request.parameters) == {}


def test_pixels_are_one_page_and_may_be_bgr(asked: Asked) -> None:
    pixels = np.zeros((32, 40, 3), np.uint8)
    pixels[..., 0] = 7
    [found] = asked.pages(pixels, [], bgr=True)
    assert (found.page, found.width) == (1, 40)
    assert asked.requests[0].array[0, 0, 0].tolist() == [0, 0, 7]


def test_pages_before_one_that_fails_are_answered(asked: Asked) -> None:
    collected: list[Detections] = []
    with pytest.raises(InvalidInputError, match="no picture of 52 columns"):
        asked.pages(tiff(7), collected, concurrency=1)
    assert [found.page for found in collected] == [1, 2, 3, 4]


def test_a_page_that_the_file_lacks_is_refused(asked: Asked) -> None:
    with pytest.raises(InvalidInputError, match="page must be from 1 to 3, the pages of this TIFF file; got 4"):
        asked.pages(tiff(3), [], pages=[4])
    assert asked.requests == []


def test_a_pdf_is_rendered_here_at_the_resolution_asked_for(asked: Asked) -> None:
    stream = io.BytesIO()
    pages = [Image.new("RGB", (72, 36), (255, 255, 255)) for _ in range(2)]
    pages[0].save(stream, "PDF", save_all=True, append_images=pages[1:], resolution=72)
    found = asked.pages(stream.getvalue(), [], dpi=100)
    assert [(each.page, each.width, each.height) for each in found] == [(1, 100, 50), (2, 100, 50)]


def test_the_server_chooses_the_page_of_one_image(asked: Asked) -> None:
    found = asked.one("detect", tiff(3), page=2)
    assert found.page == 2
    assert dict(asked.requests[0].parameters) == {"page": 2}
    assert asked.one("detect", tiff(3)).page is None
    with pytest.raises(InvalidInputError, match="request parameter 'page' must be a whole number from 1 to 10000"):
        asked.one("detect", tiff(3), page=0)


def test_a_page_is_detected_in_tiles(asked: Asked) -> None:
    found = asked.one("detect_tiled", tiff(3), page=2)
    assert (found.page, found.width, found.height) == (2, 49, 32)
    assert [dict(request.parameters) for request in asked.requests] == [{}]
    with pytest.raises(InvalidInputError, match="has 3 pages"):
        asked.one("detect_tiled", tiff(3))


def test_results_carry_their_page_into_every_format() -> None:
    found = Detections(np.zeros((1, 4, 2), np.float32), np.ones(1, np.float32), 30, 20, page=3)
    assert found.to_dict()["page"] == 3
    assert Detections.from_json(found.to_json()).page == 3
    assert found.to_rows("a.tif")[0]["page"] == 3
    assert found.filter(min_score=0.5).page == 3
    other = Detections(found.quads, found.scores, 30, 20)
    assert "page" not in other.to_dict()
    assert "page" not in other.to_rows()[0]
    assert Detections.from_json(other.to_json()).page is None


def test_a_page_is_drawn_and_cropped_by_its_number() -> None:
    quads = np.array([[[5, 5], [20, 5], [20, 12], [5, 12]]], np.float32)
    found = Detections(quads, np.ones(1, np.float32), 50, 32, page=3)
    assert found.draw(tiff(3)).size == (50, 32)
    assert found.crop(tiff(3)).pixels[0, 3, 7].tolist() == [2, 0, 0]
