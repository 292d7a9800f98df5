# SPDX-License-Identifier: Apache-2.0
"""What our work on an image may cost at most, in figures that do not depend on how busy the machine is.

Instructions are a share of those of the plain way to do the same, counted in the same run on the same simulated
processor; calls and bytes are counted by Python. A budget is what was measured when it was set and a margin for other
versions of Python and of the libraries. Who makes something cheaper lowers its budget.
"""

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from ocdserve.backend.kernels.cpu import library
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.perf.counting.hot_loops import HotLoop, hot_loops, postprocessing, preprocessing
from ocdserve.perf.counting.instructions import count_instructions, why_not
from ocdserve.perf.inputs.maps import dense_map

__all__ = ["Check", "count_calls", "count_peak_bytes", "counted_checks", "instruction_checks", "why_no_instructions"]

_WORDS = 200
_PHOTOGRAPH = (720, 1280)

_CALLS_OF_PREPROCESSING = 24.0
# All that is allocated at one time, in the size of the pixels for the network.
_IMAGES = 1.1


@dataclass(frozen=True)
class _Budgets:
    """Of post-processing, which is compiled or NumPy's; and of preprocessing's instructions.

    Attributes:
        instructions: By the name of the loop, as a share of the plain way's.
        calls_a_box: Python functions, and functions of C that Python calls, for each box.
        maps: All that Python and NumPy hold at one time, in the size of the probability map (uint8).
    """

    instructions: dict[str, float]
    calls_a_box: float
    maps: float


_COMPILED = _Budgets(
    {f"post-processing, {_WORDS} words": 0.065, "post-processing, nothing found": 0.42, "preprocessing": 0.95}, 0.1, 0.5
)
_NUMPY = _Budgets(
    {f"post-processing, {_WORDS} words": 0.3, "post-processing, nothing found": 2.1, "preprocessing": 0.95}, 12.0, 5.5
)


@dataclass(frozen=True)
class Check:
    """One figure and its budget.

    Attributes:
        what: What was counted, and in what.
        value: How much it is.
        budget: How much it may be.
    """

    what: str
    value: float
    budget: float

    @property
    def is_kept(self) -> bool:
        """Whether the figure is within its budget."""
        return self.value <= self.budget

    def __str__(self) -> str:
        return f"{'kept  ' if self.is_kept else 'BROKEN'}  {self.value:8.3f} of {self.budget:<6g}  {self.what}"


def why_no_instructions() -> str | None:
    """Why instructions cannot be counted here; None where they can.

    The processor's own counter would count other instructions on each kind of processor, so only Callgrind will do.
    """
    return why_not("callgrind")


def instruction_checks() -> tuple[Check, ...]:
    """Instructions of the hot loops as shares of those of the plain ways; takes some seconds.

    Raises:
        InstructionsError: Callgrind failed.
    """
    loops = hot_loops(_WORDS)
    # Without warming up, which takes long on the simulated processor: both ways pay for their first call.
    counts = count_instructions([way for loop in loops for way in (loop.ours, loop.plain)], 1, 0, "callgrind").per_call
    return tuple(_share(loop, counts) for loop in loops)


def counted_checks() -> Iterator[Check]:
    """Calls and bytes."""
    columns = 10
    few, many = (count_calls(postprocessing(columns, rows)) for rows in (columns, 10 * columns))
    boxes = 9 * columns * columns
    yield Check("post-processing: Python calls for each further box", (many - few) / boxes, _budgets().calls_a_box)
    calls = count_calls(preprocessing(*_PHOTOGRAPH))
    yield Check("preprocessing: Python calls for an image", calls, _CALLS_OF_PREPROCESSING)
    map_bytes = dense_map(columns, columns).probability.nbytes
    peak = count_peak_bytes(postprocessing(columns, columns)) / map_bytes
    yield Check("post-processing: bytes allocated at one time, in sizes of the map", peak, _budgets().maps)
    (height, width), _ = ResizePolicy().sizes(*_PHOTOGRAPH)
    peak = count_peak_bytes(preprocessing(*_PHOTOGRAPH)) / (3 * height * width)
    yield Check("preprocessing: bytes allocated at one time, in sizes of its result", peak, _IMAGES)


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
    # The call of setprofile that ends the count.
    return count - 1


def count_peak_bytes(call: Callable[[], object]) -> int:
    """The most memory of Python and NumPy that is held at one time in the second of two runs, in bytes."""
    call()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before


def _share(loop: HotLoop, counts: dict[str, float]) -> Check:
    share = counts[loop.ours.name] / counts[loop.plain.name]
    return Check(f"{loop.name}: instructions, of those of the plain way", share, _budgets().instructions[loop.name])
