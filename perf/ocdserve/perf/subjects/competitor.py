# SPDX-License-Identifier: Apache-2.0
"""A detector to measure, which may be missing or fail."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError

# From an encoded image to quads (N, 4, 2) in source pixels.
Detect = Callable[[bytes], NDArray[Any]]
# Loads a detector whose network uses so many threads; raises an exception where that is impossible.
Load = Callable[[int], Detect]


@dataclass(frozen=True)
class Competitor:
    """A text detector, from an encoded image to boxes, loaded when it is first used.

    Attributes:
        name: Its name in results.
        load: Loads it.
        threads: Number of threads of its network; the caller sets OpenCV's.

    Raises:
        InvalidInputError: `threads` is below 1.
    """

    name: str
    load: Load
    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InvalidInputError(f"threads must be at least 1; got {self.threads}")

    def available(self) -> str | None:
        """Load the detector; returns why that is impossible here, None on success."""
        try:
            _ = self.detect
        except ImportError as error:
            return f"not installed: {error}"
        except Exception as error:  # third-party code may raise anything
            return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return None

    @cached_property
    def detect(self) -> Detect:
        """Returns quads (N, 4, 2) in pixels of the source image (x right, y down), in either winding order.

        Raises:
            Exception: Whatever the detector raises, also where it is not available.
        """
        return self.load(self.threads)
