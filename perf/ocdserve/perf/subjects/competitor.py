# SPDX-License-Identifier: Apache-2.0
"""A detector or reader to measure, which may be missing or fail."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError

_Answer = TypeVar("_Answer")

# From an encoded image to quads (N, 4, 2) in pixels of the source image (x right, y down), in either winding order.
Detect = Callable[[bytes], NDArray[Any]]
# Loads a detector whose network uses so many threads; raises an exception where that is impossible.
Load = Callable[[int], Detect]


@dataclass(frozen=True)
class Competitor(Generic[_Answer]):
    """What answers an encoded image, such as a text detector with boxes; loaded when it is first used.

    Attributes:
        name: Its name in results.
        load: Loads it, for so many threads; raises an exception where that is impossible.
        threads: Number of threads of its network; the caller sets OpenCV's.
        licence: Licence of its program and its networks, for the tables; may be empty.

    Raises:
        InvalidInputError: `threads` is below 1.
    """

    name: str
    load: Callable[[int], Callable[[bytes], _Answer]]
    threads: int = 1
    licence: str = ""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InvalidInputError(f"threads must be at least 1; got {self.threads}")

    def available(self) -> str | None:
        """Load it; returns why that is impossible here, None on success."""
        try:
            _ = self.answer
        except ImportError as error:
            return f"not installed: {error}"
        except Exception as error:  # third-party code may raise anything
            return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return None

    @cached_property
    def answer(self) -> Callable[[bytes], _Answer]:
        """Answers an encoded image.

        Raises:
            Exception: Whatever it raises, also where it is not available.
        """
        return self.load(self.threads)
