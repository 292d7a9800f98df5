# SPDX-License-Identifier: Apache-2.0
"""The post-processing section: what it measures, and that it notices a difference."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.backend import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs.maps import Case, dense_map, empty_map
from ocdserve.perf.sections.postprocess import DisagreementError, check_same, measure_postprocess
from ocdserve.perf.series.measurement import OURS, Measurement
from ocdserve.perf.subjects.postprocessors import BASELINE, ONNXTR, POSTPROCESSORS, RAPIDOCR, Postprocessor

PARAMS = PostprocessParams(box_thresh=0.55, dilation=True)
QUADS = np.array([[[10, 10], [50, 10], [50, 20], [10, 20]], [[10, 40], [50, 40], [50, 50], [10, 50]]], np.float32)
FRAME = Frame((100, 100), (100, 100), (100, 100))
CASES = [Case(name, np.zeros((100, 100), np.uint8), FRAME, PARAMS, "set") for name in ("a", "b")]


def finding(name: str, quads: NDArray[Any], same_boxes: bool = False) -> Postprocessor:
    return Postprocessor(name, same_boxes, lambda case: lambda: quads)


def measured(*postprocessors: Postprocessor, cases: Sequence[Case] = CASES, rounds: int = 1) -> dict[str, Measurement]:
    return {one.subject: one for one in measure_postprocess(cases, rounds, lambda done, total: None, postprocessors)}


def test_all_post_processors_find_a_thousand_words() -> None:
    series = {
        one.subject: one
        for one in measure_postprocess([replace(dense_map(), params=PARAMS)], 1, lambda done, total: None)
    }
    assert {OURS, BASELINE, RAPIDOCR} <= series.keys()
    for name, one in series.items():
        assert (one.facts["boxes"], one.facts["of ours"]) == (1000, 1.0), name
        assert (one.unit, one.baseline, len(one.samples)) == ("ms", OURS, 1)
    assert series[OURS].cases == series[BASELINE].cases == ("dense, 1000 words#0",)


@pytest.mark.parametrize("name", [RAPIDOCR, ONNXTR])
def test_boxes_of_other_libraries_lie_where_ours_do_in_source_pixels(name: str) -> None:
    """A source twice as wide and three times as high as the map."""
    (postprocessor,) = (each for each in POSTPROCESSORS if each.name == name)
    drawn = dense_map(2, 3)
    height, width = drawn.probability.shape
    frame = Frame((3 * height, 2 * width), (height, width), (height, width))
    case = replace(drawn, frame=frame, params=PARAMS)
    if reason := postprocessor.available(case):
        pytest.skip(f"{name}: {reason}")
    centres = np.sort(postprocessor.prepare(case)().mean(axis=1), axis=0)
    # Cells of 64 x 26 pixels in the map.
    assert np.allclose(centres[:, 0], [64] * 3 + [192] * 3, atol=5)
    assert np.allclose(centres[:, 1], [39, 39, 117, 117, 195, 195], atol=5)


def test_an_empty_map_has_no_boxes_and_no_share() -> None:
    for one in measure_postprocess([replace(empty_map((64, 96)), params=PARAMS)], 1, lambda done, total: None):
        assert one.facts["boxes"] == 0 and "of ours" not in one.facts


def test_facts_count_boxes_and_those_that_match_ours() -> None:
    series = measured(finding(OURS, QUADS), finding("other", np.concatenate([QUADS[:1], QUADS[:1] + 70])), rounds=2)
    assert series[OURS].facts == {"boxes": 4, "rules": "its own", "of ours": 1.0}
    assert series["other"].facts == {"boxes": 4, "rules": "its own", "of ours": 0.5}
    assert series["other"].cases == ("a#0", "a#1", "b#0", "b#1")


def test_what_is_not_available_is_named_with_its_reason() -> None:
    def absent(case: Case) -> Callable[[], NDArray[Any]]:
        raise ImportError("No module named 'competitor'")

    def unfit(case: Case) -> Callable[[], NDArray[Any]]:
        raise InvalidInputError("knows no padding")

    series = measured(
        finding(OURS, QUADS), Postprocessor("absent", False, absent), Postprocessor("unfit", False, unfit)
    )
    assert list(series) == [OURS]
    assert (
        series[OURS].facts["not measured"]
        == "absent: not installed: No module named 'competitor'; unfit: knows no padding"
    )


def test_a_post_processor_with_our_rules_that_finds_less_is_an_error() -> None:
    with pytest.raises(DisagreementError, match="a: 2 boxes, but 1 by the other"):
        measured(finding(OURS, QUADS), finding("other", QUADS[:1], same_boxes=True))


def test_a_moved_corner_is_an_error_and_rounding_is_not() -> None:
    with pytest.raises(DisagreementError, match=r"map: corners differ by up to 0\.250 pixels from those of the loop"):
        check_same("map", QUADS, QUADS + np.float32(0.25), "loop")
    check_same("map", QUADS, QUADS + np.float32(2**-12), "loop")
    check_same("map", QUADS[:0], QUADS[:0], "loop")


@pytest.fixture
def two_opencv_threads() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    yield
    cv2.setNumThreads(before)


@pytest.mark.usefixtures("two_opencv_threads")
def test_opencv_uses_one_thread_and_its_thread_count_is_restored() -> None:
    seen: list[int] = []

    def prepare(case: Case) -> Callable[[], NDArray[Any]]:
        def call() -> NDArray[Any]:
            seen.append(cv2.getNumThreads())
            return QUADS

        return call

    measured(Postprocessor(OURS, True, prepare), cases=CASES[:1])
    # Once before it is timed, and once timed.
    assert seen == [1, 1]
    assert cv2.getNumThreads() == 2
