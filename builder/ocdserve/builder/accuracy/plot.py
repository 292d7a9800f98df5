# SPDX-License-Identifier: Apache-2.0
"""A picture of the damage that quantisation does, layer by layer."""

from collections.abc import Collection, Mapping
from pathlib import Path

from ocdserve.contract import UnavailableError


def plot_damage(damage: Mapping[str, float], quantised: Collection[str], path: Path) -> None:
    """Draw the map error of each layer alone in 8 bits, the worst on top; layers that were left alone in grey.

    Args:
        damage: Mean absolute error of the probability map, by the layer's name.
        quantised: Layers that are in 8 bits in the result.
        path: PNG file to write.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError("the plot needs matplotlib: pip install 'ocdserve[builder]'") from error
    names = sorted(damage, key=lambda name: damage[name])
    figure = Figure(figsize=(9, 1.5 + 0.18 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    colours = ["tab:blue" if name in quantised else "tab:gray" for name in names]
    axes.barh(range(len(names)), [damage[name] for name in names], color=colours)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.margins(y=0.01)
    axes.set_xlabel("mean absolute error of the probability map, this layer alone in 8 bits")
    axes.set_title("Damage by layer (grey: left in the higher precision)")
    figure.savefig(path, dpi=120)
