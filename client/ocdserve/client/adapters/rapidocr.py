# SPDX-License-Identifier: Apache-2.0
"""A detector for RapidOCR: `pip install 'ocdserve[rapidocr]'`.

>>> from rapidocr import RapidOCR
>>> from ocdserve.client import TextDetector
>>> engine = use_detector(RapidOCR(), TextDetector("grpc://127.0.0.1:8001"))  # doctest: +SKIP
>>> engine("receipt.jpg").txts  # doctest: +SKIP
"""

from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdserve.client.adapters import AnyDetector
from ocdserve.contract import InvalidInputError, UnavailableError, install_command

__all__ = ["RapidOcrDetector", "use_detector"]

Engine = TypeVar("Engine")


@dataclass
class _Thresholds:
    """Set by RapidOCR when a call names `box_thresh` or `unclip_ratio`; they apply from then on."""

    box_thresh: float | None = None
    unclip_ratio: float | None = None


class RapidOcrDetector:
    """Replaces RapidOCR's own `TextDetector`; boxes and scores are in reading order."""

    def __init__(self, detector: AnyDetector, **overrides: Any) -> None:
        """Wrap a detector.

        Args:
            detector: A `TextDetector` or `Detector`.
            **overrides: Request parameters of every call, such as `box_thresh=0.6`.

        Raises:
            UnavailableError: RapidOCR is not installed.
        """
        try:
            from rapidocr.ch_ppocr_det.utils import TextDetOutput
        except ModuleNotFoundError as error:
            raise UnavailableError(
                f"RapidOCR of version 3 is not installed: {install_command('ocdserve[rapidocr]')}"
            ) from error
        self.postprocess_op = _Thresholds()
        self._output = TextDetOutput
        self._detector = detector
        self._overrides = overrides

    def __call__(self, img: NDArray[np.uint8]) -> Any:
        """Detect in uint8 (H, W, 3) BGR, RapidOCR's order; returns a `TextDetOutput`, empty if there is no text."""
        begin = perf_counter()
        given = {name: value for name, value in vars(self.postprocess_op).items() if value is not None}
        found = self._detector.detect(np.ascontiguousarray(img[..., ::-1]), **self._overrides | given).reading_order()
        if not len(found):
            return self._output()
        return self._output(img, found.quads, found.scores.tolist(), elapse=perf_counter() - begin)


def use_detector(engine: Engine, detector: AnyDetector, **overrides: Any) -> Engine:
    """Make a `RapidOCR` use this detector from now on; its own is not loaded.

    Args:
        engine: A `rapidocr.RapidOCR`.
        detector: A `TextDetector` or `Detector`.
        **overrides: Request parameters of every call.

    Returns:
        The engine.

    Raises:
        InvalidInputError: `engine` is not a RapidOCR of version 3.
        UnavailableError: RapidOCR is not installed.
    """
    if not hasattr(engine, "text_det"):
        raise InvalidInputError(
            f"engine must be a RapidOCR of version 3 (it has `text_det`); got {type(engine).__name__}"
        )
    engine.text_det = RapidOcrDetector(detector, **overrides)
    return engine
