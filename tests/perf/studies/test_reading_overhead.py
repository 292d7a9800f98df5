# SPDX-License-Identifier: Apache-2.0
from ocdserve.perf.series.measurement import Measurement, case_of
from ocdserve.perf.studies.reading_overhead import BARE, BY_WIDTH, READING, Page, measured, table


def test_subjects_alternate_page_by_page_and_the_first_turn_does_not_count() -> None:
    calls: list[str] = []
    pages = [Page(3, {name: lambda name=name: calls.append(name) for name in (BARE, READING)}) for _ in range(2)]
    series = measured(pages, turns=2)
    # Two pages, three turns, each beginning with another subject.
    assert calls == [BARE, READING, READING, BARE, READING, BARE, BARE, READING, BARE, READING, READING, BARE]
    assert {name: one.cases for name, one in series.items()} == dict.fromkeys((BARE, READING), ("pages#0", "pages#1"))


def test_the_table_has_the_median_of_the_turns_ratios() -> None:
    times = {BARE: (100.0, 200.0, 100.0), BY_WIDTH: (50.0, 100.0, 50.0), READING: (101.0, 208.0, 103.0)}
    cases = tuple(case_of("pages", turn) for turn in range(3))
    series = {name: Measurement("reading", name, "pages", "ms", ms, cases=cases) for name, ms in times.items()}
    rows = table([Page(10, {}), Page(10, {})], series)
    assert rows[0] == "20 lines of 2 pages, 3 turns."
    assert rows[-1] == "| reading | 5.150 | 1.030 | 1.010 to 1.040 | 2.060 | 2.020 to 2.080 |"
