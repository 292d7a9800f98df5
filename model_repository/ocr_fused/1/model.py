# SPDX-License-Identifier: Apache-2.0
"""Encoded image to text, all stages in one process."""

from ocdserve.backend.triton import ServedReadingFused as TritonPythonModel

__all__ = ["TritonPythonModel"]
