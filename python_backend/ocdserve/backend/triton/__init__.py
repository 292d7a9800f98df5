# SPDX-License-Identifier: Apache-2.0
"""Adapters between Triton's Python backend and the stages; the only code that knows `pb_utils`."""

from ocdserve.backend.triton.models import FusedModel, NetworkModel, PostprocessModel, PreprocessModel

__all__ = ["FusedModel", "NetworkModel", "PostprocessModel", "PreprocessModel"]
