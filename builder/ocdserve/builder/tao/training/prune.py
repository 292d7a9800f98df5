# SPDX-License-Identifier: Apache-2.0
"""The action `prune`: a checkpoint's network with fewer channels, for training again."""

from pathlib import Path

import torch

from ocdserve.builder.tao.actions import ActionResult, Context
from ocdserve.builder.tao.inputs.prepare import evaluated_size
from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.tao.training.network import network_of_checkpoint, network_options
from ocdserve.builder.train.prune import prune, size_of
from ocdserve.builder.train.pruned_graph import save_pruned

# Smallest size that all networks take: which channels depend on which does not depend on the size.
_TRACED = (64, 64)


def run(spec: Spec, context: Context) -> ActionResult:
    """Prune.

    Multiplications are counted for an image of the size that `dataset.validate_dataset` is evaluated at; of the data
    set nothing is read, since no image decides what is removed.

    Raises:
        InvalidInputError: The checkpoint is of another network, or no channel can be removed.
    """
    settings = spec.prune
    network = network_of_checkpoint(spec, Path(settings.checkpoint), "prune.checkpoint")
    pruned = prune(network, settings.ch_sparsity, settings.round_to, settings.p, torch.zeros(1, 3, *_TRACED))
    image = torch.zeros(1, 3, *evaluated_size(spec.dataset.validate_dataset.args.pre_processes))
    before, after = size_of(network, image), size_of(pruned, image)
    ratio = after.parameters / before.parameters
    if settings.verbose:
        context.say(str(pruned))
    context.say(f"Base FLOPs: {before.macs / 1e9:.0f} G, Pruned FLOPs: {after.macs / 1e9:.0f} G")
    context.say(f"Base Params: {before.parameters / 1e6:.0f} M, Pruned Params: {after.parameters / 1e6:.0f} M")
    context.say(f"Pruning ratio: {ratio}")
    path = context.results_dir / f"pruned_{settings.ch_sparsity}.pth"
    save_pruned(path, pruned, network_options(spec))
    context.say(f"Pruned model save to {path}")
    return ActionResult(
        f"kept {100 * ratio:.1f} % of the weights and {100 * after.macs / before.macs:.1f} % of the multiplications in "
        f"{path}: train with model.load_pruned_graph=true model.pruned_graph_path={path}",
        {
            "macs_before": before.macs,
            "macs": after.macs,
            "parameters_before": before.parameters,
            "parameters": after.parameters,
        },
    )
