# SPDX-License-Identifier: Apache-2.0
"""The network that a training begins with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.tao.training.network import network_options, pruned_graph
from ocdserve.builder.train.checkpoints import load_weights, read_weights
from ocdserve.builder.train.networks.model import OcdNet, build_network
from ocdserve.contract import InvalidInputError


def initial_network(spec: Spec) -> OcdNet:
    """Build the network, or read the pruned one where `model.load_pruned_graph` is set.

    Raises:
        InvalidInputError: A key is invalid, or the pruned network cannot be read.
    """
    if spec.model.head != "DBHead":
        raise InvalidInputError(f"model.head must be DBHead, the only one there is; got {spec.model.head!r}")
    graph = pruned_graph(spec)
    if graph is not None:
        return graph
    options = network_options(spec)
    # As in TAO, activations are not computed twice while an average is kept.
    return build_network(
        replace(options, activation_checkpoint=options.activation_checkpoint and not spec.train.model_ema)
    )


def load_pretrained(spec: Spec, network: nn.Module, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Load `model.pretrained_model_path`, if set; the names that do not fit are reported.

    Raises:
        InvalidInputError: The file cannot be read, or no weight of it fits.
    """
    if not spec.model.pretrained_model_path:
        return
    path = Path(spec.model.pretrained_model_path)
    if not path.is_file():
        raise InvalidInputError(f"there are no weights {str(path)!r} (model.pretrained_model_path)")
    report = load_weights(network, read_weights(path), strict=False)
    say(f"Loaded pretrained weights from {path}")
    if report.missing or report.unexpected:
        warn(f"{path}: {report}; the network's other weights are initial ones")
