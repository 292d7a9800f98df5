# SPDX-License-Identifier: Apache-2.0
"""The pipeline section with detectors whose answers are known."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend.evaluation import Truth, match
from ocdserve.cli.pictures import street
from ocdserve.perf.data_sets import DataSet, LabelledImage
from ocdserve.perf.pipeline import OURS, PipelineResult, measure_pipelines, one_thread_detectors
from ocdserve.perf.samples import Sample

BOX = np.array([[0, 0], [40, 0], [40, 10], [0, 10]], np.float32)
ONE_TEXT = Truth((BOX.astype(float),), (False,))


def image(name: str) -> LabelledImage:
    return LabelledImage(name, name.encode(), ONE_TEXT)


def measured(rounds: int = 1) -> tuple[list[tuple[str, bytes]], list[tuple[int, int]], PipelineResult]:
    """Calls in their order, reports of progress and the result of two detectors on three images."""
    calls: list[tuple[str, bytes]] = []

    def finds(name: str, quads: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.array(quads, np.float32).reshape(-1, 4, 2)

    def ours(encoded: bytes) -> NDArray[np.float32]:
        calls.append((OURS, encoded))
        return finds(OURS, [BOX])

    def other(encoded: bytes) -> NDArray[np.float32]:
        calls.append(("other", encoded))
        return finds("other", [] if encoded == b"y" else [BOX, BOX + 100])

    progress: list[tuple[int, int]] = []
    data_sets = [DataSet("one", (image("x"), image("y"))), DataSet("two", (image("z"),))]
    result = measure_pipelines(
        {OURS: ours, "other": other}, data_sets, rounds, lambda done, total: progress.append((done, total))
    )
    return calls, progress, result


def test_detectors_take_turns_after_an_untimed_first_image() -> None:
    calls, progress, result = measured()
    warm_up = [(OURS, b"x"), ("other", b"x")]
    first, second = [(OURS, b"x"), ("other", b"x")], [("other", b"y"), (OURS, b"y")]
    assert calls == [*warm_up, *first, *second, (OURS, b"z"), ("other", b"z"), (OURS, b"z"), ("other", b"z")]
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert [(sample.subject, sample.group, sample.case) for sample in result.samples] == [
        (OURS, "one", "x"),
        ("other", "one", "x"),
        ("other", "one", "y"),
        (OURS, "one", "y"),
        (OURS, "two", "z"),
        ("other", "two", "z"),
    ]


def test_more_rounds_give_more_times_and_the_same_accuracy() -> None:
    _, progress, result = measured(rounds=2)
    assert len(result.samples) == 12
    assert progress[-1] == (6, 6)
    assert [row.images for row in result.rows()] == [2, 2, 1, 1]


def test_the_accuracy_is_that_of_what_each_detector_found() -> None:
    rows = {(row.data, row.detector): row for row in measured()[2].rows()}
    assert (rows["one", OURS].hmean, rows["one", OURS].boxes) == (1.0, 2)
    # One of two texts, one of two boxes.
    other = rows["one", "other"]
    assert (other.precision, other.recall, other.hmean, other.boxes) == (0.5, 0.5, 0.5, 2)


def test_ratios_are_those_of_an_image_at_a_time() -> None:
    accuracies = measured()[2].accuracies[:2]
    times = {("x", OURS): 10.0, ("x", "other"): 20.0, ("y", OURS): 100.0, ("y", "other"): 600.0}
    samples = tuple(Sample(subject, "one", case, 0, ms) for (case, subject), ms in times.items())
    ours, other = PipelineResult(samples, accuracies).rows()
    assert (ours.median_ms, ours.times_ours) == (55.0, 1.0)
    assert (other.median_ms, other.times_ours) == (310.0, 4.0)


def test_every_detector_reads_the_drawn_street_and_finds_nothing_on_blank_paper() -> None:
    picture = street()
    truth = Truth(tuple(quad.astype(float) for quad in picture.quads), (False,) * len(picture.quads))
    blank = io.BytesIO()
    Image.new("RGB", (320, 240), "white").save(blank, "PNG")
    detectors = one_thread_detectors()
    assert list(detectors) == [OURS, "rapidocr", "rapidocr-openvino"]
    for name, detect in detectors.items():
        counts = match(detect(picture.png()), truth)
        assert (counts.matched, counts.detections, counts.truths) == (10, 10, 10), name
        assert detect(blank.getvalue()).shape == (0, 4, 2), name
