# SPDX-License-Identifier: Apache-2.0
"""The drawn maps hold what their names say."""

import cv2
import numpy as np
import pytest

from ocdserve.backend import Detector
from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs.maps import (
    PARAMS,
    compute_maps,
    dense_map,
    empty_map,
    fixed_policy,
    generated,
    many_components,
    network_maps,
    noise_map,
    page,
)
from ocdserve.perf.inputs.pictures import receipt


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


def test_cases_are_the_same_in_every_run() -> None:
    first, second = list(generated(90, (96, 160))), list(generated(90, (96, 160)))
    assert len(first) == len({case.name for case in first}) == 90
    for one, other in zip(first, second, strict=True):
        assert (one.name, one.frame, one.params) == (other.name, other.frame, other.params)
        np.testing.assert_array_equal(one.probability, other.probability)
    assert {str(case.probability.dtype) for case in generated(100, (96, 160))} == {"uint8", "float32"}


def test_shapes_and_pages_are_always_complete() -> None:
    names = [case.name for case in generated(1, (96, 160))]
    assert len(names) == 81
    assert names[0] == "shape empty, parameters 0"
    assert names[-1] == "dense page, float32"


def test_a_page_of_components_has_as_many_as_it_says() -> None:
    levels = many_components(736, 1280, side=4, gap=5)
    rows, columns = np.count_nonzero(levels[:, 0]) / 4, np.count_nonzero(levels[0]) / 4
    assert rows * columns > 10_000


def test_an_unknown_kind_of_page_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="a page is one of sparse, dense; got 'blank'"):
        page("blank", (10, 10))


def test_the_networks_maps_carry_frame_parameters_and_group() -> None:
    detector = Detector.load()
    (case,) = network_maps(detector, [("receipt", receipt().png())], "paper")
    assert (case.name, case.group, case.params) == ("receipt", "paper", detector.spec.postprocess)
    assert case.frame.source == (1080, 720)
    assert case.probability.shape == case.frame.network
    assert 0 < (case.probability > 76).mean() < 0.3


def test_maps_of_one_size_have_the_size_of_the_policy() -> None:
    (case,) = compute_maps([("receipt", receipt().png())], fixed_policy((320, 192)))
    assert (case.probability.shape, case.frame.network, case.params) == ((320, 192), (320, 192), PARAMS)
