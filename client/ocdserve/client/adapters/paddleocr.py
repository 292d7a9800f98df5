# SPDX-License-Identifier: Apache-2.0
"""A detector with the interface of PaddleOCR 3's `TextDetection`; does not need PaddleOCR.

>>> from ocdserve.client import TextDetector
>>> model = TextDetection(TextDetector("grpc://127.0.0.1:8001"))
>>> model.predict("receipt.jpg", box_thresh=0.6)[0].json["res"]["dt_scores"]  # doctest: +SKIP
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.client.adapters import AnyDetector
from ocdserve.results.detections import Detections

__all__ = ["TextDetResult", "TextDetection", "result_of"]


class TextDetResult(dict[str, Any]):
    """The dictionary that PaddleOCR returns for an image.

    Keys: input_path (str or None), page_index (None), dt_polys (pixels: int16 (N, 4, 2), or a list of (M, 2) where
    polygons were asked for), dt_scores (list of float).
    """

    @property
    def json(self) -> dict[str, Any]:
        """Plain lists and numbers under the key "res"."""
        polygons = [np.asarray(polygon).tolist() for polygon in self["dt_polys"]]
        return {"res": {**self, "dt_polys": polygons}}


class TextDetection:
    """Replaces `paddleocr.TextDetection`."""

    def __init__(self, detector: AnyDetector, **overrides: Any) -> None:
        """Wrap a detector.

        Args:
            detector: A `TextDetector` or `Detector`.
            **overrides: Request parameters of every call.
        """
        self._detector = detector
        self._overrides = overrides

    def predict(
        self,
        input: str | NDArray[np.uint8] | Sequence[str | NDArray[np.uint8]],
        batch_size: int | None = None,
        *,
        thresh: float | None = None,
        box_thresh: float | None = None,
        unclip_ratio: float | None = None,
    ) -> list[TextDetResult]:
        """Detect in one image or several.

        Args:
            input: Paths, or uint8 (H, W, 3) BGR pixels, PaddleOCR's order.
            batch_size: Ignored; the server batches.
            thresh: Probability above which a pixel is text; None, here and below: the detector's own.
            box_thresh: Lowest score.
            unclip_ratio: How far a detected region is expanded.

        Raises:
            OcdserveError: As the detector's `detect`.
        """
        given = {"thresh": thresh, "box_thresh": box_thresh, "unclip_ratio": unclip_ratio}
        overrides = self._overrides | {name: value for name, value in given.items() if value is not None}
        several = isinstance(input, Sequence) and not isinstance(input, str)
        results = []
        for image in input if several else [input]:
            path = str(image) if isinstance(image, str | Path) else None
            rgb = np.ascontiguousarray(image[..., ::-1]) if isinstance(image, np.ndarray) else image
            results.append(result_of(self._detector.detect(rgb, **overrides), path))
        return results


def result_of(found: Detections, input_path: str | None = None) -> TextDetResult:
    """PaddleOCR's dictionary of an image's detections, in reading order like PaddleOCR's."""
    ordered = found.reading_order()
    polygons: Any = ordered.quads.round().astype(np.int16)
    if ordered.polygons is not None:
        polygons = [polygon.round().astype(np.int16) for polygon in ordered.polygons]
    return TextDetResult(
        input_path=input_path, page_index=None, dt_polys=polygons, dt_scores=ordered.scores.astype(float).tolist()
    )
