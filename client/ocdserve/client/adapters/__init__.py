# SPDX-License-Identifier: Apache-2.0
"""Our detectors in the shape that other OCR libraries expect; recognition and everything else stays theirs.

One module a library: `rapidocr`, `onnxtr` (and docTR), `transformers`, `paddleocr`. Each takes any detector of ours: a
`TextDetector` that asks a server, or the `ocdserve.backend.Detector` of this process.
"""

from collections.abc import Callable
from typing import Protocol

from ocdserve.results.detections import Detections

__all__ = ["AnyDetector"]


class AnyDetector(Protocol):
    """What `ocdserve.client.TextDetector` and `ocdserve.backend.Detector` have in common."""

    @property
    def detect(self) -> Callable[..., Detections]:
        """Detects in one image: encoded bytes, a path or uint8 (H, W, 3) RGB; keywords are request parameters."""
