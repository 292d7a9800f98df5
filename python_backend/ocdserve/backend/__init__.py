# SPDX-License-Identifier: Apache-2.0
"""The detector's stages, runtimes and server side."""

from typing import TYPE_CHECKING, Any

from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.detector_spec import DetectorSpec, NetworkSpec
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.presets import PRESETS
from ocdserve.backend.spec.resize import ResizePolicy

if TYPE_CHECKING:
    from ocdserve.backend.detector import Detector
    from ocdserve.backend.reader import Reader

__all__ = [
    "PRESETS",
    "Bundle",
    "Detector",
    "DetectorSpec",
    "NetworkSpec",
    "PostprocessParams",
    "Reader",
    "ResizePolicy",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a class when it is used: on the base installation the packages that it needs are absent."""
        if name == "Detector":
            from ocdserve.backend.detector import Detector

            return Detector
        if name == "Reader":
            from ocdserve.backend.reader import Reader

            return Reader
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), "Detector", "Reader"})
