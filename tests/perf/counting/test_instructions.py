# SPDX-License-Identifier: Apache-2.0
"""Counted instructions: of the calls alone, the same each time, and a reason if there is no tool."""

import shutil
from collections.abc import Mapping

import pytest

from ocdserve.contract import InvalidInputError
from ocdserve.perf.counting import instructions
from ocdserve.perf.counting.hot_loops import baseline_preprocessing, preprocessing
from ocdserve.perf.counting.instructions import Counted, InstructionsError, count_instructions, why_not

PREPROCESSING = Counted("once", preprocessing, (64, 64))


@pytest.fixture(scope="module")
def per_call() -> Mapping[str, float]:
    """Counts of one call twice and of another in two sizes, all by one child process."""
    sizes = [Counted(f"{side} x {side}", baseline_preprocessing, (side, side)) for side in (736, 1472)]
    again = Counted("again", preprocessing, (64, 64))
    counts = count_instructions([*sizes, PREPROCESSING, again], warm_up=1)
    if counts.reason:
        pytest.skip(f"nothing counts instructions here: {counts.reason}")
    return counts.per_call


@pytest.mark.long
def test_four_times_the_pixels_take_four_times_the_instructions(per_call: Mapping[str, float]) -> None:
    assert per_call["1472 x 1472"] / per_call["736 x 736"] == pytest.approx(4, rel=0.1)


@pytest.mark.long
def test_the_same_call_counts_the_same_again(per_call: Mapping[str, float]) -> None:
    assert per_call["again"] == pytest.approx(per_call["once"], rel=0.01)


def test_perf_counts_while_the_calls_are_made() -> None:
    """With an event that every machine has; the processor's counters are often out of reach."""
    if not shutil.which("perf"):
        pytest.skip("perf is not installed")
    jobs = [instructions._job(PREPROCESSING, calls, 1) for calls in (10, 300)]
    few, many = (instructions.perf_count(job, "task-clock:u") for job in jobs)
    # The start of Python alone takes longer than all of the calls.
    assert 0 < few < 100
    assert few < many


def test_without_a_tool_the_reason_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    counts = count_instructions([PREPROCESSING])
    assert (counts.tool, counts.per_call, counts.reason) == (None, {}, "perf: not installed; callgrind: not installed")


def test_perf_without_the_event_is_refused_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("perf"):
        pytest.skip("perf is not installed")
    monkeypatch.setattr(instructions, "EVENT", "no-such-event")
    assert "perf stat counts no no-such-event" in (why_not("perf") or "")


def test_a_failing_call_is_reported_with_its_error() -> None:
    if not shutil.which("perf"):
        pytest.skip("perf is not installed")
    with pytest.raises(InstructionsError, match=r"(?s)failed with 1: .*TypeError: .*preprocessing\(\)"):
        instructions.perf_count(instructions._job(Counted("wrong", preprocessing, (1, 2, 3)), 1, 0), "task-clock:u")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"calls": 0}, "calls must be at least 1 and warm_up at least 0; got 0 and 2"),
        ({"counted": [PREPROCESSING, PREPROCESSING]}, "each counted call needs a name of its own"),
        ({"counted": [Counted("inner", Counted.__init__)]}, "prepare must be a function of a module"),
    ],
)
def test_bad_calls_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        count_instructions(**{"counted": [PREPROCESSING], **arguments})  # type: ignore[arg-type]
