# SPDX-License-Identifier: Apache-2.0
"""The exactness part on the emulated device: agreement, and the report of disagreement."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.perf.gpu_check import exactness, maps
from ocdserve.perf.gpu_check.check_context import CheckContext, Deadline, OutOfTimeError
from ocdserve.perf.gpu_check.exactness import check_exactness, check_maps, is_rounding, with_own
from ocdserve.perf.gpu_check.maps import (
    ANSWERED_MAPS,
    SERVED_MAPS,
    answer_of,
    in_batches,
    load_answered,
    load_maps,
    save_answered,
    save_maps,
)
from ocdserve.perf.gpu_check.resizes import check_resizes
from ocdserve.perf.inputs.maps import Case, generated, many_components, page
from ocdserve.perf.series.measurement import Measurement, find
from ocdserve.results.detections import Detections

MakeContext = Callable[..., CheckContext]


def series(context: CheckContext, group: str) -> Measurement:
    (found,) = find(context.measurements.values(), section="gpu-exactness", group=group, unit="cases")
    return found


def test_the_emulated_device_is_exact(make_context: MakeContext, tmp_path: Path) -> None:
    size = (96, 160)
    real = Case("photograph", page("dense", size), Frame((192, 320), size, size), PostprocessParams())
    save_maps(tmp_path / SERVED_MAPS, [real])
    context = make_context("exactness", carried=tmp_path)

    check_exactness(context)

    generated_maps, real_maps = series(context, "generated maps"), series(context, "real maps")
    assert generated_maps.samples == (81,)
    assert float(generated_maps.facts["boxes"]) > 300
    assert real_maps.samples == (1,)
    assert float(real_maps.facts["boxes"]) >= 3
    for found in (generated_maps, real_maps):
        assert found.facts["cases outside"] == found.facts["cases that differ from run to run"] == 0
    assert series(context, "random sizes").samples == (20,)
    assert series(context, "text lines").samples == (20,)
    for group in ("random sizes", "batches of mixed sizes", "text lines"):
        assert series(context, group).facts["differing bytes"] == 0
    assert context.part.findings == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda quads, scores: (quads[1:], scores[1:]), "shape equal_words, parameters 0: 30 boxes, 29 on the CPU"),
        (
            lambda quads, scores: (quads + np.float32(0.5), scores),
            "shape equal_words, parameters 0: corners 0.5 px, scores 0, polygons 0 px apart",
        ),
        (
            lambda quads, scores: (quads, scores - np.float32(0.25)),
            "shape equal_words, parameters 0: corners 0 px, scores 0.25, polygons 0 px apart",
        ),
        (lambda quads, scores: (quads * np.float32("nan"), scores), "shape equal_words, parameters 0: corners nan px"),
    ],
)
def test_a_case_outside_is_listed(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    def other(*arguments: Any, **options: Any) -> Detections:
        found = postprocess(*arguments, **options)
        return Detections(*change(found.quads, found.scores), found.width, found.height, found.polygons)

    monkeypatch.setattr(maps, "postprocess", other)
    context = make_context("exactness")
    case = next(case for case in generated(1) if case.name == "shape equal_words, parameters 0")

    with context.device() as device:
        check_maps(context, device, device.stream(), "generated maps", [(case, None)])

    assert series(context, "generated maps").facts["cases outside"] == 1
    (deviation,) = context.part.findings
    assert deviation.startswith(message)


def test_an_image_that_falls_back_to_the_cpu_is_counted(make_context: MakeContext) -> None:
    context = make_context("exactness")
    everything = PostprocessParams(box_thresh=0.0, min_size=0.0, max_candidates=20_000)
    size = (736, 1280)
    case = Case("too many", many_components(*size), Frame(size, size, size), everything)

    with context.device() as device:
        check_maps(context, device, device.stream(), "generated maps", [(case, None)])

    facts = series(context, "generated maps").facts
    assert facts["cases too large for the tables, computed by the CPU"] == 1
    assert facts["cases outside"] == 0


def test_differing_bytes_are_counted(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def darker(*arguments: Any, **options: Any) -> Any:
        resized = resize(*arguments, **options)
        resized[0, 0, 0] ^= 1
        return resized

    resize = cv2.resize
    monkeypatch.setattr(cv2, "resize", darker)
    context = make_context("exactness")

    with context.device() as device:
        check_resizes(context, device, device.stream())

    assert series(context, "random sizes").facts["differing bytes"] == 20
    assert re.fullmatch(r"resize \(.*\) to \(.*\): 1 of \d+ bytes differ", context.part.findings[0])


def test_comparisons_are_saved_when_the_time_is_up(make_context: MakeContext) -> None:
    context = make_context("exactness")
    kept: list[int] = []
    # Its second is over after the third batch.
    context.deadline = Deadline(1, clock=lambda: float(len(kept) >= 3))
    context.save = lambda: kept.append(len(context.measurements))

    with context.device() as device, pytest.raises(OutOfTimeError, match=r"generated maps from case .* of 81 on"):
        check_maps(context, device, device.stream(), "generated maps", [(case, None) for case in generated(81)])

    assert 0 < series(context, "generated maps").samples[0] < 81
    assert len(kept) == 3


def test_batches_keep_the_order_of_cases_and_mix_sizes_but_not_dtypes() -> None:
    cases = list(generated(110, (96, 160)))
    batches = list(in_batches(cases))
    assert [case.name for batch in batches for case in batch] == [case.name for case in cases]
    assert all(len({case.probability.dtype for case in batch}) == 1 for batch in batches)
    assert max(len(batch) for batch in batches) == 8
    assert any(len({case.probability.shape for case in batch}) > 1 for batch in batches)


def test_maps_survive_a_round_trip(tmp_path: Path) -> None:
    frame = Frame((50, 40), (20, 30), (20, 28))
    case = Case("a photograph.jpg", np.arange(600, dtype=np.uint8).reshape(20, 30), frame, PostprocessParams())
    save_maps(tmp_path / "maps.npz", [case])

    (found,) = load_maps(tmp_path / "maps.npz", PostprocessParams(box_thresh=0.7))

    assert (found.name, found.frame, found.params.box_thresh) == (case.name, frame, 0.7)
    np.testing.assert_array_equal(found.probability, case.probability)


QUADS = np.array([[[10, 10], [50, 10], [50, 20], [10, 20]], [[10, 30], [50, 30], [50, 40], [10, 40]]], np.float32)
# Two source pixels per network pixel horizontally, three vertically.
FRAME = Frame((300, 200), (100, 100), (100, 100))


def _found(changes: dict[tuple[int, int, int], float], score: float = 0.5, points: int = 4) -> Detections:
    quads = QUADS.copy()
    for place, by in changes.items():
        quads[place] += by
    polygons = (quads[0][:points], quads[1])
    return Detections(quads, np.array([0.9, score], np.float32), 200, 300, polygons)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (_found({(1, 2, 0): 2.0}), True),
        (_found({(1, 2, 1): -3.0, (1, 3, 1): -3.0}), True),
        (_found({(1, 2, 0): 2.1}), False),
        (_found({(1, 2, 1): 3.1}), False),
        (_found({(0, 0, 0): 1.0, (1, 2, 0): 1.0}), False),
        (_found({(1, 2, 0): 1.0}, score=0.51), False),
        (_found({(1, 2, 0): 1.0}, points=3), False),
        (_found({(1, 2, 0): float("nan")}), False),
        (_found({}), False),
    ],
)
def test_rounding_moves_one_box_by_one_pixel_and_a_fault_does_more(found: Detections, expected: bool) -> None:
    assert is_rounding(FRAME, found, _found({})) is expected


def test_a_box_off_by_rounding_is_no_case_outside(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context("exactness")
    case = next(case for case in generated(1) if case.name == "shape equal_words, parameters 0")
    answer = answer_of(case)
    answer.quads[3, 0, 0] += 2
    monkeypatch.setattr(exactness, "answer_of", lambda case: answer)

    with context.device() as device:
        check_maps(context, device, device.stream(), "generated maps", [(case, answer)])

    facts = series(context, "generated maps").facts
    assert (facts["cases with one box off by rounding"], facts["cases outside"]) == (1, 0)
    assert facts["largest difference of a corner"] == 0
    assert context.part.findings == ["shape equal_words, parameters 0: one box 2 px apart, by rounding"]


def test_answers_survive_a_round_trip(tmp_path: Path) -> None:
    cases = list(generated(81))[:6]
    pairs = [(case, answer_of(case)) for case in cases]
    save_answered(tmp_path / "answers.npz", pairs)

    loaded = load_answered(tmp_path / "answers.npz")

    for (case, answer), (again, found) in zip(pairs, loaded, strict=True):
        assert found is not None
        assert (again.name, again.frame, again.params) == (case.name, case.frame, case.params)
        np.testing.assert_array_equal(again.probability, case.probability)
        np.testing.assert_array_equal(found.quads, answer.quads)
        np.testing.assert_array_equal(found.scores, answer.scores)
        assert (found.width, found.height) == (answer.width, answer.height)
        assert (found.polygons is None) == (answer.polygons is None)
        for one, other in zip(found.polygons or (), answer.polygons or (), strict=True):
            np.testing.assert_array_equal(one, other)
    assert any(answer.polygons for _, answer in pairs)


def test_carried_answers_are_compared_with(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = next(case for case in generated(1) if case.name == "shape equal_words, parameters 0")
    answer = answer_of(case)
    wrong = Detections(answer.quads + 9, answer.scores, 1, 1)
    save_answered(tmp_path / ANSWERED_MAPS, [(case, wrong)])
    monkeypatch.setattr(exactness, "answer_of", lambda case: wrong)
    context = make_context("exactness", carried=tmp_path)

    check_exactness(context)

    assert series(context, "generated maps").samples == (1,)
    assert series(context, "generated maps").facts["cases outside"] == 1


def test_boxes_of_this_machine_s_opencv_are_no_deviation_and_others_stay(make_context: MakeContext) -> None:
    carried, own = _found({}), _found({(1, 2, 0): 9.0})
    mixed, boxes = with_own(_found({(1, 2, 0): 9.0}), carried, own)
    assert boxes == 1
    np.testing.assert_array_equal(mixed.quads, own.quads)
    assert mixed.polygons is not None
    np.testing.assert_array_equal(mixed.polygons[1], own.quads[1])
    assert with_own(_found({(1, 2, 0): 5.0}), carried, own) == (carried, 0)

    context = make_context("exactness")
    case = next(case for case in generated(1) if case.name == "shape equal_words, parameters 0")
    answer = answer_of(case)
    answer.quads[3] += 40

    with context.device() as device:
        check_maps(context, device, device.stream(), "generated maps", [(case, answer)])

    facts = series(context, "generated maps").facts
    assert (facts["boxes by this machine's OpenCV"], facts["cases outside"]) == (1, 0)
