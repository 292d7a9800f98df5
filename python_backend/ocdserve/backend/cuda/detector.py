# SPDX-License-Identifier: Apache-2.0
"""The earlier path of `ocdserve.backend.gpu.detector`."""

from ocdserve.backend.gpu.detector import GpuDetector

__all__ = ["GpuDetector"]
