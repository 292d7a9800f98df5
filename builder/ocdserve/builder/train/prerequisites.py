# SPDX-License-Identifier: Apache-2.0
"""What every training command checks before it imports PyTorch."""

from collections.abc import Callable

from ocdserve.backend.device import pytorch
from ocdserve.contract import UnavailableError

_reported: set[str] = set()


def check_prerequisites(warn: Callable[[str], None]) -> None:
    """Check that the extra `train` is installed.

    Args:
        warn: Called, once in a process, about a CUDA build of PyTorch on a machine without a GPU.

    Raises:
        UnavailableError: A module is missing; the message says how to install it.
    """
    missing = pytorch.missing_modules()
    if missing:
        raise UnavailableError(f"training needs the extra `train` ({', '.join(missing)}): {pytorch.INSTALL}")
    warn_of_unused_cuda(warn)


def warn_of_unused_cuda(warn: Callable[[str], None]) -> None:
    """Tell `warn`, once in a process, of a CUDA build of PyTorch on a machine without a GPU."""
    note = pytorch.unused_cuda()
    if note and note not in _reported:
        _reported.add(note)
        warn(note)
