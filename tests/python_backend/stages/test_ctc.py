# SPDX-License-Identifier: Apache-2.0
"""CTC decoding, against a reference that shares no code with it."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.backend.kernels.cpu.library import load
from ocdserve.backend.spec.recogniser_spec import RecogniserNetworkSpec, RecogniserSpec
from ocdserve.backend.stages.ctc import Character, Line, best_steps, greedy, words
from ocdserve.contract import UnavailableError

LETTERS = ("a", "b", "ç", " ")
SPEC = RecogniserSpec(characters=LETTERS, space_threshold=None)


def by_hand(steps: list[tuple[int, float]], blank: int) -> list[tuple[str, float, int, int]]:
    """The characters of a best path: runs of one class, without those of the blank."""
    found, at = [], 0
    for index, run in itertools.groupby(steps, key=lambda step: step[0]):
        members = list(run)
        if index != blank:
            letters = (*LETTERS[:blank], "blank", *LETTERS[blank:])
            found.append((letters[index], members[0][1], at, at + len(members) - 1))
        at += len(members)
    return found


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.25, 0.5, 0.75, 1.0])), max_size=40),
    st.integers(0, 4),
)
def test_runs_of_a_class_are_a_character_and_those_of_the_blank_are_none(
    steps: list[tuple[int, float]], blank: int
) -> None:
    classes = np.array([index for index, _ in steps], np.int32)
    read = greedy(classes, np.array([score for _, score in steps], np.float32), LETTERS, blank)
    expected = by_hand(steps, blank)
    assert [tuple(each) for each in read.characters] == expected
    assert read.text == "".join(text for text, *_ in expected)
    scores = [score for text, score, *_ in expected if text != " "]
    assert read.score == (sum(scores) / len(scores) if scores else 0.0)


def test_the_best_class_of_each_step_and_its_probability() -> None:
    scores = np.array([[0.1, 0.6, 0.1, 0.1, 0.1], [0.5, 0, 0, 0, 0.5], [0, 0, 0, 1, 0]], np.float32)
    classes, probabilities = best_steps(scores, SPEC)
    assert (classes.dtype, probabilities.dtype) == (np.int32, np.float32)
    assert classes.tolist() == [1, 0, 3]  # of equals the first
    assert probabilities.tolist() == pytest.approx([0.6, 0.5, 1])


@pytest.mark.parametrize("blank", [0, 700])
def test_compiled_code_finds_the_steps_that_numpy_finds(rng: np.random.Generator, blank: int) -> None:
    if load() is None:
        pytest.skip("there is no compiled library")
    characters = (*map(str, range(699)), " ")
    spec = RecogniserSpec(characters=characters, network=RecogniserNetworkSpec(blank=blank), space_threshold=0.1)
    for sharpness in (0, 1, 4, 12):
        scores = np.exp(sharpness * rng.normal(size=(200, 701))).astype(np.float32)
        # Blanks and spaces as likely as all others together, and a little more or less; and equal ones.
        scores[::3, blank] = scores[::3].sum(axis=1) * rng.uniform(0.9, 1.2, len(scores[::3]))
        scores[::4, 700 - (blank == 700)] = scores[::4].sum(axis=1) * rng.uniform(0, 1.5, len(scores[::4]))
        scores[::5, 400:410] = scores[::5].max(axis=1, keepdims=True)
        scores /= scores.sum(axis=1, keepdims=True)
        found, expected = best_steps(scores, spec), best_steps(scores, spec, compiled=False)
        assert found.classes.dtype == np.int32
        assert np.array_equal(found.classes, expected.classes)
        assert np.array_equal(found.probabilities, expected.probabilities)


def test_logits_give_the_probabilities_of_their_softmax(rng: np.random.Generator) -> None:
    logits = rng.normal(0, 5, (30, 5)).astype(np.float32)
    exponentials = np.exp(logits.astype(np.float64))
    softmax = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    spec = replace(SPEC, space_threshold=0.1)
    classes, probabilities = best_steps(logits, replace(spec, network=RecogniserNetworkSpec(scores="logits")))
    expected = best_steps(softmax, spec)
    assert classes.tolist() == expected.classes.tolist()
    np.testing.assert_allclose(probabilities, expected.probabilities, rtol=1e-5)


def test_a_space_is_read_where_only_the_blank_is_likelier_and_it_exceeds_the_threshold() -> None:
    scores = np.array(
        [
            [0.8, 0, 0.05, 0, 0.15],
            [0.9, 0, 0, 0, 0.1],  # not above the threshold
            [0, 0.8, 0, 0, 0.2],  # the blank is not the likeliest
            [0.3, 0, 0, 0, 0.7],
        ],
        np.float32,
    )
    classes, probabilities = best_steps(scores, replace(SPEC, space_threshold=0.1))
    assert classes.tolist() == [4, 0, 1, 4]
    assert probabilities.tolist() == pytest.approx([0.15, 0.9, 0.8, 0.7])
    # Blanks may be any class; the classes of the characters after it follow.
    last = replace(SPEC, space_threshold=0.1, network=RecogniserNetworkSpec(blank=4))
    assert last.space == (3, 0.1)
    assert best_steps(np.array([[0, 0, 0, 0.2, 0.8]], np.float32), last).classes.tolist() == [3]
    assert replace(SPEC, characters=("a",), space_threshold=0.1).space is None


@pytest.mark.parametrize("shape", [(3, 4), (3, 6), (5,), (1, 3, 5)])
def test_scores_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    given_shape = " x ".join(map(str, shape))
    with pytest.raises(
        UnavailableError, match=f"returned scores of {given_shape}; they must be of T x 5, one class per char"
    ):
        best_steps(np.zeros(shape, np.float32), SPEC)


def line(*characters: tuple[str, int]) -> Line:
    """A line of characters at time steps."""
    return Line(
        "".join(text for text, _ in characters), 1, tuple(Character(text, 0.5, at, at) for text, at in characters)
    )


def corners(left: float, right: float) -> list[Any]:
    return [[left, 0], [right, 0], [right, 48], [left, 48]]


def test_words_reach_towards_the_spaces_beside_them() -> None:
    # Steps of 8 pixels; the usual distance of characters is 2 steps, and centres are a quarter of a step earlier.
    found = words(line(("a", 1), ("b", 3), (" ", 5), ("a", 7), ("b", 9)), 8, 100, 48)
    assert [(text, score) for text, score, _ in found] == [("ab", 0.5), ("ab", 0.5)]
    np.testing.assert_allclose([place for *_, place in found], [corners(0.4, 35.6), corners(48.4, 83.6)])


def test_words_stay_within_the_line_and_apart_from_each_other() -> None:
    found = words(line(("a", 0), ("b", 4), ("a", 8), (" ", 9), ("b", 10)), 8, 84, 48)
    np.testing.assert_allclose([place[:2, 0] for _, _, place in found], [[0, 70.8], [77.2, 84]])


def test_words_do_not_reach_far_into_a_wide_gap() -> None:
    found = words(line(("a", 1), ("b", 3), ("a", 5), (" ", 20), ("b", 35), ("a", 37), ("b", 39)), 8, 400, 48)
    # 0.8 of the usual distance, 16 pixels, not 0.6 of 120.
    np.testing.assert_allclose([place[:2, 0] for _, _, place in found], [[0.4, 54.8], [269.2, 323.6]])


def test_each_character_of_a_script_without_spaces_is_a_word() -> None:
    found = words(line(("出", 1), ("口", 3), ("A", 5), ("2", 7), ("。", 9), (" ", 11), ("駅", 13)), 8, 160, 48)
    assert [text for text, *_ in found] == ["出", "口", "A2", "。", "駅"]
    edges = [place[:2, 0] for *_, place in found]
    np.testing.assert_allclose(edges, [[0.4, 18], [18, 34], [34, 66], [66, 83.6], [96.4, 115.6]])


@pytest.mark.parametrize("spaces", [(), (" ",), (" ", " ")])
def test_a_line_without_letters_has_no_words(spaces: tuple[str, ...]) -> None:
    assert words(line(*((space, index) for index, space in enumerate(spaces))), 8, 40, 48) == []


def test_a_single_character_is_as_wide_as_the_line() -> None:
    ((text, _, place),) = words(line(("a", 2)), 8, 40, 48)
    assert (text, place.tolist()) == ("a", corners(0, 40))
