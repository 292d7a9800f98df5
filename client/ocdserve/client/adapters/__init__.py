# SPDX-License-Identifier: Apache-2.0
"""Detectors with the interfaces of other OCR libraries, which keep doing recognition and everything else.

One module per library: `rapidocr`, `onnxtr` (and docTR), `transformers`, `paddleocr`. Each accepts a `TextDetector`
(through a server) or an `ocdserve.backend.Detector` (in this process).
"""

from collections.abc import Callable
from typing import Protocol

from ocdserve.results.detections import Detections

__all__ = ["AnyDetector"]


class AnyDetector(Protocol):
    """The common interface of `ocdserve.client.TextDetector` and `ocdserve.backend.Detector`."""

    @property
    def detect(self) -> Callable[..., Detections]:
        """Detect in one image: encoded bytes, a path or uint8 (H, W, 3) RGB; keywords are request parameters."""
