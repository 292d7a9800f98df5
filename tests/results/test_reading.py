# SPDX-License-Identifier: Apache-2.0
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections
from ocdserve.results.reading import Line, Reading, Word

# Two rows of a receipt, the price of the first one detected first.
QUADS = np.array(
    [
        [[50, 2], [90, 2], [90, 12], [50, 12]],
        [[0, 0], [40, 0], [40, 10], [0, 10]],
        [[0, 20], [30, 20], [30, 30], [0, 30]],
    ],
    np.float32,
)
SCORES = np.array([0.75, 0.5, 0.25], np.float32)
TEXT_SCORES = np.array([0.875, 0.75, 0.625], np.float32)
WORDS = (
    (Word("4.20", 0.875, QUADS[0]),),
    (Word("Green", 0.75, QUADS[1] * 0.5), Word("tea", 0.5, QUADS[1])),
    (Word("Total", 0.625, QUADS[2]),),
)


def reading(*, words: bool = True, **fields: Any) -> Reading:
    texts = ("4.20", "Green tea", "Total")
    found = WORDS if words else None
    return Reading(QUADS, SCORES, 100, 50, texts=texts, text_scores=TEXT_SCORES, words=found, **fields)


def columns_of(read: Reading) -> list[tuple[str, float, float, tuple[str, ...]]]:
    return [(line.text, line.text_score, line.score, tuple(word.text for word in line.words or ())) for line in read]


ROWS = [
    ("4.20", 0.875, 0.75, ("4.20",)),
    ("Green tea", 0.75, 0.5, ("Green", "tea")),
    ("Total", 0.625, 0.25, ("Total",)),
]


def test_a_reading_is_short_in_text_and_iterates_over_its_lines() -> None:
    assert repr(reading()) == "Reading(3 in 100x50 pixels, scores 0.75 to 0.25)"
    line = next(iter(reading()))
    assert isinstance(line, Line)
    assert (line.quad.tolist(), line.score, line.polygon) == (QUADS[0].tolist(), 0.75, None)
    assert (line.text, line.text_score, line.words) == ("4.20", 0.875, WORDS[0])
    assert next(iter(reading(words=False))).words is None


def test_the_text_has_rows_on_lines_of_their_own() -> None:
    assert reading().text == "Green tea 4.20\nTotal"
    assert reading().take([]).text == ""


def test_rows_without_text_are_left_out() -> None:
    read = Reading(QUADS, SCORES, 100, 50, texts=("", "", "Total"), text_scores=TEXT_SCORES)
    assert read.text == "Total"
    assert read.merged(read.lines()).texts == ("", "Total")
    assert read.merged([np.array([0, 2])]).texts == ("Total",)


def test_columns_are_read_one_after_the_other_from_either_side() -> None:
    quads = np.array([[[x, y], [x + 40, y], [x + 40, y + 10], [x, y + 10]] for y in (0, 14) for x in (0, 60)])
    scores = np.ones(4, np.float32)
    read = Reading(quads.astype(np.float32), scores, 100, 50, texts=tuple("ABCD"), text_scores=scores)
    assert read.to_text() == "A B\nC D"
    assert read.to_text(columns=True) == "A\nC\nB\nD"
    assert read.to_text(columns="right-to-left") == "B\nD\nA\nC"
    assert read.reading_order(columns="right-to-left").texts == ("B", "D", "A", "C")


def test_columns_of_a_vertical_page_are_read_from_the_right() -> None:
    quads = np.array([[[x, 0], [x + 10, 0], [x + 10, 80], [x, 80]] for x in (0, 14, 28)], np.float32)
    scores = np.ones(3, np.float32)
    read = Reading(quads, scores, 100, 100, texts=("三", "二", "一"), text_scores=scores)
    assert read.to_text(columns="right-to-left") == "一\n二\n三"


@given(st.lists(st.integers(0, 2), max_size=6))
def test_texts_stay_with_their_quads(indices: list[int]) -> None:
    taken = reading().take(indices)
    assert type(taken) is Reading
    assert columns_of(taken) == [ROWS[index] for index in indices]
    assert taken.quads.tolist() == [QUADS[index].tolist() for index in indices]


@given(st.permutations(range(3)))
def test_the_text_does_not_depend_on_the_order(order: list[int]) -> None:
    shuffled = reading().take(order)
    assert shuffled.text == "Green tea 4.20\nTotal"
    assert columns_of(shuffled.reading_order()) == [ROWS[1], ROWS[0], ROWS[2]]


@given(st.integers(0, 3), st.booleans())
def test_parts_are_joined_with_their_texts(place: int, words: bool) -> None:
    whole = reading(words=words)
    first, *others = (whole.take(part) for part in (range(place), range(place, 3), []))
    joined = first.joined(others)
    assert columns_of(joined) == columns_of(whole)
    assert joined.quads.tolist() == QUADS.tolist()
    assert (joined.words is None) == (not words)


def test_joined_parts_have_words_if_all_parts_have() -> None:
    with_words, without = reading(), reading(words=False)
    assert without.take([]).joined([with_words]).words == with_words.words
    for first, second in ((with_words, without), (without, with_words), (with_words.take([]), without)):
        joined = first.joined([second])
        assert joined.words is None
        assert len(joined.to_dict()["detections"]) == len(first) + len(second)


def test_points_are_moved_with_those_of_words_and_polygons() -> None:
    moved = reading(polygons=tuple(QUADS)).moved(lambda points: points + np.float32([1, 2]))
    assert moved.words is not None and moved.polygons is not None
    for points in (moved.quads[0], moved.polygons[0], moved.words[0][0].quad):
        assert points.tolist() == [[51, 4], [91, 4], [91, 14], [51, 14]]


def test_a_filter_compares_both_scores() -> None:
    assert reading().filter(min_text_score=0.75).texts == ("4.20", "Green tea")
    assert reading().filter(min_text_score=0.75, min_score=0.6).texts == ("4.20",)
    assert reading().filter(max_width=35).texts == ("Total",)
    assert reading().filter().texts == reading().texts


def test_words_follow_an_image_to_another_size() -> None:
    scaled = reading().scaled(200, 25)
    assert scaled.texts == reading().texts
    assert scaled.quads[0].tolist() == [[100, 1], [180, 1], [180, 6], [100, 6]]
    assert scaled.words is not None
    assert scaled.words[0][0].quad.tolist() == scaled.quads[0].tolist()
    assert reading(words=False).scaled(200, 25).words is None


def test_merged_lines_join_texts_words_and_scores() -> None:
    read = reading().merged(reading().lines())
    assert read.texts == ("Green tea 4.20", "Total")
    # Of 9 and 4 characters: (9 * 0.75 + 4 * 0.875) / 13.
    assert read.text_scores.tolist() == [pytest.approx(10.25 / 13), 0.625]
    assert read.words is not None
    assert [[word.text for word in words] for words in read.words] == [["Green", "tea", "4.20"], ["Total"]]
    assert reading(words=False).merged(reading().lines()).words is None


def test_json_has_texts_and_words() -> None:
    assert json.loads(reading(page=2, request_id="a-1").take([0]).to_json()) == {
        "page": 2,
        "width": 100,
        "height": 50,
        "request_id": "a-1",
        "detections": [
            {
                "quad": QUADS[0].tolist(),
                "score": 0.75,
                "text": "4.20",
                "text_score": 0.875,
                "words": [{"text": "4.20", "score": 0.875, "quad": QUADS[0].tolist()}],
            }
        ],
    }
    assert "words" not in reading(words=False).to_dict()["detections"][0]


NUMBERS = st.floats(-1e6, 1e6, width=32)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=4, max_size=4).map(lambda quad: np.array(quad, np.float32))
WORD = st.builds(Word, st.text(), st.floats(0, 1, width=32), POINTS)
LINE = st.tuples(POINTS, NUMBERS, st.text(), st.floats(0, 1, width=32), st.lists(WORD, max_size=2).map(tuple))


@settings(max_examples=30, deadline=None)
@given(st.lists(LINE, max_size=4), st.booleans())
def test_json_round_trips_exactly(lines: list[tuple[Any, ...]], with_words: bool) -> None:
    quads, scores, texts, text_scores, words = zip(*lines, strict=True) if lines else ((),) * 5
    before = Reading(
        np.array(quads, np.float32).reshape(-1, 4, 2),
        np.array(scores, np.float32),
        640,
        480,
        latency_ms=12.5,
        texts=texts,
        text_scores=np.array(text_scores, np.float32),
        words=words if with_words and lines else None,
    )
    after = Reading.from_json(before.to_json())
    assert (after.quads.tobytes(), after.scores.tobytes()) == (before.quads.tobytes(), before.scores.tobytes())
    assert (after.texts, after.text_scores.tobytes()) == (before.texts, before.text_scores.tobytes())
    assert (after.words is None) == (before.words is None)
    for one, other in zip(after.words or (), before.words or (), strict=True):
        assert [(word.text, word.score, word.quad.tobytes()) for word in one] == [
            (word.text, word.score, word.quad.tobytes()) for word in other
        ]
    assert (after.width, after.height, after.latency_ms) == (640, 480, 12.5)


def test_the_json_of_a_reading_is_that_of_detections_too() -> None:
    found = Detections.from_json(reading().to_json())
    assert type(found) is Detections
    assert found.quads.tolist() == QUADS.tolist()


ITEM = '"quad": [1, 2, 3, 4, 5, 6, 7, 8], "score": 1'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON: "),
        ("[]", "not the JSON of detections (list indices must be integers"),
        (f'{{"width": 1, "height": 1, "detections": [{{{ITEM}}}]}}', "not the JSON of a reading (no 'text')"),
        (f'{{"width": 1, "height": 1, "detections": [{{{ITEM}, "text": 3, "text_score": 1}}]}}', "a text is int"),
        (
            f'{{"width": 1, "height": 1, "detections": [{{{ITEM}, "text": "", "text_score": 1, "words": []}}, '
            f'{{{ITEM}, "text": "", "text_score": 1}}]}}',
            "1 of 2 detections have words; all or none must",
        ),
        (
            f'{{"width": 1, "height": 1, "detections": [{{{ITEM}, "text": "", "text_score": 1, '
            '"words": [{"text": "a", "score": 1, "quad": [1]}]}]}',
            "cannot reshape",
        ),
    ],
)
def test_other_text_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        Reading.from_json(text)
    assert reason in str(error.value)


def test_exchange_formats_hold_the_texts() -> None:
    rows = reading().to_rows("a.png")
    assert [(row["image"], row["text"], row["text_score"], row["x1"]) for row in rows] == [
        ("a.png", "4.20", 0.875, 50.0),
        ("a.png", "Green tea", 0.75, 0.0),
        ("a.png", "Total", 0.625, 0.0),
    ]
    assert reading().to_icdar().splitlines()[1] == "0,0,40,0,40,10,0,10,Green tea"
    assert reading().to_icdar(["a", "b", "c"]).splitlines()[1] == "0,0,40,0,40,10,0,10,b"
    shapes = reading().to_labelme("a.png", label="line")["shapes"]
    assert [(shape["label"], shape["description"]) for shape in shapes][:2] == [("line", "4.20"), ("line", "Green tea")]
