# SPDX-License-Identifier: Apache-2.0
import pytest

from ocdserve.builder.accuracy.gate import Comparison
from ocdserve.builder.accuracy.search import fewest_excluded, measure_sensitivity
from ocdserve.builder.graph.quantise import Layer
from ocdserve.builder.progress import SILENT

LAYERS = tuple(Layer(f"l{index}", "convolution", f"t{index}", 1) for index in range(13))
# Not in the order of the layers.
SENSITIVITY = {layer.name: float((index * 7) % 13) for index, layer in enumerate(LAYERS)}


def judge(chosen: tuple[Layer, ...]) -> Comparison:
    """The sensitivities add up."""
    return Comparison(1, 1.0, sum(SENSITIVITY[layer.name] for layer in chosen), 0.0, 1, 1)


class TestFewestExcluded:
    @pytest.mark.parametrize("limit", range(78))
    def test_excludes_the_fewest(self, limit: int) -> None:
        remaining, trials = fewest_excluded(LAYERS, SENSITIVITY, judge, lambda found: found.map_error <= limit)
        # 12 + 11 + ... + 0 = 78: the worst go until the rest is within the limit.
        expected = next(count for count in range(14) if sum(range(13 - count)) <= limit)
        assert {SENSITIVITY[layer.name] for layer in remaining} == set(range(13 - expected))
        assert list(remaining) == [layer for layer in LAYERS if layer in remaining]
        assert len(trials) <= 8

    def test_no_layer_stays_quantised_if_nothing_passes(self) -> None:
        remaining, trials = fewest_excluded(LAYERS, SENSITIVITY, judge, lambda found: False)
        assert remaining == () and len(trials) <= 8

    def test_a_single_layer(self) -> None:
        assert fewest_excluded(LAYERS[:1], SENSITIVITY, judge, lambda found: True) == ((), [])


def test_sensitivity_is_measured_layer_by_layer() -> None:
    assert measure_sensitivity(LAYERS, lambda chosen: judge(chosen).map_error, SILENT) == SENSITIVITY
