# SPDX-License-Identifier: Apache-2.0
"""The order in which the threads of a launch run."""

from dataclasses import dataclass

from .errors import MisuseError


@dataclass(frozen=True)
class Schedule:
    """The order of blocks and threads; the same one gives the same order.

    Args:
        seed: Of the order.
        preemption: At atomics and memory fences, and at every access where races are checked, another thread takes
            over once in so many times; 0 is never.
        resident_blocks: Blocks whose threads run in turns. More than one shows what blocks do to each other, and is
            slow for kernels with much shared memory.
        time_limit_s: CPU time after which a launch is taken for endless.
        lockstep: All blocks are resident, and in a round each thread makes one access that it waits for: an atomic or
            `__ldcg`. `EmulatedKernel.rounds` is then the length of the longest chain of such accesses.
    """

    seed: int = 0
    preemption: int = 0
    resident_blocks: int = 1
    time_limit_s: int = 120
    lockstep: bool = False

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("preemption", 0), ("resident_blocks", 1), ("time_limit_s", 1)):
            value = getattr(self, name)
            if value < least:
                raise MisuseError(f"Schedule.{name}: must be at least {least} (got {value})")
