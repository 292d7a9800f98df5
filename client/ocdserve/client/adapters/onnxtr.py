# SPDX-License-Identifier: Apache-2.0
"""A detector for OnnxTR, and with docTR's interface.

>>> from ocdserve.client import TextDetector
>>> detection = DetectionPredictor(TextDetector("grpc://127.0.0.1:8001"))
>>> OCRPredictor(detection, reco_predictor)(pages).render()  # doctest: +SKIP

`OCRPredictor` is `onnxtr.models.predictor.OCRPredictor`, `reco_predictor` one of OnnxTR's. docTR's own OCRPredictor
asks for segmentation maps, which a server does not return: its interface here is for code that calls only the detector.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.client.adapters import AnyDetector
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections

__all__ = ["DetectionPredictor", "relative_boxes"]

Boxes = NDArray[np.float32]


class DetectionPredictor:
    """Replaces the `DetectionPredictor` of OnnxTR and docTR: pages in, relative boxes with scores out."""

    def __init__(self, detector: AnyDetector, *, assume_straight_pages: bool = True, **overrides: Any) -> None:
        """Wrap a detector.

        Args:
            detector: A `TextDetector` or `Detector`.
            assume_straight_pages: Whether boxes are upright, (N, 5), else quads, (N, 5, 2); as in the OCRPredictor.
            **overrides: Request parameters of every call, such as `box_thresh=0.6`.
        """
        self.assume_straight_pages = assume_straight_pages
        self._detector = detector
        self._overrides = overrides

    def __call__(self, pages: Sequence[NDArray[np.uint8]], return_maps: bool = False, **_: Any) -> list[Boxes]:
        """The boxes of each page; see `relative_boxes`.

        Args:
            pages: uint8 (H, W, 3) RGB each.
            return_maps: Must be false, because a server returns no segmentation maps.

        Raises:
            InvalidInputError: A page is not valid, or `return_maps` is true.
        """
        if return_maps:
            raise InvalidInputError(
                "return_maps=True asks for segmentation maps, which a server does not return; make the OCRPredictor "
                "without detect_orientation and straighten_pages"
            )
        found = [self._detector.detect(page, **self._overrides) for page in pages]
        return [relative_boxes(one, straight=self.assume_straight_pages) for one in found]

    def by_class(self, pages: Sequence[NDArray[np.uint8]], name: str = "words") -> list[dict[str, Boxes]]:
        """The same in docTR's form: one dictionary per page, boxes by class name."""
        return [{name: boxes} for boxes in self(pages)]


def relative_boxes(found: Detections, *, straight: bool) -> Boxes:
    """Boxes relative to the page's size, from 0 to 1, each with its score.

    Args:
        found: Detections of a page.
        straight: Whether boxes are upright.

    Returns:
        float32 (N, 5): left, top, right, bottom, score; or (N, 5, 2): four corners and (score, score).
    """
    points = np.clip(found.quads / np.array([found.width, found.height], np.float32), 0, 1)
    if straight:
        return np.concatenate([points.min(axis=1), points.max(axis=1), found.scores[:, None]], axis=1)
    return np.concatenate([points, np.repeat(found.scores[:, None, None], 2, axis=2)], axis=1)
