# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: which layers do the damage, and how few of them must be left alone for the gate to pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ocdserve.builder.accuracy.gate import Comparison
from ocdserve.builder.graph.quantise import Layer
from ocdserve.builder.progress import Progress

Judge = Callable[[tuple[Layer, ...]], Comparison]


@dataclass(frozen=True)
class Trial:
    """One set of layers left alone, and what the gate said.

    Attributes:
        kept: How many of the worst layers were left alone.
        comparison: The gate's figures.
    """

    kept: int
    comparison: Comparison


def measure_damage(
    layers: Sequence[Layer], judge: Judge, progress: Progress, label: str = "damage by layer"
) -> dict[str, float]:
    """Mean absolute error of the probability map with one layer alone in 8 bits, by the layer's name.

    Args:
        layers: Layers to measure.
        judge: Compares a network in which only the given layers are quantised with FP32.
        progress: Where to show it.
        label: What to call it there.
    """
    damage = {}
    with progress.task(label, len(layers)) as task:
        for layer in layers:
            damage[layer.name] = judge((layer,)).map_error
            task.advance(note=layer.name)
    return damage


def fewest_kept(
    layers: Sequence[Layer], damage: Mapping[str, float], judge: Judge, passes: Callable[[Comparison], bool]
) -> tuple[tuple[Layer, ...], tuple[Trial, ...]]:
    """Leave the most damaging layers alone until the gate passes.

    Doubles their number until the gate passes, then halves the interval; that is the smallest number if the loss
    shrinks with every layer left alone, and close to it otherwise.

    Args:
        layers: All quantised layers; known to fail the gate together.
        damage: By name, from `measure_damage`.
        judge: Compares a network in which the given layers are quantised with FP32.
        passes: The gate.

    Returns:
        The layers that stay quantised, in the order of `layers`: none if the gate passes with none only. And the
        trials, in their order.
    """
    worst_first = sorted(layers, key=lambda layer: -damage[layer.name])
    trials: list[Trial] = []

    def remaining(kept: int) -> tuple[Layer, ...]:
        left_alone = {layer.name for layer in worst_first[:kept]}
        return tuple(layer for layer in layers if layer.name not in left_alone)

    def works(kept: int) -> bool:
        trials.append(Trial(kept, judge(remaining(kept))))
        return passes(trials[-1].comparison)

    failing, passing = 0, 1
    while passing < len(worst_first) and not works(passing):
        failing, passing = passing, passing * 2
    passing = min(passing, len(worst_first))
    while passing - failing > 1:
        middle = (failing + passing) // 2
        failing, passing = (failing, middle) if works(middle) else (middle, passing)
    return remaining(passing), tuple(trials)
