# SPDX-License-Identifier: Apache-2.0
"""The front line of literal points and series."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from ocdserve.perf.report.front import front, judged
from ocdserve.perf.report.tables import tables
from ocdserve.perf.report.targets import targets
from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.measurement import Measurement, case_of
from ocdserve.perf.series.results import Results


@pytest.mark.parametrize(
    ("points", "names"),
    [
        ({}, ()),
        ({"a": (5, 0.5)}, ("a",)),
        # b is slower and worse than a; c is slower but better; d as good as c but slower; e faster but worse.
        ({"a": (5, 0.5), "b": (6, 0.4), "c": (7, 0.6), "d": (8, 0.6), "e": (4, 0.3)}, ("e", "a", "c")),
        # As fast, and better.
        ({"a": (5, 0.5), "b": (5, 0.6)}, ("b",)),
        # Equals do not beat each other.
        ({"a": (5, 0.5), "b": (5, 0.5), "c": (6, 0.4)}, ("a", "b")),
    ],
)
def test_the_front_has_what_nothing_beats(points: dict[str, tuple[float, float]], names: tuple[str, ...]) -> None:
    assert front(points) == names


CASES = tuple(case_of(name, 0) for name in "abcdefg")
ENVIRONMENT = Environment("Some CPU", 2, 23.5, "Linux", "3.11.7", {}, (0.5, 1.25, 2.0), (1.5, 1.0, 0.5), ("avx2",))


def series(name: str, ms: float, hmean: float, licence: str, left_over: int = 0) -> Measurement:
    facts = {"hmean": hmean, "licence": licence, "boxes without texts": left_over}
    factors = {"threads": 1, "texts": "painted over"}
    return Measurement("pipeline", name, "receipts", "ms", (ms,) * 7, CASES, factors, facts, "ocdserve")


RESULTS = Results(
    "2026-11-24T10:00:00+00:00",
    ENVIRONMENT,
    (
        series("ocdserve", 600, 0.93, "Apache-2.0", 3),
        series("ocdserve-fast", 200, 0.91, "Apache-2.0"),
        series("RapidOCR", 1500, 0.91, "Apache-2.0", 4),
        series("RapidOCR+OpenVINO", 500, 0.92, "Apache-2.0", 4),
        series("faster-paddle", 300, 0.95, "MIT", 5),
    ),
)


def test_its_table_goes_from_the_fastest_on_with_licences() -> None:
    _, table = tables(RESULTS)
    assert table.title == "Encoded image to boxes: front line, receipts without texts"
    assert table.headers == (
        "",
        "subject",
        "licence",
        "median ms",
        "95 % interval",
        "ratio to ocdserve",
        "of the ratio, 95 %",
        "hmean",
        "boxes without texts",
    )
    assert [(*row[:4], row[5], *row[7:]) for row in table.rows] == [
        ("front", "ocdserve-fast", "Apache-2.0", "200", "0.333", "0.9100", "0"),
        ("front", "faster-paddle", "MIT", "300", "0.500", "0.9500", "5"),
        ("", "RapidOCR+OpenVINO", "Apache-2.0", "500", "0.833", "0.9200", "4"),
        ("", "ocdserve", "Apache-2.0", "600", "1", "0.9300", "3"),
        ("", "RapidOCR", "Apache-2.0", "1,500", "2.500", "0.9100", "4"),
    ]


def test_groups_and_pages_with_and_without_texts_have_fronts_of_their_own() -> None:
    with_texts = tuple(replace(row, factors={"threads": 1}) for row in RESULTS.measurements[2:4])
    bare = replace(RESULTS.measurements[0], facts={}, group="scene")
    stage = replace(RESULTS.measurements[0], factors={"stage": "decode"}, group="scene")
    found = judged((*RESULTS.measurements, *with_texts, bare, stage))
    assert [(group, len(rows), names) for group, rows, names in found] == [
        ("receipts without texts", 5, ("ocdserve-fast", "faster-paddle")),
        ("receipts", 2, ("RapidOCR+OpenVINO",)),
    ]


def test_targets_compare_peers_with_the_fastest_of_ours_that_is_as_accurate() -> None:
    found = {one.what: (one.measured and one.measured.value, one.verdict) for one in targets(RESULTS)}
    where = "pipeline, receipts without texts: time of"
    assert found == {
        f"{where} RapidOCR, divided by ocdserve-fast (hmean 0.9100, ours 0.9100)": (7.5, "met"),
        f"{where} RapidOCR+OpenVINO, divided by ocdserve (hmean 0.9200, ours 0.9300)": (500 / 600, "missed"),
        f"{where} faster-paddle, divided by ours": (None, "not measured"),
    }


def test_its_plot_joins_the_front() -> None:
    pytest.importorskip("matplotlib", reason="the plots need the extra perf")
    from ocdserve.perf.report.plots import plots

    plot, _ = plots(RESULTS)
    assert plot.title == "Accuracy over time, receipts without texts"
    root = ET.fromstring(plot.svg)
    assert {"RapidOCR", "faster-paddle", "hmean", "ms"} <= set("".join(root.itertext()).split())
    # From the first of the front at its accuracy to the time of the second, and up to that one.
    (line,) = (path.get("d", "") for path in root.findall(".//{*}path") if "stroke: #808080" in path.get("style", ""))
    (left, low), (corner, same), (right, high) = re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", line)
    assert low == same and corner == right and float(left) < float(right) and float(high) < float(low)
