# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.backend import PRESETS
from ocdserve.contract import (
    PARAMETERS,
    POSTPROCESS_PARAMETERS,
    READING_PARAMETERS,
    InvalidInputError,
    Limits,
    Overrides,
    ReadingOverrides,
    ReadingParameters,
    RequestParameters,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"

NUMBERS = ["thresh", "box_thresh", "unclip_ratio", "min_size"]


def test_the_parameters_are_those_of_the_design() -> None:
    ranges = {name: (spec.type, spec.minimum, spec.maximum) for name, spec in PARAMETERS.items()}
    assert ranges == {
        "thresh": (float, 0, 1),
        "box_thresh": (float, 0, 1),
        "unclip_ratio": (float, 0, 10),
        "max_candidates": (int, 1, 100_000),
        "min_size": (float, 0, 10_000),
        "polygons": (bool, 0, 1),
        "page": (int, 1, 10_000),
    }


def test_the_default_detector_has_the_contracts_defaults() -> None:
    defaults = {name: spec.default for name, spec in PARAMETERS.items()}
    assert defaults == {
        "thresh": 0.3,
        "box_thresh": 0.6,
        "unclip_ratio": 1.5,
        "max_candidates": 1000,
        "min_size": 3,
        "polygons": False,
        "page": 1,
    }
    assert defaults.pop("page") == 1
    assert {name: getattr(PRESETS["ppocr"].postprocess, name) for name in POSTPROCESS_PARAMETERS} == defaults


def test_the_documentation_lists_every_parameter_with_its_default() -> None:
    table = (
        PAGE.read_text("utf-8").partition("| request parameter | default | |\n|---|---|---|\n")[2].partition("\n\n")[0]
    )
    documented = dict(re.findall(r"^\| `(\w+)` \| (\S+) \| .+ \|$", table, re.MULTILINE))
    assert len(documented) == len(table.splitlines())
    as_text = {False: "false", True: "true"}
    assert documented == {
        name: as_text[spec.default] if spec.type is bool else f"{spec.default:g}" for name, spec in PARAMETERS.items()
    }


def test_type_checkers_know_the_same_keywords() -> None:
    assert get_type_hints(Overrides) == {name: spec.type for name, spec in PARAMETERS.items()}
    assert get_type_hints(ReadingOverrides) == {name: spec.type for name, spec in READING_PARAMETERS.items()}


class TestReading:
    def test_takes_the_parameters_of_detection_and_three_more(self) -> None:
        more = {name: spec for name, spec in READING_PARAMETERS.items() if name not in PARAMETERS}
        assert [*READING_PARAMETERS] == [*PARAMETERS, *more]
        assert {name: (spec.type, spec.minimum, spec.maximum, spec.default) for name, spec in more.items()} == {
            "min_text_score": (float, 0, 1, 0.5),
            "words": (bool, 0, 1, False),
            "direction": (bool, 0, 1, True),
        }
        assert ReadingParameters.parse({"thresh": 0.2, "words": "true"}).given() == {"thresh": 0.2, "words": True}

    @pytest.mark.parametrize("value", [False, 0, "false"])
    def test_a_request_that_wants_no_direction_says_so(self, value: Any) -> None:
        parsed = ReadingParameters.parse({"direction": value})
        assert parsed.given() == {"direction": False}
        assert ReadingParameters.parse(parsed.given()) == parsed
        assert ReadingParameters.parse({"direction": True}).given() == ReadingParameters().given() == {}

    @pytest.mark.parametrize("name", ["min_text_score", "words", "direction"])
    def test_a_detector_refuses_them_and_names_the_models_that_read(self, name: str) -> None:
        with pytest.raises(
            InvalidInputError,
            match=rf"request parameter '{name}' is for reading text \(.+\).*ask a model .*: ocr, ocr_raw, ocr_fused\.",
        ):
            RequestParameters.parse({name: 1})

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("min_text_score", 1.5, r"'min_text_score' must be a number from 0 to 1 .*got 1\.5"),
            ("min_text_score", "nan", "'min_text_score' must be .*got nan"),
            ("words", "yes", "'words' must be true or false .*got 'yes'"),
            ("direction", 2, "'direction' must be true or false .*got 2"),
            ("polygon", True, "unknown request parameter 'polygon'; known are thresh, .*direction"),
        ],
    )
    def test_a_bad_value_is_refused(self, name: str, value: Any, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            ReadingParameters.parse({name: value})


def test_without_parameters_the_detectors_defaults_apply() -> None:
    assert RequestParameters() == RequestParameters.parse({})
    assert RequestParameters().given() == {}


def test_given_parameters_come_back_in_their_own_types() -> None:
    parsed = RequestParameters.parse(
        {"thresh": 0.25, "box_thresh": 1, "unclip_ratio": 2, "max_candidates": 7, "min_size": 0, "polygons": True}
    )
    assert parsed == RequestParameters(0.25, 1.0, 2.0, 7, 0.0, True)
    assert {name: type(value) for name, value in parsed.given().items()} == {
        "thresh": float,
        "box_thresh": float,
        "unclip_ratio": float,
        "max_candidates": int,
        "min_size": float,
        "polygons": bool,
    }


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("thresh", "0.5", 0.5),
        ("thresh", " 1 ", 1.0),
        ("unclip_ratio", "1e0", 1.0),
        ("max_candidates", "12", 12),
        ("polygons", "true", True),
        ("polygons", "True", True),
        ("polygons", "1", True),
        ("polygons", 1, True),
    ],
)
def test_text_is_read_as_the_parameters_type(name: str, text: Any, expected: Any) -> None:
    assert RequestParameters.parse({name: text}).given() == {name: expected}


@pytest.mark.parametrize("value", [False, 0, "false", "0", "FALSE"])
def test_polygons_can_be_refused_in_every_spelling(value: Any) -> None:
    parsed = RequestParameters.parse({"polygons": value})
    assert parsed.polygons is False
    assert RequestParameters.parse(parsed.given()) == parsed


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("thresh", -0.01, r"'thresh' must be a number from 0 to 1 \(probability .*\); got -0\.01"),
        ("thresh", 1.01, r"'thresh' must be a number from 0 to 1 .*got 1\.01"),
        ("thresh", float("nan"), r"'thresh' .*got nan"),
        ("box_thresh", float("inf"), r"'box_thresh' .*got inf"),
        ("box_thresh", "nan", r"'box_thresh' .*got "),
        ("unclip_ratio", 10.5, r"'unclip_ratio' must be a number from 0 to 10 .*got 10\.5"),
        ("unclip_ratio", "wide", r"'unclip_ratio' .*got 'wide'"),
        ("max_candidates", 0, r"'max_candidates' must be a whole number from 1 to 100000 .*got 0"),
        ("max_candidates", 100_001, r"'max_candidates' .*got 100001"),
        ("max_candidates", 1.5, r"'max_candidates' .*got 1\.5"),
        ("max_candidates", "1.5", r"'max_candidates' .*got '1\.5'"),
        ("page", "1_0", r"'page' must be a whole number .*got '1_0'"),
        ("min_size", -1, r"'min_size' must be a number from 0 to 10000 .*got -1"),
        ("min_size", [3], r"'min_size' .*got \[3\]"),
        ("polygons", 2, r"'polygons' must be true or false .*got 2"),
        ("polygons", "yes", r"'polygons' must be true or false .*got 'yes'"),
        ("polygons", 1.0, r"'polygons' must be true or false .*got 1\.0"),
        ("thresh", True, r"'thresh' must be a number .*got True"),
        ("thresh", "", r"'thresh' must be a number .*got ''"),
    ],
)
def test_a_bad_value_is_refused_with_name_rule_and_value(name: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"request parameter {message}"):
        RequestParameters.parse({name: value})


@pytest.mark.parametrize(
    ("name", "text"),
    [("max_candidates", "1_0"), ("thresh", "0_0.5"), ("thresh", "\u0661"), ("max_candidates", "\uff11")],
)
def test_only_ordinary_digits_are_numbers(name: str, text: str) -> None:
    with pytest.raises(InvalidInputError, match=f"'{name}' must be .*got '{text}'"):
        RequestParameters.parse({name: text})


@pytest.mark.parametrize(
    "values",
    [
        {"thresh": "x" * 10**6},
        {"x" * 10**6: 1},
        {"thresh": [1] * 10**5},
        {"polygons": 10**5000},
    ],
)
def test_a_long_value_is_shortened_in_messages(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"\.\.\. \(\d+ characters\)|a very long int") as caught:
        RequestParameters.parse(values)
    assert len(str(caught.value)) < 400


class TestFromJson:
    def test_what_is_within_the_limits_is_read(self) -> None:
        assert RequestParameters.from_json("", Limits()) == RequestParameters()
        text = json.dumps({f"triton_{index}": index for index in range(63)} | {"thresh": 0.5})
        assert RequestParameters.from_json(text, Limits(max_parameters=64)).thresh == 0.5
        assert RequestParameters.from_json('{"page": 3}', Limits(max_parameter_bytes=11)).page == 3

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                json.dumps({f"a{index}": 1 for index in range(20_000)}),
                r"have \d+ bytes of JSON; at most 16384 ",
            ),
            (json.dumps({f"a{index}": 1 for index in range(65)}), "has 65 parameters; at most 64 .*remove the others"),
            (json.dumps({"thresh": "x" * 10**6}), r"have 1000014 bytes of JSON; at most 16384"),
            ('{"thresh": %s}' % ("9" * 5000), "parameters cannot be read: .*Correct them"),
            ('{"thresh": %s}' % ("[" * 5000), "parameters cannot be read: .*Correct them"),
        ],
    )
    def test_what_is_not_is_refused_by_number_and_limit(self, text: str, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message) as caught:
            RequestParameters.from_json(text, Limits())
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", [*NUMBERS, "max_candidates"])
def test_false_is_not_a_number(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"'{name}' must be .*got False"):
        RequestParameters.parse({name: False})


@pytest.mark.parametrize("value", [10**400, "9" * 400, "9" * 5000])
def test_a_number_beyond_floating_point_is_refused_like_any_other(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="'max_candidates' must be a whole number from 1 to 100000"):
        RequestParameters.parse({"max_candidates": value})


@pytest.mark.parametrize("name", ["", "box_tresh", "Thresh", "THRESH", "triton"])
def test_an_unknown_name_is_refused_and_the_known_ones_are_listed(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"unknown request parameter '{name}'; known are thresh, .*polygons"):
        RequestParameters.parse({name: 0.5})


def test_parameters_added_by_triton_are_ignored() -> None:
    assert RequestParameters.parse({"triton_enable_empty_final_response": False, "thresh": 0.5}).given() == {
        "thresh": 0.5
    }


def test_the_constructor_checks_as_parse_does() -> None:
    with pytest.raises(InvalidInputError, match="'thresh'"):
        RequestParameters(thresh=2.0)


@given(st.fixed_dictionaries({}, optional={name: st.floats(0, 1) for name in NUMBERS}), st.booleans())
def test_given_parameters_round_trip_as_numbers_and_as_text(numbers: dict[str, float], polygons: bool) -> None:
    parsed = RequestParameters.parse({**numbers, "polygons": polygons})
    assert RequestParameters.parse(parsed.given()) == parsed
    assert RequestParameters.parse({name: str(value) for name, value in parsed.given().items()}) == parsed


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.lists(st.integers(), max_size=2),
)


@given(st.sampled_from(list(PARAMETERS)), ANYTHING)
def test_any_value_is_either_accepted_in_type_and_range_or_refused(name: str, value: Any) -> None:
    spec = PARAMETERS[name]
    try:
        taken = getattr(RequestParameters.parse({name: value}), name)
    except InvalidInputError:
        return
    if value is None:
        assert taken is None or taken is False
        return
    assert type(taken) is spec.type
    assert spec.minimum <= taken <= spec.maximum
