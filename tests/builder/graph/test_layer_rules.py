# SPDX-License-Identifier: Apache-2.0
import pytest

from ocdserve.builder.graph.layer_rules import LayerRule, pin
from ocdserve.contract import InvalidInputError

NODES = ("stem", "backbone/a/Conv", "backbone/b/Conv", "head/Conv")


class TestPin:
    def test_a_full_name_precedes_a_pattern_and_a_later_pattern_an_earlier_one(self) -> None:
        rules = [
            LayerRule("backbone/a/Conv", "fp32"),
            LayerRule("backbone/*", "int8"),
            LayerRule("*/Conv", "fp16"),
        ]
        assert pin(rules, NODES).precisions == {
            "backbone/a/Conv": "fp32",
            "backbone/b/Conv": "fp16",
            "head/Conv": "fp16",
        }

    def test_a_lone_asterisk_matches_the_rest_at_any_position(self) -> None:
        found = pin([LayerRule("*", "fp32"), LayerRule("head/Conv", "fp16")], NODES)
        assert found.precisions == {
            "stem": "fp32",
            "backbone/a/Conv": "fp32",
            "backbone/b/Conv": "fp32",
            "head/Conv": "fp16",
        }
        assert found.named == {"head/Conv"}

    def test_nodes_of_a_lowered_deformable_convolution_follow_their_layer(self) -> None:
        nodes = ("dcn", "dcn/deformable_sampling/grid", "dcn/deformable_columns/shape", "other")
        assert set(pin([LayerRule("dcn", "fp32")], nodes).precisions) == set(nodes) - {"other"}

    def test_an_unknown_layer_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(InvalidInputError, match=r"no layer 'head/Conf'; the nearest name is 'head/Conv'"):
            pin([LayerRule("head/Conf", "fp32")], NODES)

    def test_an_optional_layer_may_be_unknown(self) -> None:
        rules = [LayerRule("head/Conf", "fp32", optional=True), LayerRule("stem", "fp16")]
        found = pin(rules, NODES)
        assert found.precisions == {"stem": "fp16"}
        assert found.notes == (
            "the network has no layer 'head/Conf', so its rule has no effect; the nearest name is 'head/Conv'",
        )
        with pytest.raises(InvalidInputError, match="no layer 'head/Conf'"):
            pin([*rules, LayerRule("head/Conf", "int8")], NODES)

    def test_a_layer_that_was_folded_away_is_noted(self) -> None:
        found = pin([LayerRule("head/BatchNorm", "fp32")], NODES, exported=("head/BatchNorm",))
        assert found.precisions == {}
        assert "head/BatchNorm" in found.notes[0]

    @pytest.mark.parametrize(("pattern", "precision", "words"), [("", "fp32", "empty"), ("a", "fp8", "must be one of")])
    def test_malformed_rules_are_refused(self, pattern: str, precision: str, words: str) -> None:
        with pytest.raises(InvalidInputError, match=words):
            LayerRule(pattern, precision)  # type: ignore[arg-type]
