# SPDX-License-Identifier: Apache-2.0
"""Promises judged on series whose figures are known."""

from dataclasses import replace

import pytest

from ocdserve.perf.report.targets import AT_80, promise_table, promises
from ocdserve.perf.report.text import markdown, text
from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.measurement import Measurement, case_of
from ocdserve.perf.series.results import Results

CASES = tuple(case_of(name, 0) for name in "abcdefgh")
TIMES = (100.0, 250.0, 90.0, 400.0, 120.0, 80.0, 300.0, 150.0)


def times(section: str, subject: str, group: str, factor: float, **facts: float) -> Measurement:
    return Measurement(section, subject, group, "ms", tuple(factor * time for time in TIMES), CASES, facts=facts)


def throughput(subject: str, concurrency: int, *per_second: float) -> Measurement:
    cases = tuple(case_of("pass", number) for number in range(len(per_second)))
    return Measurement("serving", subject, "street", "images/s", per_second, cases, {"concurrency": concurrency})


def results(*measurements: Measurement) -> Results:
    environment = Environment("Some CPU", 2, 23.5, "Linux", "3.11.7", {}, (0.5, 1.0, 2.0))
    return Results("2026-11-24T10:00:00+00:00", environment, measurements)


def test_a_rival_is_judged_on_all_data_sets_together() -> None:
    found = promises(
        results(
            *(times("pipeline", "ocdserve", group, 1.0, hmean=0.9) for group in ("receipts", "scene")),
            *(times("pipeline", "RapidOCR", group, 3.0, hmean=0.8) for group in ("receipts", "scene")),
            times("pipeline", "ocdserve", "receipts + scene", 1.0, hmean=0.85),
            times("pipeline", "RapidOCR", "receipts + scene", 4.5, hmean=0.8),
            times("pipeline", "RapidOCR+OpenVINO", "receipts + scene", 1.2, hmean=0.8),
        )
    )
    assert [(one.what, one.measured.value, one.limit, one.verdict) for one in found] == [
        (
            "pipeline, receipts + scene: time of RapidOCR, divided by ours (hmean 0.8000, ours 0.8500)",
            pytest.approx(4.5),
            4.0,
            "kept",
        ),
        (
            "pipeline, receipts + scene: time of RapidOCR+OpenVINO, divided by ours (hmean 0.8000, ours 0.8500)",
            pytest.approx(1.2),
            1.3,
            "missed",
        ),
    ]


def test_post_processing_is_judged_on_the_dense_page_and_on_receipts() -> None:
    groups = {"dense, 1000 words": 25.0, "noise": 2.0, "receipts": 7.0}
    found = promises(
        results(
            *(times("postprocess", "ocdserve", group, 1.0) for group in groups),
            *(times("postprocess", "plain loop", group, factor) for group, factor in groups.items()),
        )
    )
    assert [(one.limit, one.verdict) for one in found] == [(20.0, "kept"), (8.0, "missed")]


def test_the_share_of_our_own_stages_is_of_all_stages() -> None:
    stages = {"decode": 12.0, "preprocess": 3.0, "network": 80.0, "postprocess": 5.0}
    found = promises(
        results(
            *(
                replace(times("stages", "ocdserve", "receipts", ms), factors={"threads": 1, "stage": stage})
                for stage, ms in stages.items()
            )
        )
    )
    assert [(one.measured.value, one.promised, one.verdict) for one in found] == [
        (pytest.approx(0.08), "at most 5.0 %", "missed")
    ]


def test_served_throughput_is_judged_at_concurrency_8_and_may_be_too_close_to_tell() -> None:
    bare = (10.0, 11.0, 9.0, 10.0, 10.0, 10.0)
    found = promises(
        results(
            throughput("bare network", 1, *bare),
            throughput("ocdnet", 1, *(0.1 * value for value in bare)),
            throughput("bare network", 8, *bare),
            throughput("ocdnet", 8, 8.5, 10.2, 8.0, 9.4, 9.0, 9.2),
            throughput("ocdnet_fused", 8, *(0.95 * value for value in bare)),
        )
    )
    assert [(one.what.partition("of ")[2].partition(" at")[0], one.verdict) for one in found] == [
        ("ocdnet", "too close to tell"),
        ("ocdnet_fused", "kept"),
    ]


def test_two_passes_prove_nothing() -> None:
    (promise,) = promises(results(throughput("bare network", 8, 10.0, 10.0), throughput("ocdnet", 8, 5.0, 5.1)))
    assert promise.verdict == "too few samples"


def test_tails_and_memory_are_judged() -> None:
    latencies = tuple([100.0] * 97 + [290.0] * 3)
    load = Measurement("capacity", "ocdnet", "scene", "ms", latencies, (), {"at": AT_80, "rate": 3.0})
    memory = Measurement("memory", "ocdnet", "scene", "MiB", (900.0, 1500.0, 1200.0), (), {"counted as": "PSS"})
    found = promises(
        results(load, replace(load, factors={"rate": 4.0}), memory, replace(memory, factors={"counted as": "RSS"}))
    )
    assert [(one.promised, one.measured.value, one.verdict) for one in found] == [
        ("at most 3", pytest.approx(2.9), "kept"),
        ("at most 1,431", 1500.0, "missed"),
    ]


def test_reports_show_promises_only_where_some_are_measured() -> None:
    other = results(times("pipeline", "ocdserve", "receipts", 1.0))
    assert promise_table(other) is None
    assert "Promises" not in text(other) + markdown(other)
    some = results(times("pipeline", "ocdserve", "r", 1.0), times("pipeline", "RapidOCR+OpenVINO", "r", 1.5))
    row = "pipeline, r: time of RapidOCR+OpenVINO, divided by ours | at least 1.3 times | 1.500 times"
    assert f"| {row} | 1.500 times – 1.500 times | kept |" in markdown(some)
    assert "at least 1.3 times" in text(some)
