# SPDX-License-Identifier: Apache-2.0
"""The result: promises beside what was measured, everything else as it was found, nothing made up."""

import json
from datetime import date
from pathlib import Path

import pytest

from ocdserve.perf.gpu_check.__main__ import PARTS
from ocdserve.perf.gpu_check.machine import Gpu
from ocdserve.perf.gpu_check.record import Figure, Record
from ocdserve.perf.gpu_check.result import Result
from ocdserve.perf.gpu_check.targets import targets
from ocdserve.perf.series.environment import Environment

GPU = Gpu("NVIDIA L4 (24 GB)", "sm_89", "12.8", "2026-11-24T10:00:00+00:00", {"clocks.sm": "2040 MHz"}, {"pycuda": "1"})


def _exactness(outside: int = 0) -> Record:
    record = Record("exactness", "complete", seconds=60)
    for kind in ("generated maps", "real maps"):
        record.count("cases outside", kind, outside, "")
        record.count("cases that differ from run to run", kind, 0, "")
        record.count("largest difference of a corner", kind, 0.0009765625, "px")
        record.count("largest difference of a score", kind, 5e-7, "")
    record.count("differing bytes", "random sizes", 0, "")
    return record


def _stages() -> Record:
    record = Record("stages", "stopped", "its 90 s were over before: batch 32")
    record.time("preprocessing", "batch 1", [8.0, 9.0, 10.5])
    record.time("post-processing", "batch 1, sparse", [70.0])
    record.time("post-processing", "batch 1, real", [81.5])
    record.time("post-processing", "batch 8, sparse", [152.0], per=8)
    record.count("times faster than the CPU", "batch 1, sparse", 60, "x")
    record.count("times faster than the CPU", "batch 1, real", 55, "x")
    return record


def test_promises_are_judged_by_their_worst_case() -> None:
    found = {target.what: target for target in targets([_exactness(), _stages()])}
    assert found["cases outside, generated maps"].verdict == "met"
    assert found["largest difference of a corner, generated maps"].promised == "<= 0.01 px"
    assert (found["preprocessing, batch 1"].measured, found["preprocessing, batch 1"].verdict) == (9.0, "met")
    slow = found["post-processing, batch 1, real"]
    assert (slow.measured, slow.promised, slow.verdict) == (81.5, "<= 80 µs", "not met")
    assert slow.note == "the part was not finished: its 90 s were over before: batch 32"
    assert found["post-processing, batch 8, sparse"].measured == 19.0
    assert found["times faster than the CPU, batch 1, real"].measured == 55
    end = found["most images a second, JPEG to quads"]
    assert (end.measured, end.verdict, end.promised) == (None, "not measured", ">= 2000 images/s")


@pytest.mark.parametrize("outside", [1, 3])
def test_one_case_outside_breaks_the_promise_and_is_told_of_the_times(outside: int) -> None:
    found = targets([_exactness(outside), _stages()])
    assert found[0].verdict == "not met"
    assert [target.what for target in found if target.note.startswith("the answers were not proven exact")] == [
        "preprocessing, batch 1",
        "post-processing, batch 1, real",
        "post-processing, batch 8, sparse",
        "times faster than the CPU, batch 1, real",
    ]


def test_what_did_not_run_is_written_as_not_measured() -> None:
    for target in targets([Record("exactness", "failed", "the GPU fell off the bus")]):
        assert (target.measured, target.verdict) == (None, "not measured")
    assert targets([Record("exactness", "failed", "the GPU fell off the bus")])[0].note == "the GPU fell off the bus"


def test_both_files_hold_all_of_it(tmp_path: Path) -> None:
    records = [_exactness(1), _stages(), Record("networks", "running", "")]
    records[0].deviations = [f"case {number} | odd" for number in range(60)]
    for batch, first, second in ((1, 2.5, 0.125), (8, 4.0, 3.0)):
        records[1].steps += [
            Figure("1. fill", f"batch {batch}", first, "µs"),
            Figure("2. label", f"batch {batch}", second, "µs"),
        ]
    records[1].absent("PyTorch", "it is not installed")
    records[1].log = "\n".join(f"line {number}" for number in range(30))
    result = Result(GPU, Environment.current(), PARTS, ["tensorrt: its wheel is not in the folder"])

    stem = result.write(tmp_path / "results", records)

    assert stem.name == f"gpu-check-{date.today().isoformat()}-nvidia-l4-24-gb"
    text = (stem.parent / f"{stem.name}.md").read_text("utf-8")
    assert "# GPU check, 2026-11-24: NVIDIA L4 (24 GB)" in text
    assert "NVIDIA L4 (24 GB) (sm_89), CUDA 12.8; clocks.sm 2040 MHz." in text
    assert "- Installation: tensorrt: its wheel is not in the folder" in text
    assert "| largest difference of a corner, generated maps | <= 0.01 px | 0.000977 px | met |" in text
    assert "| preprocessing | batch 1 | 9 µs | 8 to 10.5 |  |" in text
    assert "- case 0 \\| odd" in text and "- and 10 more, in the JSON" in text
    assert "| step | batch 1 | batch 8 |\n|---|---|---|\n| 1. fill | 2.50 | 4.00 |\n| 2. label | 0.12 | 3.00 |" in text
    assert "    line 10\n" in text and "    line 29\n" in text and "    line 9\n" not in text
    assert "- PyTorch: not measured: it is not installed" in text
    assert "## Networks\n\nCut off, 0 s." in text
    assert (
        "Not measured: End to end, in process, End to end, through Triton, compute-sanitizer: the run was cut off"
        in text
    )
    document = json.loads((stem.parent / f"{stem.name}.json").read_text("utf-8"))
    assert (document["format_version"], document["kind"]) == (1, "gpu-check")
    assert document["not_run"] == ["end-to-end", "served", "sanitizer"]
    assert len(document["parts"][0]["deviations"]) == 60
    assert {sample["ms"] for sample in document["parts"][1]["samples"] if sample["subject"] == "preprocessing"} == {
        0.008,
        0.009,
        0.0105,
    }
    assert document["gpu"]["model"] == "NVIDIA L4 (24 GB)"
    assert len(document["targets"]) == 10
