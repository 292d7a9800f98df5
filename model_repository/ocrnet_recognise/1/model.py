# SPDX-License-Identifier: Apache-2.0
"""Step 4: quads in an image, or lines cut out of one, to text."""

from ocdserve.backend.triton import ServedRecognise as TritonPythonModel

__all__ = ["TritonPythonModel"]
