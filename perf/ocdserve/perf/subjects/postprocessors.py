# SPDX-License-Identifier: Apache-2.0
"""Ways to get from a probability map to boxes: ours, and those of others, each called as its library calls it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import PostprocessParams
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs.maps import NamedMap
from ocdserve.perf.series.measurement import OURS
from ocdserve.perf.subjects.baseline import baseline_postprocess

PLAIN = "plain loop"
RAPIDOCR = "RapidOCR"
ONNXTR = "OnnxTR"

# Finds quads (N, 4, 2) in source pixels; what it needs of the map in another form is made before.
Call = Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class Rival:
    """One way.

    Attributes:
        name: What it is called.
        same_boxes: Whether its rules are ours, so that it must find exactly our boxes.
        prepare: A map and parameters to the call that is timed; raises ImportError where it is not installed.
    """

    name: str
    same_boxes: bool
    prepare: Callable[[NamedMap, PostprocessParams], Call]

    def available(self, map_: NamedMap, params: PostprocessParams) -> str | None:
        """Why it cannot be measured here; None where it can."""
        try:
            self.prepare(map_, params)
        except ImportError as error:
            return f"not installed: {error}"
        except InvalidInputError as error:
            return str(error)
        return None


def _ours(map_: NamedMap, params: PostprocessParams) -> Call:
    return lambda: postprocess(map_.probability, map_.frame, params).quads


def _plain(map_: NamedMap, params: PostprocessParams) -> Call:
    return lambda: baseline_postprocess(map_.probability, map_.frame, params).quads


def _rapidocr(map_: NamedMap, params: PostprocessParams) -> Call:
    from rapidocr.ch_ppocr_det.utils import DBPostProcess

    if map_.frame.content != map_.frame.network:
        raise InvalidInputError("RapidOCR's post-processing knows no padding; the detector must not letterbox")
    process = DBPostProcess(
        thresh=params.thresh,
        box_thresh=params.box_thresh,
        max_candidates=params.max_candidates,
        unclip_ratio=params.unclip_ratio,
        use_dilation=params.dilation,
    )
    batch = _as_float(map_.probability)[None, None]
    return lambda: np.asarray(process(batch, map_.frame.source)[0], np.float32).reshape(-1, 4, 2)


def _onnxtr(map_: NamedMap, params: PostprocessParams) -> Call:
    from onnxtr.models.detection.postprocessor.base import GeneralDetectionPostProcessor

    process = GeneralDetectionPostProcessor(params.thresh, params.box_thresh, assume_straight_pages=False)
    process.unclip_ratio = params.unclip_ratio
    batch = _as_float(map_.probability)[None, :, :, None]
    # It gives shares of the map's sides.
    sides = np.array(map_.frame.network[::-1]) * np.array(map_.frame.scale)
    return lambda: np.asarray(process(batch)[0][0][:, :4] * sides, np.float32).reshape(-1, 4, 2)


def _as_float(probability: NDArray[Any]) -> NDArray[np.float32]:
    if probability.dtype == np.uint8:
        return probability.astype(np.float32) / np.float32(255)
    return probability.astype(np.float32)


# Ours first. RapidOCR takes the first candidates instead of the best, rounds to whole pixels and drops what is at most
# 3 wide. OnnxTR's, taken over from docTR, opens the mask instead of dilating it, leaves holes out, scores the contour
# instead of its rectangle and grows by a slightly larger area.
RIVALS: tuple[Rival, ...] = (
    Rival(OURS, True, _ours),
    Rival(PLAIN, True, _plain),
    Rival(RAPIDOCR, False, _rapidocr),
    Rival(ONNXTR, False, _onnxtr),
)
