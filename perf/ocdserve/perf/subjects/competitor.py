# SPDX-License-Identifier: Apache-2.0
"""What a detector must offer to be measured beside ours."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError

# An encoded image to quads (N, 4, 2) in source pixels.
Detect = Callable[[bytes], NDArray[Any]]


class Peer(ABC):
    """A text detector, from the encoded image to boxes.

    Args:
        threads: Threads that its network may use; OpenCV's are set by whoever measures.

    Raises:
        InvalidInputError: The number is below 1.
    """

    name: ClassVar[str]

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise InvalidInputError(f"threads must be at least 1; got {threads}")
        self.threads = threads
        self._detect: Detect | None = None

    def available(self) -> str | None:
        """Load it; why that is not possible here, None where it is."""
        try:
            self._detect = self._detect or self._load()
        except ImportError as error:
            return f"not installed: {error}"
        except Exception as error:  # whatever other people's code raises
            return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return None

    def detect(self, encoded: bytes) -> NDArray[Any]:
        """Quads (N, 4, 2), clockwise or not, in pixels of the source image (x right, y down).

        Raises:
            Exception: Of the kind that the detector raises; also where it is not available.
        """
        if self._detect is None:
            self._detect = self._load()
        return self._detect(encoded)

    @abstractmethod
    def _load(self) -> Detect:
        """Load it, or say by an exception why that cannot be."""
