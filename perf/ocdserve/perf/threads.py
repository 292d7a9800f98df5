# SPDX-License-Identifier: Apache-2.0
"""How many threads a measurement may use."""

from collections.abc import Iterator
from contextlib import contextmanager

import cv2


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Within the block OpenCV works in the calling thread only; it would otherwise take all cores."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
