# SPDX-License-Identifier: Apache-2.0
"""The detector's stages, runtimes and server side."""

from ocdserve.backend.bundle import PRESETS, Bundle, DetectorSpec, NetworkSpec
from ocdserve.backend.detector import Detector
from ocdserve.backend.postprocess import PostprocessParams
from ocdserve.backend.preprocess import ResizePolicy

__all__ = ["PRESETS", "Bundle", "Detector", "DetectorSpec", "NetworkSpec", "PostprocessParams", "ResizePolicy"]
