# SPDX-License-Identifier: Apache-2.0
"""Plot of the sensitivity of each layer to quantisation."""

from collections.abc import Collection, Mapping
from pathlib import Path

from ocdserve.contract import UnavailableError, install_command


def plot_sensitivity(sensitivity: Mapping[str, float], quantised: Collection[str], path: Path) -> None:
    """Draw the map error with one layer at a time in 8 bits, the largest on top; excluded layers in grey.

    Args:
        sensitivity: Mean absolute error of the probability map, by the layer's name.
        quantised: Layers that the result computes in 8 bits.
        path: PNG file to write.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError(f"the plot needs matplotlib: {install_command('ocdserve[builder]')}") from error
    names = sorted(sensitivity, key=lambda name: sensitivity[name])
    figure = Figure(figsize=(9, 1.5 + 0.18 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    colours = ["tab:blue" if name in quantised else "tab:gray" for name in names]
    axes.barh(range(len(names)), [sensitivity[name] for name in names], color=colours)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.margins(y=0.01)
    axes.set_xlabel("mean absolute error of the probability map, only this layer in 8 bits")
    axes.set_title("Sensitivity by layer (grey: excluded from quantisation)")
    figure.savefig(path, dpi=120)
