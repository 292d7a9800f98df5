# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of docs/capacity.md, by hand, and that the page shows it."""

from pathlib import Path

import pytest

from ocdserve.perf.studies.billion import Machine, Workload, compute, cpu_machine, flows, main, tables

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = (REPOSITORY / "docs" / "capacity.md").read_text("utf-8")


def result(name: str) -> str:
    return (REPOSITORY / "perf" / "results" / f"{name}.md").read_text("utf-8")


def test_machines_are_the_rate_by_what_is_used_of_their_capacity() -> None:
    # 86.4 million a day are 1,000 per second, which half of 100 to 200 per second serves with 20 to 10 machines.
    load = Workload(pictures=86.4e6, utilisation=0.5)
    machine = Machine("m", (100.0, 200.0), 8, "round")
    assert load.rate == pytest.approx(1000)
    assert machine.needed(load) == (10, 20)
    assert machine.needed(Workload(pictures=86.4e6, utilisation=0.5, peak=2.5)) == (25, 50)
    # 10 cores at 0.2 s are 50 per second, of which 0.94 are served.
    assert cpu_machine("c", 10, 0.2).capacity == pytest.approx((47.0, 47.0))


def test_what_flows_is_the_rate_by_the_size() -> None:
    # 1,000 pictures/s of 250 kB are 2 Gbit/s; 100 boxes of 36 bytes 28.8 Mbit/s.
    found = dict(flows(Workload(pictures=86.4e6, picture_bytes=250e3, boxes=100)))
    assert found == {
        "pictures per second, mean": "1,000",
        "pictures per second, planned": "1,000",
        "network, in": "2.0 Gbit/s",
        "network, out": "0.03 Gbit/s",
        "pictures, a day": "21.6 TB",
        "results, a day, uncompressed": "0.31 TB",
        "reads of an object store": "1,000 per second",
        "shards of 10,000 pictures, a day": "8,640",
        "pictures that fail, at one in a million": "86 a day",
    }


def test_the_rows_of_a_billion_are_those_computed_by_hand() -> None:
    rows = {row[0]: row[1:] for row in compute(Workload())}
    # 64 / 0.417 x 0.94 = 144.3; 11,574.1 / (144.3 x 0.7) = 114.6; 1e6 / 101.0 / 3600 = 2.75;
    # 101.0 x 2.416 Mbit/s = 0.244 Gbit/s.
    assert rows["64 cores, `default`"] == ("144", "measured for one core", "115", "2.75", "64", "0.24")
    # 64 / 0.168 x 0.94 = 358.1; 11,574.1 / 250.7 = 46.2.
    assert rows["64 cores, `fast`"][2] == "47"
    # 11,574.1 / (576 x 0.7) = 28.7 and / (406 x 0.7) = 40.7; 1e6 / 403.2 / 3600 = 0.69.
    assert rows["L4, PP-OCRv6 small"][:4] == ("406-576", "model", "29-41", "0.69-0.98")


def test_the_inputs_are_those_of_the_results() -> None:
    assert "| ocdserve | 417 | 1 |" in result("cpu-2026-11-24")
    assert "| ocdserve, `fast` | 168 | 0.39 |" in result("cpu-2026-11-24")
    assert "| `ocdnet`, 8 clients, of the bare network's throughput | 0.90 | 0.94 " in result("cpu-2026-11-24")
    for row in (
        "| L4, PP-OCRv6 small, FP16 | 406-576 (GPU) |",
        "| L40S, PP-OCRv6 small, FP16 | 1,162-1,651 (GPU) |",
        "| 4,348-6,452 (Python) | 5,915-7,619 (GPU, then CPU cores) |",
        "| CPU time an image, all processes | 2.1-2.6 ms |",
    ):
        assert row in result("gpu-model-2026-11-29")


def test_the_page_shows_the_tables_and_calls_them_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == tables(Workload())
    assert tables(Workload()) in PAGE
    before, _, after = PAGE.partition(tables(Workload()))
    assert "**A model, not a measurement**" in before
    # 8 x 12.89 Gbit/s; 168 / 417; 0.930 - 0.910; 11,574 / 5,500 and / 1,100, rounded up.
    for figure in ("103 Gbit/s", "0.40 of the machines", "0.020 of hmean", "at least 3 prefixes", "11 processes"):
        assert figure in " ".join(after.split())
