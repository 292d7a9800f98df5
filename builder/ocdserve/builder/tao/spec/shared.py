# SPDX-License-Identifier: Apache-2.0
"""Sections shared by several actions."""

from dataclasses import dataclass, field

from ocdserve.builder.tao.spec.field import key

IMAGE_MODES = ("BGR", "RGB", "GRAY")


@dataclass(frozen=True)
class PostProcessingArgs:
    """Thresholds of the post-processing."""

    thresh: float = key(0.3, "probability above which a pixel is text", minimum=0, maximum=1)
    box_thresh: float = key(0.55, "lowest mean probability of a box", minimum=0, maximum=1)
    max_candidates: int = key(1000, "most regions of an image", minimum=1)
    unclip_ratio: float = key(1.5, "how far a region grows, in units of area over perimeter", minimum=0)


@dataclass(frozen=True)
class PostProcessing:
    """From a probability map to boxes."""

    type: str = key("SegDetectorRepresenter", "the only kind there is", choices=("SegDetectorRepresenter",))
    args: PostProcessingArgs = field(default_factory=PostProcessingArgs)


@dataclass(frozen=True)
class MetricArgs:
    """Options of the metric."""

    is_output_polygon: bool = key(False, "compare polygons instead of quads")


@dataclass(frozen=True)
class Metric:
    """How detections are compared with ground truth."""

    type: str = key("QuadMetric", "the only kind there is", choices=("QuadMetric",))
    args: MetricArgs = field(default_factory=MetricArgs)
