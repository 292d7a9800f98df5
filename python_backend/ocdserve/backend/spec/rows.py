# SPDX-License-Identifier: Apache-2.0
"""Structures that the compiled post-processing reads and writes on CPU and GPU; see postprocess.cuh."""

from typing import Any

import numpy as np

from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame

# An image's parameters.
IMAGE = np.dtype(
    [
        ("box_thresh", "f8"),
        ("unclip_ratio", "f8"),
        ("scale_x", "f8"),
        ("scale_y", "f8"),
        ("height", "i4"),
        ("width", "i4"),
        ("source_height", "i4"),
        ("source_width", "i4"),
        ("level", "i4"),
        ("thresh", "f4"),
        ("min_size", "f4"),
        ("min_grown_size", "f4"),
        ("dilate", "i4"),
        ("box_wanted", "i4"),
        ("analytic", "i4"),
    ],
    align=True,
)

# A detection. `root` names the region: its first pixel in raster order, y * width + x, plus one.
ROW = np.dtype([("quad", "f4", (4, 2)), ("score", "f4"), ("root", "i4"), ("state", "i4"), ("unused", "i4")])

# State of a row whose quad is in network pixels and still has to be grown; all other quads are in source pixels.
GROW_ON_HOST = 2

# The largest side of a map: hull.cuh has room for its convex hulls' vertices, and integers for products of coordinates.
LARGEST_SIDE = 4096


def image_record(frame: Frame, params: PostprocessParams) -> tuple[Any, ...]:
    """The fields of `IMAGE`; regions with polygons are scored afterwards, so none is dropped for its score."""
    return (
        0.0 if params.polygons else params.box_thresh,
        params.unclip_ratio,
        *frame.scale,
        *frame.network,
        *frame.source,
        int(params.thresh * 255),
        params.thresh,
        params.min_size,
        params.min_size + 2,
        params.dilation,
        params.mode == "default",
        params.unclip == "analytic",
    )
