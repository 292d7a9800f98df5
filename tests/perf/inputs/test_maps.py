# SPDX-License-Identifier: Apache-2.0
"""The drawn maps hold what their names say."""

import cv2
import numpy as np

from ocdserve.perf.inputs.maps import dense_map, empty_map, noise_map


def test_the_dense_map_holds_as_many_regions_as_words() -> None:
    dense = dense_map()
    count, _ = cv2.connectedComponents((dense.probability > 0.3 * 255).astype(np.uint8))
    assert (dense.name, count - 1) == ("dense, 1000 words", 1000)
    assert dense.frame.network == dense.probability.shape == (1300, 1280)


def test_drawn_maps_are_the_same_each_time() -> None:
    assert np.array_equal(dense_map(2, 3).probability, dense_map(2, 3).probability)
    assert not np.array_equal(dense_map(2, 3, seed=1).probability, dense_map(2, 3, seed=2).probability)
    assert np.array_equal(noise_map().probability, noise_map().probability)


def test_a_tenth_of_the_noise_is_text_in_thousands_of_specks() -> None:
    text = (noise_map().probability > 0.3 * 255).astype(np.uint8)
    assert 0.09 < text.mean() < 0.11
    count, _ = cv2.connectedComponents(text)
    assert count > 5000


def test_nothing_is_in_the_empty_map() -> None:
    assert not empty_map().probability.any()
