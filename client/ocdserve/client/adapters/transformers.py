# SPDX-License-Identifier: Apache-2.0
"""A detector with the interface of Hugging Face's `pipeline("object-detection")`; does not need transformers.

>>> from ocdserve.client import TextDetector
>>> detect = TextDetectionPipeline(TextDetector("grpc://127.0.0.1:8001"))
>>> detect("receipt.jpg", threshold=0.6)  # doctest: +SKIP
[{'score': 0.93, 'label': 'text', 'box': {'xmin': 10, 'ymin': 20, 'xmax': 50, 'ymax': 40}}]
"""

from typing import Any, TypedDict, overload

from ocdserve.client.adapters import AnyDetector
from ocdserve.results.detections import Detections

__all__ = ["Box", "Item", "TextDetectionPipeline", "items_of"]


class Box(TypedDict):
    """Bounds in whole pixels of the image."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class Item(TypedDict):
    """One detection."""

    score: float
    label: str
    box: Box


class TextDetectionPipeline:
    """Called with one image, returns a list; with a list of images, a list of lists. Best score first."""

    def __init__(self, detector: AnyDetector, *, label: str = "text", **overrides: Any) -> None:
        """Wrap a detector.

        Args:
            detector: A `TextDetector` or `Detector`.
            label: The label of every detection.
            **overrides: Request parameters of every call, such as `unclip_ratio=1.8`.
        """
        self._detector = detector
        self._label = label
        self._overrides = overrides

    @overload
    def __call__(self, inputs: list[Any], *, threshold: float | None = None, **_: Any) -> list[list[Item]]: ...
    @overload
    def __call__(self, inputs: Any, *, threshold: float | None = None, **_: Any) -> list[Item]: ...
    def __call__(self, inputs: Any, *, threshold: float | None = None, **_: Any) -> list[Item] | list[list[Item]]:
        """Detect.

        Args:
            inputs: Any image that the detector accepts (path, URL, Pillow image, pixels, bytes), or a list of them.
            threshold: Lowest score, 0 to 1; None: the detector's own.

        Raises:
            OcdserveError: As the detector's `detect`.
        """
        overrides = self._overrides if threshold is None else self._overrides | {"box_thresh": threshold}
        if isinstance(inputs, list):
            return [items_of(self._detector.detect(image, **overrides), self._label) for image in inputs]
        return items_of(self._detector.detect(inputs, **overrides), self._label)


def items_of(found: Detections, label: str = "text") -> list[Item]:
    """Score, label and upright bounds of each detection, clipped to the image."""
    items = []
    for quad, score in zip(found.quads, found.scores, strict=True):
        left, top = (max(0, int(value)) for value in quad.min(axis=0))
        right, bottom = (int(value) for value in quad.max(axis=0).clip(0, (found.width, found.height)))
        items.append(Item(score=float(score), label=label, box=Box(xmin=left, ymin=top, xmax=right, ymax=bottom)))
    return items
