# SPDX-License-Identifier: Apache-2.0
"""Step 1: decode and resize."""

from ocdserve.backend.triton import ServedPreprocess as TritonPythonModel

__all__ = ["TritonPythonModel"]
