# SPDX-License-Identifier: Apache-2.0
"""Adapters between Triton's Python backend and the stages; the only code that knows `pb_utils`."""

from ocdserve.backend.triton.entry import (
    ServedFused,
    ServedNetwork,
    ServedPostprocess,
    ServedPreprocess,
    ServedReadingFused,
    ServedRecognise,
)

__all__ = [
    "ServedFused",
    "ServedNetwork",
    "ServedPostprocess",
    "ServedPreprocess",
    "ServedReadingFused",
    "ServedRecognise",
]
