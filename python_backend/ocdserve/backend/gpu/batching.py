# SPDX-License-Identifier: Apache-2.0
"""How many images go to the GPU at once."""

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


def batches_of(items: Sequence[_T], most: int) -> list[Sequence[_T]]:
    """Items in batches of `most`, then of powers of two: few shapes to prepare, and nothing computed in vain."""
    batches = []
    while items:
        size = min(len(items), most)
        size = size if size == most else 1 << (size.bit_length() - 1)
        batches.append(items[:size])
        items = items[size:]
    return batches
