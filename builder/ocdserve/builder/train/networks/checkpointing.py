# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing that leaves batch normalisation's running statistics alone when it computes again."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpointed(module: nn.Module, *inputs: Any) -> Tensor:
    """`module(*inputs)`, of which the backward pass keeps the inputs only and computes the rest again.

    PyTorch's `checkpoint` by itself would count every batch twice in the running means and variances.
    """
    if not module.training:
        return module(*inputs)
    contexts = nullcontext(), _frozen_statistics(module)
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=lambda: contexts)


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)
