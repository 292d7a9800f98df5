# SPDX-License-Identifier: Apache-2.0
"""The builder: an exported network to a bundle that can be served."""

from ocdserve.builder.build import GateError, build
from ocdserve.builder.calibrate import CalibrationOptions
from ocdserve.builder.config import BuildConfig, DataConfig, EngineConfig
from ocdserve.builder.gate import GateLimits
from ocdserve.builder.progress import SILENT, Progress, TerminalProgress

__all__ = [
    "SILENT",
    "BuildConfig",
    "CalibrationOptions",
    "DataConfig",
    "EngineConfig",
    "GateError",
    "GateLimits",
    "Progress",
    "TerminalProgress",
    "build",
]
