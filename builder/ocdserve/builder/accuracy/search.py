# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: per-layer sensitivity, and the fewest layers to exclude for the gate to pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ocdserve.builder.graph.quantise import Layer
from ocdserve.builder.progress import Progress

_Comparison = TypeVar("_Comparison")


def measure_sensitivity(
    layers: Sequence[Layer], error: Callable[[tuple[Layer, ...]], float], progress: Progress
) -> dict[str, float]:
    """The error with only one layer in 8 bits, by the layer's name.

    Args:
        layers: Layers to measure.
        error: Error against FP32 of a network in which only the given layers are quantised.
        progress: Reports each layer.
    """
    sensitivity = {}
    with progress.task("sensitivity by layer", len(layers)) as task:
        for layer in layers:
            sensitivity[layer.name] = error((layer,))
            task.advance(note=layer.name)
    return sensitivity


def fewest_excluded(
    layers: Sequence[Layer],
    sensitivity: Mapping[str, float],
    judge: Callable[[tuple[Layer, ...]], _Comparison],
    passes: Callable[[_Comparison], bool],
) -> tuple[tuple[Layer, ...], list[tuple[int, _Comparison]]]:
    """Exclude the most sensitive layers from quantisation until the gate passes.

    The number of excluded layers is doubled until the gate passes, then found by bisection; it is the smallest one if
    the loss shrinks with every excluded layer, and close to it otherwise.

    Args:
        layers: All quantised layers; together they fail the gate.
        sensitivity: By name, from `measure_sensitivity`.
        judge: Compares a network in which the given layers are quantised with FP32.
        passes: The gate.

    Returns:
        The layers that stay quantised, in the order of `layers`, empty if nothing else passes; and the trials, each
        with the number of excluded layers and the gate's figures.
    """
    worst_first = sorted(layers, key=lambda layer: -sensitivity[layer.name])
    trials: list[tuple[int, _Comparison]] = []

    def remaining(count: int) -> tuple[Layer, ...]:
        excluded = {layer.name for layer in worst_first[:count]}
        return tuple(layer for layer in layers if layer.name not in excluded)

    def works(count: int) -> bool:
        comparison = judge(remaining(count))
        trials.append((count, comparison))
        return passes(comparison)

    failing, passing = 0, 1
    while passing < len(worst_first) and not works(passing):
        failing, passing = passing, passing * 2
    passing = min(passing, len(worst_first))
    while passing - failing > 1:
        middle = (failing + passing) // 2
        failing, passing = (failing, middle) if works(middle) else (middle, passing)
    return remaining(passing), trials
