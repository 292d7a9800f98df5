# SPDX-License-Identifier: Apache-2.0
"""The detector's stages, runtimes and server side."""

from ocdserve.backend.detector import Detector
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.detector_spec import DetectorSpec, NetworkSpec
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.presets import PRESETS
from ocdserve.backend.spec.resize import ResizePolicy

__all__ = ["PRESETS", "Bundle", "Detector", "DetectorSpec", "NetworkSpec", "PostprocessParams", "ResizePolicy"]
