# SPDX-License-Identifier: Apache-2.0
"""The study of fine-tuning in folds: every picture is judged once, and limits are applied to the folds."""

from typing import Any

from ocdserve.perf.studies.finetune import folds, table


def row(fold: int, before: int, after: int, scenes: tuple[int, int], drawn: float) -> dict[str, Any]:
    """A fold of two pictures with 100 truths and 100 detections each, of which so many match."""
    counts = [[[matched, 100, 100]] * 2 for matched in (before, after)]
    gain = float(after - before)
    judged = {"gain": gain, "counts": counts, "matches_lost": 0, "matches_won": 2 * (after - before)}
    lost, won = scenes
    return {
        "bundle": "fast",
        "self_distil": False,
        "fold": fold,
        "written": True,
        "seconds": 100.0,
        "peak_mib": 1500,
        "judged": judged,
        "scenes": {"matches_lost": lost, "matches_won": won},
        "drawn": {"gain": drawn},
    }


def test_every_picture_is_judged_once() -> None:
    parts = folds(40)
    assert [len(part) for part in parts] == [10, 10, 10, 10]
    assert sorted(index for part in parts for index in part) == list(range(40))


def test_the_table_says_which_limits_are_met() -> None:
    met = table([row(0, 90, 92, (1, 0), -0.5), row(1, 90, 91, (0, 1), 0.2)])
    assert "mean gain +1.50 points; limit: at least +0.8: met" in met and "missed" not in met
    assert "All 4 judged pictures: +1.50 points" in met
    missed = table([row(0, 90, 93, (3, 0), -1.5), row(1, 90, 89, (0, 0), 0.0)])
    assert "least gain of a fold -1.00; limit: at least -0.5: missed" in missed
    assert "most of a fold: 3; limit: at most 2: missed" in missed
    assert "least of a fold: -1.50 points; limit: at least -1.0: missed" in missed
    assert "mean gain +1.00 points; limit: at least +0.8: met" in missed
