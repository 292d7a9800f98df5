# SPDX-License-Identifier: Apache-2.0
"""The pages of the section `reading`: what they say and where."""

import numpy as np
import pytest

from ocdserve.perf.inputs.pages_to_read import pages_to_read


def test_there_are_lines_in_two_scripts_and_every_15_degrees() -> None:
    pytest.importorskip("matplotlib_fontja")
    by_name = {data.name: data.images for data in pages_to_read()}
    assert {name: len(images) for name, images in by_name.items()} == {
        "drawn Latin lines": 5,
        "drawn Chinese lines": 5,
        "drawn rotated lines": 24,
    }
    assert [image.name for image in by_name["drawn rotated lines"][:3]] == ["turned 0°", "turned 15°", "turned 30°"]
    for image in (images[-1] for images in by_name.values()):
        assert len(image.truth.texts) == len(image.truth.polygons) >= 9
        assert all(image.truth.texts) and not any(image.truth.ignored)


def test_quads_begin_at_the_start_of_the_text_with_a_margin_of_a_fifth_of_the_font_size() -> None:
    by_angle = {image.name: image.truth for data in pages_to_read() for image in data.images}
    # A font of 24 pixels: its ink of at most 24 pixels in height has 4.8 around it.
    for name, direction in (("turned 0°", (1, 0)), ("turned 90°", (0, -1)), ("turned 180°", (-1, 0))):
        for quad in by_angle[name].polygons:
            along, down = quad[1] - quad[0], quad[3] - quad[0]
            assert along / np.hypot(*along) == pytest.approx(direction)
            assert 9.6 + 15 < np.hypot(*down) < 9.6 + 26
