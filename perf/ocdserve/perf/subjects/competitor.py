# SPDX-License-Identifier: Apache-2.0
"""A detector to measure, which may be missing or fail."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError

# From an encoded image to quads (N, 4, 2) in source pixels.
Detect = Callable[[bytes], NDArray[Any]]
# Loads a detector whose network uses so many threads; raises an exception where that is impossible.
Load = Callable[[int], Detect]


class Competitor:
    """A text detector, from an encoded image to boxes, loaded when it is first used.

    Args:
        name: Its name in results.
        load: Loads it.
        threads: Number of threads of its network; the caller sets OpenCV's.

    Raises:
        InvalidInputError: `threads` is below 1.
    """

    def __init__(self, name: str, load: Load, threads: int = 1) -> None:
        if threads < 1:
            raise InvalidInputError(f"threads must be at least 1; got {threads}")
        self.name = name
        self._load = load
        self._threads = threads
        self._detect: Detect | None = None

    def available(self) -> str | None:
        """Load the detector; returns why that is impossible here, None on success."""
        try:
            self._detect = self._detect or self._load(self._threads)
        except ImportError as error:
            return f"not installed: {error}"
        except Exception as error:  # third-party code may raise anything
            return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return None

    def detect(self, encoded: bytes) -> NDArray[Any]:
        """Quads (N, 4, 2) in pixels of the source image (x right, y down), in either winding order.

        Raises:
            Exception: Whatever the detector raises, also where it is not available.
        """
        self._detect = self._detect or self._load(self._threads)
        return self._detect(encoded)
