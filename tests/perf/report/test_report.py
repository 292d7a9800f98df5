# SPDX-License-Identifier: Apache-2.0
"""Tables, Markdown and the HTML page of literal results."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ocdserve.cli import main
from ocdserve.perf.report.tables import number, tables
from ocdserve.perf.report.text import markdown, text
from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.measurement import Measurement, case_of
from ocdserve.perf.series.results import Results, save_results

ENVIRONMENT = Environment(
    "Some CPU", 2, 23.5, "Linux", "3.11.7", {"numpy": "1.26.4"}, (0.5, 1.25, 2.0), (1.5, 1.0, 0.5), ("avx2",)
)
CASES = tuple(case_of(name, 0) for name in "abc")
OURS = Measurement(
    "pipeline",
    "ocdserve",
    "receipts",
    "ms",
    (100.0, 100.0, 100.0),
    CASES,
    {"threads": 1},
    {"hmean": 0.9, "boxes": 20},
    "ocdserve",
)
THEIRS = replace(OURS, subject="<Rival & sons>", samples=(300.0, 300.0, 300.0), facts={"hmean": 0.85, "boxes": 20})
STAGES = tuple(
    Measurement("stages", "ocdserve", "receipts", "ms", (time,) * 3, CASES, {"stage": stage})
    for stage, time in (("decode", 10.0), ("network", 85.0), ("postprocess", 5.0))
)
LOAD = tuple(
    Measurement("load", "ocdnet", "mixed", unit, values, (), {"concurrency": concurrency})
    for concurrency, latency, speed in ((1, 200.0, 5.0), (8, 900.0, 8.0))
    for unit, values in (("ms", (latency,) * 100), ("images/s", (speed,) * 3))
)
RESULTS = Results(
    "2026-11-24T10:00:00+00:00", ENVIRONMENT, (OURS, THEIRS, *STAGES, *LOAD), "bench pipeline stages load"
)


class Reader(HTMLParser):
    """What a browser would load, and all ids and links inside of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (tag in ("link", "script") and name == "href"):
                self.loaded.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            elif name in ("href", "xlink:href"):
                self.links.append(value or "")
            self.links += re.findall(r"url\(([^)]*)\)", value or "")


def test_a_table_has_a_column_for_what_varies_and_a_note_for_what_does_not() -> None:
    pipeline, *_ = tables(RESULTS)
    assert pipeline.title == "Encoded image to boxes: time"
    assert pipeline.notes[0] == "Measured on: receipts; threads: 1; boxes: 20."
    assert pipeline.headers == (
        "subject",
        "samples",
        "median ms",
        "95 % interval",
        "ratio to ocdserve",
        "of the ratio, 95 %",
        "hmean",
    )
    assert pipeline.rows == (
        ("ocdserve", "3", "100", "100 – 100", "1", "", "0.9000"),
        ("<Rival & sons>", "3", "300", "300 – 300", "3", "3 – 3", "0.8500"),
    )


def test_there_is_a_table_for_each_section_and_unit() -> None:
    assert [table.title for table in tables(RESULTS)] == [
        "Encoded image to boxes: time",
        "Encoded image to boxes: front line, receipts",
        "Stages in process: time",
        "Under load: time",
        "Under load: throughput",
    ]


def test_tails_are_shown_if_there_are_enough_samples() -> None:
    latency = tables(RESULTS)[3]
    assert latency.headers[-2:] == ("p95", "p99")
    assert latency.rows[1][-2:] == ("900", "900")
    assert "p95" not in tables(RESULTS)[4].headers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (8, "8"),
        (0.0000614, "0.000061"),
        (0.9075, "0.907"),
        (3.14159, "3.142"),
        (41.837, "41.84"),
        (659.26, "659.3"),
        (2382.4, "2,382"),
        (12_345_678, "12,345,678"),
    ],
)
def test_numbers_have_about_four_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_the_terminal_gets_columns_and_the_environment() -> None:
    lines = text(RESULTS).splitlines()
    assert lines[0] == "processor            Some CPU"
    assert "load average after   1.50 1.00 0.50" in lines
    start = lines.index("Encoded image to boxes: time")
    assert lines[start + 3 : start + 6] == [
        "subject         samples  median ms  95 % interval  ratio to ocdserve  of the ratio, 95 %   hmean",
        "ocdserve              3        100      100 – 100                  1                      0.9000",
        "<Rival & sons>        3        300      300 – 300                  3               3 – 3  0.8500",
    ]


def test_markdown_has_the_same_tables() -> None:
    lines = markdown(RESULTS).splitlines()
    assert lines[:3] == ["# Benchmark of 2026-11-24", "", "`ocdserve bench pipeline stages load`"]
    assert "| processor | Some CPU |" in lines
    assert [line for line in lines if line.startswith("## ")] == [
        "## Targets",
        "## Encoded image to boxes",
        "## Stages in process",
        "## Under load",
    ]
    assert "| <Rival & sons> | 3 | 300 | 300 – 300 | 3 | 3 – 3 | 0.8500 |" in lines


def test_a_pipe_character_in_a_name_is_escaped_in_markdown() -> None:
    renamed = replace(RESULTS, measurements=(OURS, replace(THEIRS, subject="a|b")))
    assert "| a\\|b | 3 |" in markdown(renamed)


def test_the_page_is_self_contained_and_reproducible() -> None:
    pytest.importorskip("matplotlib", reason="the plots need the extra perf")
    from ocdserve.perf.report.page import page

    html = page(RESULTS)
    assert html == page(RESULTS)
    reader = Reader()
    reader.feed(html)
    assert reader.loaded == []
    assert "@import" not in html
    assert len(set(reader.ids)) == len(reader.ids)
    assert {link for link in reader.links if not link.startswith("#")} == set()
    assert {link[1:] for link in reader.links} <= set(reader.ids)
    assert '<td class="good">met</td>' in html
    assert "&lt;Rival &amp; sons&gt;" in html
    assert "<Rival" not in html


def test_every_measurement_that_can_be_plotted_is() -> None:
    pytest.importorskip("matplotlib", reason="the plots need the extra perf")
    from ocdserve.perf.report.plots import plots

    drawn = plots(RESULTS)
    assert [(plot.section, plot.title) for plot in drawn] == [
        ("pipeline", "Accuracy over time, receipts"),
        ("pipeline", "Encoded image to boxes: time compared with ocdserve"),
        ("stages", "Stages of ocdserve, receipts"),
        ("load", "Latency over requests in flight, mixed"),
        ("load", "Latency over throughput, mixed"),
    ]
    words = [" ".join("".join(ET.fromstring(plot.svg).itertext()).split()) for plot in drawn]
    assert "<Rival & sons>" in words[0]
    assert "85 ms, 85.0 %" in words[2]
    assert all(plot.svg.startswith("<svg ") for plot in drawn)


def test_runs_of_one_tuning_are_one_line_whatever_their_names() -> None:
    pytest.importorskip("matplotlib", reason="the plots need the extra perf")
    from ocdserve.perf.report.plots import plots

    runs = [(1, 2, {}), (1, 3, {}), (2, 2, {}), (2, 3, {"at": "capacity"})]
    rows = tuple(
        Measurement(
            "capacity",
            "ocdnet",
            "scene",
            "ms",
            (200.0,) * 20,
            (),
            {"instances": set_up, "run": run, "rate": rate, **at},
        )
        for run, (set_up, rate, at) in enumerate(runs)
    )
    (plot,) = plots(replace(RESULTS, measurements=rows))
    words = " ".join("".join(ET.fromstring(plot.svg).itertext()).split())
    assert plot.title == "Latency over arrivals per second, scene"
    assert re.findall(r"ocdnet, [a-z]+ [0-9]", words) == ["ocdnet, instances 1", "ocdnet, instances 2"]


def test_the_command_writes_both_and_prints_tables_without_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the plots need the extra perf")
    results = tmp_path / "results.json"
    save_results(RESULTS, results)
    page, document = tmp_path / "page.html", tmp_path / "results.md"
    assert main(["bench", "report", str(results), "--html", str(page), "--markdown", str(document)]) == 0
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert document.read_text("utf-8") == markdown(RESULTS)
    capsys.readouterr()
    assert main(["bench", "report", str(results)]) == 0
    assert capsys.readouterr().out == f"{text(RESULTS)}\n"
    assert main(["bench", "report", str(results), "--markdown", "-"]) == 0
    assert capsys.readouterr().out == markdown(RESULTS)
    assert main(["bench", "report", str(results), "--html", str(tmp_path / "absent" / "page.html")]) == 1
    assert "cannot write" in capsys.readouterr().err
