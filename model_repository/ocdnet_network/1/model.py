# SPDX-License-Identifier: Apache-2.0
"""Step 2: the network."""

from ocdserve.backend.triton import ServedNetwork as TritonPythonModel

__all__ = ["TritonPythonModel"]
