# SPDX-License-Identifier: Apache-2.0
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ocdserve.results import second_look
from ocdserve.results.detections import Detections


def detections(boxes: list[tuple[float, float, float, float]], scores: list[float], width: int, height: int) -> Any:
    """Upright detections of left, top, right, bottom."""
    quads = [[(left, top), (right, top), (right, bottom), (left, bottom)] for left, top, right, bottom in boxes]
    return Detections(np.array(quads, np.float32).reshape(-1, 4, 2), np.array(scores, np.float32), width, height)


class Page:
    """A detector that sees the dark pixels of a page, and only in windows is sure of them."""

    def __init__(self, *seen: tuple[float, float, float, float], sure: bool = False) -> None:
        self.seen, self.sure = seen, sure
        self.calls: list[dict[str, Any]] = []
        self.windows: list[NDArray[np.uint8]] = []

    def detect(self, image: NDArray[np.uint8], **overrides: Any) -> Detections:
        self.calls.append(overrides)
        height, width = image.shape[:2]
        if (height, width) == (736, 736):
            self.windows.append(image)
            ys, xs = np.nonzero(image[..., 0] < 128)
            box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            return detections([box], [0.9], width, height)  # type: ignore[no-any-return, list-item]
        boxes = list(self.seen) if self.sure or overrides.get("box_thresh") == 0.1 else []
        return detections(boxes, [0.4] * len(boxes), width, height)  # type: ignore[no-any-return]


def page(height: int, width: int, *boxes: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    pixels = np.full((height, width, 3), 255, np.uint8)
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = 0
    return pixels


def bounds(found: Detections) -> list[list[float]]:
    return np.concatenate([found.quads.min(axis=1), found.quads.max(axis=1)], axis=1).tolist()  # type: ignore[no-any-return]


def test_an_answer_with_text_is_returned_as_it_is() -> None:
    seen = Page((10, 10, 60, 30), sure=True)
    found = second_look(seen.detect, page(1000, 1000), box_thresh=0.5)
    assert bounds(found) == [[10, 10, 60, 30]]
    assert seen.calls == [{"box_thresh": 0.5}]


def test_a_page_on_which_nothing_was_rejected_is_not_looked_at_again() -> None:
    seen = Page()
    assert len(second_look(seen.detect, page(1000, 1000))) == 0
    assert seen.calls == [{}, {"box_thresh": 0.1, "polygons": False}]


@pytest.mark.parametrize("box", [(700, 650, 950, 674), (0, 0, 200, 20), (1390, 1570, 1600, 1600), (0, 800, 30, 1000)])
def test_small_text_is_shown_at_the_same_scale_and_found_where_it_is(box: tuple[int, int, int, int]) -> None:
    # The first look has seen a part of it.
    seen = Page((box[0] + 5, box[1] + 5, box[2] - 5, box[3] - 5))
    found = second_look(seen.detect, page(1600, 1600, box), unclip_ratio=2.0)
    assert bounds(found) == [list(box)]
    assert (found.width, found.height, found.scores.tolist()) == (1600, 1600, [np.float32(0.9)])
    assert seen.calls[2:] == [{"unclip_ratio": 2.0}]


def test_the_chosen_page_of_a_file_is_looked_at_again() -> None:
    file = io.BytesIO()
    pages = [Image.fromarray(page(1600, 1600, *boxes)) for boxes in ([], [(700, 650, 950, 674)])]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    seen = Page((705, 655, 945, 669))

    def detect(image: Any, **overrides: Any) -> Detections:
        if isinstance(image, bytes):
            return replace(seen.detect(page(1600, 1600), **overrides), page=overrides["page"])
        return seen.detect(image, **overrides)

    found = second_look(detect, file.getvalue(), page=2, unclip_ratio=2.0)
    assert (bounds(found), found.page) == ([[700, 650, 950, 674]], 2)
    assert seen.calls[2:] == [{"unclip_ratio": 2.0}]


def test_a_huge_word_is_shown_smaller() -> None:
    seen = Page((100, 150, 740, 390))
    found = second_look(seen.detect, page(566, 800, (100, 150, 740, 390)))
    np.testing.assert_allclose(bounds(found), [[100, 150, 740, 390]], atol=2)
    dark = (seen.windows[0][..., 0] < 128).nonzero()
    assert np.ptp(dark[0]) + 1 == pytest.approx(96, abs=1)


def test_a_text_that_was_rejected_in_parts_is_found_once() -> None:
    seen = Page((100, 100, 180, 120), (220, 100, 300, 120))
    found = second_look(seen.detect, page(1600, 1600, (100, 100, 300, 120)))
    assert bounds(found) == [[100, 100, 300, 120]]


def test_at_most_four_windows_are_looked_at_the_largest_first() -> None:
    boxes = [(20, 800 * row + 20, 100 + 10 * row, 800 * row + 40) for row in range(6)]
    seen = Page(*boxes)
    found = second_look(seen.detect, page(5000, 1000, *boxes))
    assert sorted(bounds(found)) == [list(map(float, box)) for box in boxes[2:]]
