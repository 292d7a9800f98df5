# SPDX-License-Identifier: Apache-2.0
"""Interface of the detectors that the benchmark compares."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError

# From an encoded image to quads (N, 4, 2) in source pixels.
Detect = Callable[[bytes], NDArray[Any]]


class Competitor(ABC):
    """A text detector, from an encoded image to boxes.

    Args:
        threads: Number of threads of its network; the caller sets OpenCV's.

    Raises:
        InvalidInputError: `threads` is below 1.
    """

    name: ClassVar[str]

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise InvalidInputError(f"threads must be at least 1; got {threads}")
        self.threads = threads
        self._detect: Detect | None = None

    def available(self) -> str | None:
        """Load the detector; returns why that is impossible here, None on success."""
        try:
            self._detect = self._detect or self._load()
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
        if self._detect is None:
            self._detect = self._load()
        return self._detect(encoded)

    @abstractmethod
    def _load(self) -> Detect:
        """Load the detector; raises an exception with the reason where that is impossible."""
