# SPDX-License-Identifier: Apache-2.0
"""The builder: makes a bundle that can be served from an exported network."""

from ocdserve.builder.accuracy.gate import GateLimits
from ocdserve.builder.build import build
from ocdserve.builder.calibration.calibrate import CalibrationOptions
from ocdserve.builder.calibration.images import DataConfig
from ocdserve.builder.config import BuildConfig
from ocdserve.builder.engine.options import EngineConfig
from ocdserve.builder.graph.ends import ExportOptions
from ocdserve.builder.progress import SILENT, Progress, TerminalProgress
from ocdserve.builder.recogniser.build import build_recogniser
from ocdserve.builder.recogniser.config import RecogniserBuildConfig
from ocdserve.builder.recogniser.gate import ReadingLimits
from ocdserve.builder.state import GateError

__all__ = [
    "SILENT",
    "BuildConfig",
    "CalibrationOptions",
    "DataConfig",
    "EngineConfig",
    "ExportOptions",
    "GateError",
    "GateLimits",
    "Progress",
    "ReadingLimits",
    "RecogniserBuildConfig",
    "TerminalProgress",
    "build",
    "build_recogniser",
]
