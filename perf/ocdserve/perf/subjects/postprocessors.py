# SPDX-License-Identifier: Apache-2.0
"""Post-processors, from a probability map to boxes: ours, the baseline, and those of other libraries."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs.maps import Case
from ocdserve.perf.series.measurement import OURS
from ocdserve.perf.subjects.baseline import baseline_postprocess

BASELINE = "plain loop"
RAPIDOCR = "RapidOCR"
ONNXTR = "OnnxTR"

# Returns quads (N, 4, 2) in source pixels. Conversions of the map happen before the call.
Call = Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class Postprocessor:
    """A post-processor to measure.

    Attributes:
        name: Its name in results.
        same_boxes: Whether its rules are ours, so that it must find exactly our boxes.
        prepare: Returns the call to time; raises ImportError where the library is not installed, and
            InvalidInputError where it does not support the case.
    """

    name: str
    same_boxes: bool
    prepare: Callable[[Case], Call]

    def available(self, case: Case) -> str | None:
        """Why it cannot be measured on this case; None where it can."""
        try:
            self.prepare(case)
        except ImportError as error:
            return f"not installed: {error}"
        except InvalidInputError as error:
            return str(error)
        return None


def _ours(case: Case) -> Call:
    return lambda: postprocess(case.probability, case.frame, case.params).quads


def _baseline(case: Case) -> Call:
    return lambda: baseline_postprocess(case.probability, case.frame, case.params).quads


def _rapidocr(case: Case) -> Call:
    from rapidocr.ch_ppocr_det.utils import DBPostProcess

    frame, params = case.frame, case.params
    if frame.content != frame.network:
        raise InvalidInputError("RapidOCR's post-processing does not support padding; the detector must not letterbox")
    process = DBPostProcess(
        thresh=params.thresh,
        box_thresh=params.box_thresh,
        max_candidates=params.max_candidates,
        unclip_ratio=params.unclip_ratio,
        use_dilation=params.dilation,
    )
    batch = _as_float(case.probability)[None, None]
    return lambda: np.asarray(process(batch, frame.source)[0], np.float32).reshape(-1, 4, 2)


def _onnxtr(case: Case) -> Call:
    from onnxtr.models.detection.postprocessor.base import GeneralDetectionPostProcessor

    params = case.params
    process = GeneralDetectionPostProcessor(params.thresh, params.box_thresh, assume_straight_pages=False)
    process.unclip_ratio = params.unclip_ratio
    batch = _as_float(case.probability)[None, :, :, None]
    # It returns coordinates relative to the map's sides.
    sides = np.array(case.frame.network[::-1]) * np.array(case.frame.scale)
    return lambda: np.asarray(process(batch)[0][0][:, :4] * sides, np.float32).reshape(-1, 4, 2)


def _as_float(probability: NDArray[Any]) -> NDArray[np.float32]:
    if probability.dtype == np.uint8:
        return probability.astype(np.float32) / np.float32(255)
    return probability.astype(np.float32)


# Ours first. RapidOCR takes the first candidates instead of the best, rounds to whole pixels and drops boxes at most 3
# pixels wide. OnnxTR's, derived from docTR, opens the mask instead of dilating it, skips holes, scores the contour
# instead of its rectangle and grows by a slightly larger area.
POSTPROCESSORS: tuple[Postprocessor, ...] = (
    Postprocessor(OURS, True, _ours),
    Postprocessor(BASELINE, True, _baseline),
    Postprocessor(RAPIDOCR, False, _rapidocr),
    Postprocessor(ONNXTR, False, _onnxtr),
)
