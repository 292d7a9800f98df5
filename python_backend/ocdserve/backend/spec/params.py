# SPDX-License-Identifier: Apache-2.0
"""Parameters of the post-processing."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from ocdserve.contract import POSTPROCESS_PARAMETERS, InvalidInputError, RequestParameters

Mode = Literal["default", "tao"]
Unclip = Literal["exact", "analytic"]
# What NVIDIA TAO takes where a spec does not name it.
TAO_BOX_THRESH = 0.55


def _default(name: str) -> Any:
    return POSTPROCESS_PARAMETERS[name].default


@dataclass(frozen=True)
class PostprocessParams:
    """Parameters of the post-processing; `ocdserve.contract.PARAMETERS` says what those of requests mean.

    Attributes:
        mode: `default`, or `tao` for exactly the rules of NVIDIA TAO: the first `max_candidates` contours
            in OpenCV's order instead of the best scored, corners rounded to whole network pixels, then truncated to
            whole source pixels, contour order kept.
        thresh: A pixel is text when its probability exceeds this.
        box_thresh: Lowest mean probability inside a region's rectangle; with `polygons`, inside its contour.
        unclip_ratio: Regions grow by area * unclip_ratio / perimeter.
        max_candidates: Most detections (`default`) or contours (`tao`) of an image, or of each tile.
        min_size: Shortest side of a region's rectangle in network pixels; 2 more after growing.
        dilation: Whether the thresholded map is dilated by 2 x 2 pixels first.
        polygons: Whether to compute the polygon of each detection.
        unclip: How the rectangles grow: `exact` as in the original, by Clipper on whole pixels with round joins and
            another smallest rectangle around that; `analytic` by moving the sides, which is cheaper and differs by
            about a pixel.

    Raises:
        InvalidInputError: A field is out of its range; the message names it.
    """

    mode: Mode = "default"
    thresh: float = _default("thresh")
    box_thresh: float = _default("box_thresh")
    unclip_ratio: float = _default("unclip_ratio")
    max_candidates: int = _default("max_candidates")
    min_size: float = _default("min_size")
    dilation: bool = False
    polygons: bool = _default("polygons")
    unclip: Unclip = "exact"

    def __post_init__(self) -> None:
        for name, known in (("mode", get_args(Mode)), ("unclip", get_args(Unclip))):
            if (value := getattr(self, name)) not in known:
                raise InvalidInputError(f"postprocess.{name} must be one of {', '.join(known)}; got {value!r}")
        if self.mode == "tao" and self.unclip != "exact":
            raise InvalidInputError(f"postprocess.unclip must be exact in mode tao; got {self.unclip!r}")
        if not isinstance(self.dilation, bool):
            raise InvalidInputError(f"postprocess.dilation must be true or false; got {self.dilation!r}")
        for name, spec in POSTPROCESS_PARAMETERS.items():
            value = getattr(self, name)
            if not spec.accepts(value):
                raise InvalidInputError(f"postprocess.{name} must be {spec.rule}; got {value!r}")
            object.__setattr__(self, name, spec.type(value))

    def request_defaults(self) -> dict[str, Any]:
        """The values of the request parameters for a request that sets none."""
        return {name: getattr(self, name) for name in POSTPROCESS_PARAMETERS} | {"polygons": False}

    def overridden(self, request: RequestParameters) -> "PostprocessParams":
        """These parameters with the request's values; polygons only if the request asks for them."""
        merged = object.__new__(type(self))
        # Both have been validated.
        given = {name: value for name, value in request.given().items() if name in POSTPROCESS_PARAMETERS}
        vars(merged).update({**vars(self), "polygons": False, **given})
        return merged
