# SPDX-License-Identifier: Apache-2.0
"""The regression guard: budgets are met, and its counters count."""

import numpy as np
import pytest

from ocdserve.cli import main
from ocdserve.perf.counting import guard
from ocdserve.perf.counting.guard import Check, count_calls, count_peak_bytes, counted_checks, instruction_checks
from ocdserve.perf.counting.instructions import why_not


def test_calls_and_memory_are_within_their_budgets() -> None:
    exceeded = [str(check) for check in counted_checks() if not check.is_met]
    assert exceeded == []


def test_instructions_are_within_their_budgets() -> None:
    if reason := why_not("callgrind"):
        pytest.skip(f"instructions are counted by valgrind's callgrind: {reason}")
    exceeded = [str(check) for check in instruction_checks() if not check.is_met]
    assert exceeded == []


def test_calls_are_counted() -> None:
    def three() -> None:
        abs(-1)
        len("ab")

    assert count_calls(three) == 3
    assert count_calls(lambda: [abs(number) for number in range(10)]) in (11, 12)


def test_the_peak_counts_memory_that_is_held_at_the_same_time() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            np.zeros(1_000_000, np.uint8)

    def together() -> list[object]:
        return [np.zeros(1_000_000, np.uint8) for _ in range(3)]

    assert count_peak_bytes(one_after_the_other) == pytest.approx(1_000_000, rel=0.01)
    assert count_peak_bytes(together) == pytest.approx(3_000_000, rel=0.01)


def test_an_exceeded_budget_is_reported_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(guard, "_CALLS_OF_PREPROCESSING", 2.5)
    assert main(["bench", "guard"]) == 1
    output = capsys.readouterr()
    assert "EXCEEDED" in output.out
    assert "of 2.5     preprocessing: Python calls per image" in output.out
    assert "instructions are not counted: valgrind: not installed" in output.err


def test_a_budget_that_is_met_exactly_is_met() -> None:
    assert Check("calls", 3.0, 3.0).is_met
    assert not Check("calls", 3.1, 3.0).is_met
