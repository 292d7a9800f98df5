# SPDX-License-Identifier: Apache-2.0
"""The pipeline section with detectors whose answers are known."""

from argparse import Namespace
from collections.abc import Callable
from time import sleep
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.contract import UnavailableError, UsageError
from ocdserve.perf.inputs.data_sets import DataSet, LabelledImage
from ocdserve.perf.sections import pipeline
from ocdserve.perf.sections.pipeline import chosen_peers, chosen_pictures, measure_blanked, measure_pipelines
from ocdserve.perf.sections.plan import Plan
from ocdserve.perf.series.measurement import OURS, Measurement
from ocdserve.perf.subjects import Competitor

BOX = np.array([[0, 0], [40, 0], [40, 10], [0, 10]], np.float32)
ONE_TEXT = Truth((BOX.astype(float),), (False,))


def image(name: str) -> LabelledImage:
    return LabelledImage(name, name.encode(), ONE_TEXT)


DATA_SETS = [DataSet("one", (image("x"), image("y"))), DataSet("two", (image("z"),))]


def competitor(name: str, find: Callable[[bytes], list[NDArray[Any]]]) -> Competitor[NDArray[Any]]:
    return Competitor(name, lambda threads: lambda encoded: np.array(find(encoded), np.float32).reshape(-1, 4, 2))


def absent(name: str) -> Competitor[NDArray[Any]]:
    def load(threads: int) -> Callable[[bytes], NDArray[Any]]:
        raise ImportError("No module named 'absent'")

    return Competitor(name, load)


class Run:
    """Calls in their order, reports of progress and the series of two detectors on three images."""

    def __init__(self, rounds: int = 1, *more: Competitor[NDArray[Any]]) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self.progress: list[tuple[int, int]] = []
        ours = competitor(OURS, lambda encoded: self._found(OURS, encoded, [BOX]))
        other = competitor(
            "other", lambda encoded: self._found("other", encoded, [] if encoded == b"y" else [BOX, BOX + 100])
        )
        measurements = measure_pipelines(
            [ours, other, *more], DATA_SETS, rounds, 1, lambda done, total: self.progress.append((done, total))
        )
        self.series: dict[tuple[str, str], Measurement] = {(one.group, one.subject): one for one in measurements}

    def _found(self, name: str, encoded: bytes, quads: list[NDArray[Any]]) -> list[NDArray[Any]]:
        self.calls.append((name, encoded))
        return quads


def test_detectors_take_turns_after_an_untimed_first_image() -> None:
    run = Run()
    warm_up = [(OURS, b"x"), ("other", b"x")]
    first, second = [(OURS, b"x"), ("other", b"x")], [("other", b"y"), (OURS, b"y")]
    assert run.calls == [*warm_up, *first, *second, (OURS, b"z"), ("other", b"z"), (OURS, b"z"), ("other", b"z")]
    assert run.progress == [(1, 3), (2, 3), (3, 3)]


def test_there_is_a_series_per_data_set_and_detector_and_one_for_all_data_sets() -> None:
    series = Run(rounds=2).series
    assert list(series) == [(group, name) for group in ("one", "two", "one + two") for name in (OURS, "other")]
    assert series["one", "other"].cases == ("x#0", "y#0", "x#1", "y#1")
    together = series["one + two", "other"]
    assert together.cases == ("one/x#0", "one/y#0", "one/x#1", "one/y#1", "two/z#0", "two/z#1")
    assert together.samples == series["one", "other"].samples + series["two", "other"].samples
    assert (together.unit, together.baseline, together.factors) == ("ms", OURS, {"threads": 1})


def test_the_accuracy_is_that_of_each_detector() -> None:
    series = Run(rounds=2).series
    assert _without_cpu(series["one", OURS]) == {"boxes": 2, "precision": 1.0, "recall": 1.0, "hmean": 1.0}
    # One of two texts, one of two boxes; with the second data set two of three, two of four.
    assert _without_cpu(series["one", "other"]) == {"boxes": 2, "precision": 0.5, "recall": 0.5, "hmean": 0.5}
    assert series["one + two", "other"].facts["hmean"] == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert series["one + two", "other"].facts["boxes"] == 4


def _without_cpu(measurement: Measurement) -> dict[str, object]:
    return {name: value for name, value in measurement.facts.items() if name != "CPU ms"}


def test_cpu_time_is_a_fact_next_to_the_wall_time() -> None:
    def sleeps(encoded: bytes) -> list[NDArray[Any]]:
        sleep(0.05)
        return [BOX]

    ours = competitor(OURS, sleeps)
    (one,) = measure_pipelines([ours], DATA_SETS[:1], 1, 1, lambda done, total: None)
    assert min(one.samples) >= 50
    assert float(one.facts["CPU ms"]) < 25


def test_one_data_set_has_no_series_for_all() -> None:
    ours = competitor(OURS, lambda encoded: [BOX])
    (one,) = measure_pipelines([ours], DATA_SETS[:1], 1, 1, lambda done, total: None)
    assert one.group == "one"


def test_competitors_that_are_missing_or_fail_are_left_out_and_named() -> None:
    def fails_at_y(encoded: bytes) -> list[NDArray[Any]]:
        if encoded == b"y":
            raise cv2.error("no\n memory")
        return [BOX]

    series = Run(1, competitor("weak", fails_at_y), absent("absent")).series
    assert {name for _, name in series} == {OURS, "other"}
    reasons = {one.facts["not measured"] for one in series.values()}
    assert reasons == {"absent: not installed: No module named 'absent'; weak: it failed: error: no memory"}


def test_our_detector_must_be_available_and_must_not_fail() -> None:
    with pytest.raises(UnavailableError, match="ocdserve is not available: not installed: No module named 'absent'"):
        measure_pipelines([absent(OURS)], DATA_SETS, 1, 1, lambda done, total: None)

    def fails(encoded: bytes) -> list[NDArray[Any]]:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        measure_pipelines([competitor(OURS, fails)], DATA_SETS, 1, 1, lambda done, total: None)


def test_opencv_uses_the_requested_threads() -> None:
    seen: list[int] = []

    def find(encoded: bytes) -> list[NDArray[Any]]:
        seen.append(cv2.getNumThreads())
        return []

    measure_pipelines([competitor(OURS, find)], DATA_SETS[1:], 1, 2, lambda done, total: None)
    assert seen == [2, 2]


def _is_not_here(threads: int) -> Callable[[bytes], NDArray[Any]]:
    raise UnavailableError("not here")


def test_blanked_pages_are_timed_and_the_pages_themselves_judged() -> None:
    paper = np.full((60, 80, 3), 240, np.uint8)
    paper[10:20, 10:60] = 0
    _, png = cv2.imencode(".png", paper)
    truth = Truth((np.array([[10, 10], [60, 10], [60, 20], [10, 20]], float),), (False,))
    data = DataSet("one", tuple(LabelledImage(name, png.tobytes(), truth) for name in "xy"))
    seen: list[bool] = []

    def finds_ink(encoded: bytes) -> list[NDArray[Any]]:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None
        seen.append(bool(pixels.min() < 128))
        sleep(0.02 if seen[-1] else 0)
        return [truth.polygons[0]] if seen[-1] else []

    def finds_all(encoded: bytes) -> list[NDArray[Any]]:
        return [truth.polygons[0]]

    def fails_without_ink(encoded: bytes) -> list[NDArray[Any]]:
        if encoded != png.tobytes():
            raise ValueError("no ink")
        return []

    absent = Competitor[NDArray[Any]]("absent", _is_not_here)
    detectors = [competitor(OURS, finds_ink), competitor("other", finds_all), competitor("weak", fails_without_ink)]
    ours, other = measure_blanked([*detectors, absent], [data], 2, 1)
    # The first page untimed, then each once; the same without texts in two rounds.
    assert seen == [True] * 3 + [False] * 5
    assert ours.cases == other.cases == ("x#0", "y#0", "x#1", "y#1")
    assert (ours.group, ours.factors) == ("one", {"threads": 1, "texts": "painted over"})
    assert (ours.facts["hmean"], ours.facts["boxes"], ours.facts["boxes without texts"]) == (1.0, 2, 0)
    assert (other.facts["hmean"], other.facts["boxes without texts"]) == (1.0, 2)
    assert float(ours.facts["ms with texts"]) >= 20
    assert ours.facts["not measured"] == "absent: UnavailableError: not here; weak: it failed: ValueError: no ink"


def test_some_pictures_can_be_chosen_of_each_data_set() -> None:
    names = [[image.name for image in data.images] for data in chosen_pictures(DATA_SETS, "one=1::2")]
    assert names == [["y"], ["z"]]
    assert chosen_pictures(DATA_SETS, None) == DATA_SETS
    for slices in ("one=1", "one=::0", "one=5:", "one", "one=a:"):
        with pytest.raises(
            UsageError, match=r"must be a slice START:STOP:STEP that leaves at least one of the 2 images"
        ):
            chosen_pictures(DATA_SETS, slices)
    with pytest.raises(UsageError, match="--pictures: unknown data set 'three'; known are one, two"):
        chosen_pictures(DATA_SETS, "three=:1")


def test_all_of_ours_are_measured_next_to_the_peers_that_are_named() -> None:
    known = {OURS: 1, "ocdserve-fast": 2, "a": 3, "b": 4}
    assert chosen_peers(known, "b", "--peers") == {OURS: 1, "ocdserve-fast": 2, "b": 4}
    assert chosen_peers(known, None, "--peers") == known


def test_a_peer_that_always_reads_is_only_measured_on_blanked_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {OURS: [BOX], "faster-paddle": [BOX]}
    detectors = {name: lambda threads, quads=quads: lambda encoded: np.array(quads) for name, quads in found.items()}
    monkeypatch.setattr(pipeline, "COMPETITORS", detectors)
    options = Namespace(threads=1, peers=None, pictures=None, blanked=False)
    (one,) = pipeline.measure(Plan(DATA_SETS[:1], 1, options))
    assert str(one.facts["not measured"]).startswith("faster-paddle: UnavailableError: it always reads")
    assert one.facts["licence"] == "Apache-2.0"
