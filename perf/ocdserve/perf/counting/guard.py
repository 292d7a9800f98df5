# SPDX-License-Identifier: Apache-2.0
"""Budgets for instructions, calls and memory per image, which do not depend on the load of the machine.

Instructions are a share of those of the baseline, counted in the same run on the same simulated processor; calls and
bytes are counted by Python. A budget is the value measured when it was set, plus a margin for other versions of Python
and of the libraries. Lower it with every improvement.
"""

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from ocdserve.backend.kernels.cpu import library
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.perf.counting.hot_loops import decoding, hot_loops, postprocessing, preprocessing, rectification
from ocdserve.perf.counting.instructions import count_instructions
from ocdserve.perf.inputs.maps import dense_map

_WORDS = 200
_PHOTOGRAPH = (720, 1280)

_CALLS_OF_PREPROCESSING = 24.0
_CALLS_PER_CHARACTER = 23.0
# Peak of allocated memory, as a multiple of the network's input.
_IMAGES = 1.1


@dataclass(frozen=True)
class _Budgets:
    """Budgets that depend on whether post-processing is compiled.

    Attributes:
        instructions: By name of the loop, as a share of the baseline's.
        calls_per_box: Calls of Python functions, and by Python of C functions.
        maps: Peak memory of Python and NumPy, as a multiple of the probability map (uint8).
        calls_per_line: As `calls_per_box`, of rectification.
    """

    instructions: dict[str, float]
    calls_per_box: float
    maps: float
    calls_per_line: float


_RECTIFICATION = "rectification, 4 lines"
_COMPILED = _Budgets(
    {
        f"post-processing, {_WORDS} words": 0.065,
        "post-processing, nothing found": 0.42,
        "preprocessing": 0.95,
        _RECTIFICATION: 1.35,
    },
    0.1,
    0.5,
    12.0,
)
_NUMPY = _Budgets(
    {
        f"post-processing, {_WORDS} words": 0.3,
        "post-processing, nothing found": 2.1,
        "preprocessing": 0.95,
        _RECTIFICATION: 12.5,
    },
    12.0,
    5.5,
    48.0,
)


@dataclass(frozen=True)
class Check:
    """One figure and its budget.

    Attributes:
        what: What was counted, and in which unit.
        value: The figure.
        budget: Its highest allowed value.
    """

    what: str
    value: float
    budget: float

    @property
    def is_met(self) -> bool:
        """Whether the figure is within its budget."""
        return self.value <= self.budget

    def __str__(self) -> str:
        return f"{'met     ' if self.is_met else 'EXCEEDED'}  {self.value:8.3f} of {self.budget:<6g}  {self.what}"


def instruction_checks() -> tuple[Check, ...]:
    """Instructions of the hot loops as shares of the baseline's; takes some seconds.

    Only with Callgrind: the code that a library chooses, and so its count, depends on the real processor.

    Raises:
        InstructionsError: Callgrind failed.
    """
    loops = hot_loops(_WORDS)
    # No warm-up, which takes long on the simulated processor: both implementations pay for their first call.
    counted = [one for loop in loops for one in (loop.ours, loop.baseline)]
    counts = count_instructions(counted, 1, 0, "callgrind").per_call
    return tuple(
        Check(
            f"{loop.name}: instructions, as a share of the baseline's",
            counts[loop.ours.name] / counts[loop.baseline.name],
            _budgets().instructions[loop.name],
        )
        for loop in loops
    )


def counted_checks() -> Iterator[Check]:
    """Calls and bytes of the hot loops."""
    columns = 10
    few, many = (count_calls(postprocessing(columns, rows)) for rows in (columns, 10 * columns))
    boxes = 9 * columns * columns
    yield Check("post-processing: Python calls per additional box", (many - few) / boxes, _budgets().calls_per_box)
    calls = count_calls(preprocessing(*_PHOTOGRAPH))
    yield Check("preprocessing: Python calls per image", calls, _CALLS_OF_PREPROCESSING)
    few, many = (count_calls(rectification(lines)) for lines in (10, 20))
    yield Check("rectification: Python calls per additional line", (many - few) / 10, _budgets().calls_per_line)
    few, many = (count_calls(decoding(characters)) for characters in (20, 60))
    yield Check("texts and words: Python calls per additional character", (many - few) / 40, _CALLS_PER_CHARACTER)
    map_bytes = dense_map(columns, columns).probability.nbytes
    peak = count_peak_bytes(postprocessing(columns, columns)) / map_bytes
    yield Check("post-processing: peak of allocated bytes, in sizes of the map", peak, _budgets().maps)
    (height, width), _ = ResizePolicy().sizes(*_PHOTOGRAPH)
    peak = count_peak_bytes(preprocessing(*_PHOTOGRAPH)) / (3 * height * width)
    yield Check("preprocessing: peak of allocated bytes, in sizes of its result", peak, _IMAGES)


def _budgets() -> _Budgets:
    return _NUMPY if library.load() is None else _COMPILED


def count_calls(call: Callable[[], object]) -> int:
    """Calls of Python functions, and by Python of C functions, in the second of two runs."""
    count = 0

    def see(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    call()
    before = sys.getprofile()
    sys.setprofile(see)
    try:
        call()
    finally:
        sys.setprofile(before)
    # Less the call of setprofile that ends the count.
    return count - 1


def count_peak_bytes(call: Callable[[], object]) -> int:
    """Peak memory of Python and NumPy in the second of two runs, in bytes."""
    call()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before
