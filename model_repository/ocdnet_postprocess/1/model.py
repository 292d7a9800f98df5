# SPDX-License-Identifier: Apache-2.0
"""Step 3: map to quads and polygons."""

from ocdserve.backend.triton import ServedPostprocess as TritonPythonModel

__all__ = ["TritonPythonModel"]
