# SPDX-License-Identifier: Apache-2.0
"""Encoded image to text quads, all stages in one process."""

from ocdserve.backend.triton import ServedFused as TritonPythonModel

__all__ = ["TritonPythonModel"]
