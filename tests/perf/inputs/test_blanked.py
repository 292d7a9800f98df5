# SPDX-License-Identifier: Apache-2.0
"""Pages whose texts are painted over."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.perf.inputs.blanked import blanked
from ocdserve.perf.inputs.data_sets import LabelledImage

LEFT, RIGHT = (200, 180, 90), (30, 60, 120)


def page() -> tuple[LabelledImage, NDArray[np.uint8]]:
    """Two grounds with black bars for texts: one in each, one at the edge that is don't-care, and one without truth."""
    image = Image.new("RGB", (240, 160), LEFT)
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((120, 0, 239, 159), fill=RIGHT)
    for box in ((30, 30, 90, 44), (150, 30, 210, 44), (0, 70, 40, 80), (150, 120, 210, 134)):
        canvas.rectangle(box, fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    quads = [[[30, 30], [90, 30], [90, 44], [30, 44]], [[150, 30], [210, 30], [210, 44], [150, 44]]]
    quads += [[[-5, 70], [40, 70], [40, 80], [-5, 80]], [[400, 400], [420, 400], [420, 410], [400, 410]]]
    truth = Truth(tuple(np.array(quad, float) for quad in quads), (False, False, True, False))
    return LabelledImage("page.png", buffer.getvalue(), truth), np.asarray(image)


def test_texts_get_the_colour_of_their_ground_and_all_else_stays() -> None:
    image, before = page()
    found = blanked(image)
    with Image.open(io.BytesIO(found.encoded)) as opened:
        assert opened.format == "JPEG"
        after = np.asarray(opened.convert("RGB")).astype(int)
    assert (found.name, found.truth.polygons) == ("page.png", ())
    expected = before.astype(int)
    expected[:, :120], expected[:110, 120:] = LEFT, RIGHT
    # Without the columns near the edge of the two grounds, and the rows near what was not in the truth.
    for columns in (slice(0, 100), slice(140, 240)):
        assert np.abs(after - expected)[:110, columns].max() <= 8
    assert after[127, 180].max() < 20
