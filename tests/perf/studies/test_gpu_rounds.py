# SPDX-License-Identifier: Apache-2.0
"""The rounds of the labelling kernels in lockstep."""

from dataclasses import replace
from pathlib import Path

import pytest

from ocdserve.backend import Detector
from ocdserve.perf.inputs.data_sets import load_data_sets
from ocdserve.perf.inputs.maps import empty_map, real_maps
from ocdserve.perf.studies import gpu_rounds

pytestmark = pytest.mark.usefixtures("cuda_compiler")


def test_a_pixel_of_background_has_the_rounds_of_one_union() -> None:
    # It is its own root in the tile: one read. It and the outside are roots, which are united: two reads and an atomic.
    # Its parent is the outside, which is a root: two reads. There is no region that could be picked.
    assert gpu_rounds.rounds(gpu_rounds.device_in_lockstep(), empty_map((1, 1))) == (1, 3, 2, 0)


def test_a_row_has_the_median_and_the_most_of_a_group_and_where_it_is() -> None:
    larger = replace(empty_map((64, 256)), name="larger", group="drawn")
    cases = [replace(empty_map((1, 1)), name=f"pixel {index}", group="drawn") for index in range(2)]

    ((row, most),) = gpu_rounds.report(gpu_rounds.device_in_lockstep(), [cases[0], larger, cases[1]])

    assert most > 3
    assert row.startswith("| drawn | 3 | 1, ")
    assert row.endswith(" | 0, 0 | larger |")
    assert f" | 3, {most} | 2, " in row


def test_too_many_rounds_are_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("load_data_sets", "dense_map", "noise_map"):
        monkeypatch.setattr(gpu_rounds, name, lambda *_: empty_map((1, 1)))
    monkeypatch.setattr(gpu_rounds, "empty_map", lambda: empty_map((64, 256)))
    monkeypatch.setattr(gpu_rounds, "real_maps", lambda *_: [replace(empty_map((1, 1)), group="photographs")])

    codes = []
    for limit in (3, 2):
        monkeypatch.setattr(gpu_rounds, "MOST_ROUNDS", limit)
        codes.append(gpu_rounds.main([str(tmp_path)]))

    assert codes == [0, 1]
    assert capsys.readouterr().out.count("| photographs | 1 | 1, 1 | 3, 3 | 2, 2 | 0, 0 | empty |") == 2


@pytest.mark.long
def test_receipts_and_scenes_are_joined_in_70_rounds(shared_data: Path) -> None:
    data_sets = load_data_sets([shared_data / "receipts", shared_data / "scene"])
    cases = real_maps(Detector.load(), data_sets, lambda done, total: None)

    most = {row.split(" | ")[0]: rounds for row, rounds in gpu_rounds.report(gpu_rounds.device_in_lockstep(), cases)}

    # 57 and 29 in the order of threads that this device draws.
    assert most.keys() == {"| receipts", "| scene"}
    assert max(most.values()) <= 70
