# SPDX-License-Identifier: Apache-2.0
"""Thread limits of measurements."""

from collections.abc import Iterator
from contextlib import contextmanager

import cv2


@contextmanager
def opencv_threads(count: int = 1) -> Iterator[None]:
    """Within the block, limit OpenCV to `count` threads, the calling one included; its default is all cores."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
