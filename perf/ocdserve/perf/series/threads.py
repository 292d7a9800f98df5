# SPDX-License-Identifier: Apache-2.0
"""How many threads a measurement may use."""

from collections.abc import Iterator
from contextlib import contextmanager

import cv2


@contextmanager
def opencv_threads(count: int = 1) -> Iterator[None]:
    """Within the block OpenCV works in `count` threads, 1: the calling one; it would otherwise take all cores."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
