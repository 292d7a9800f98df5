# SPDX-License-Identifier: Apache-2.0
"""Drawn pages whose texts are known: lines in Latin and Chinese in several sizes, and lines in every direction."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ocdserve.perf.inputs.conditions import Condition
from ocdserve.perf.inputs.data_sets import DataSet, LabelledImage

_SIZES = (14, 18, 24, 32, 44)
_DEGREES = 15
# Annotators leave a margin around the ink; in font sizes.
_MARGIN = 0.2


def pages_to_read() -> tuple[DataSet, ...]:
    """A data set per kind of page; those whose fonts are not installed are left out."""
    kinds = {
        "drawn Latin lines": [Condition("lines", f"{size} px", size, script="Latin lines") for size in _SIZES],
        "drawn Chinese lines": [Condition("Chinese", f"{size} px", size, script="Chinese lines") for size in _SIZES],
        "drawn rotated lines": [
            Condition("turned", f"{angle}°", angle=angle, script="Latin lines") for angle in range(0, 360, _DEGREES)
        ],
    }
    return tuple(
        DataSet(name, tuple(map(_drawn, pages)))
        for name, pages in kinds.items()
        if not any(one.lacks() for one in pages)
    )


def _drawn(condition: Condition) -> LabelledImage:
    page = condition.draw(0)
    quads = tuple(_with_margin(quad, _MARGIN * condition.size) for quad in page.truth.polygons)
    return replace(page, name=condition.name, truth=replace(page.truth, polygons=quads))


def _with_margin(quad: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """A rectangle (4, 2), clockwise from its top left, with its sides so many pixels further out."""
    along, down = (margin * side / np.hypot(*side) for side in (quad[1] - quad[0], quad[3] - quad[0]))
    return np.asarray(quad + np.array([-along - down, along - down, along + down, down - along]), np.float64)
