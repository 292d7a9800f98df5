# SPDX-License-Identifier: Apache-2.0
"""Options of a recogniser's build, validated before anything is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.builder.config import BuildConfig
from ocdserve.builder.engine.options import EngineConfig
from ocdserve.builder.recogniser.gate import ReadingLimits
from ocdserve.contract import InvalidInputError, not_one_of

Fit = Literal["pad", "stretch"]

# An engine takes as many lines at once as serving makes batches of.
LINES_ENGINE = EngineConfig(max_batch=GpuOptions().max_lines)

# By precision: points of the character error rate and of exact lines that may be lost and, without transcriptions, the
# smallest share of lines that read as in FP32.
DEFAULT_READING_LIMITS = {
    "fp32": ReadingLimits(0.1, 0.5, 0.99),
    "fp16": ReadingLimits(0.1, 0.5, 0.99),
    "int8": ReadingLimits(0.5, 1.0, 0.95),
    "fp8-experimental": ReadingLimits(0.5, 1.0, 0.95),
}


@dataclass(frozen=True)
class RecogniserBuildConfig(BuildConfig):
    """Options of a recogniser's build, in addition to those that it has in common with a detector's.

    Attributes:
        engine: Settings of TensorRT and TensorRT-RTX, for batches of lines.
        characters: File with the character of every class from 1 on, one a line; None takes the network's metadata.
        height: Of a line in pixels, where the graph allows any.
        reading_limits: Largest loss; None takes `DEFAULT_READING_LIMITS`.

    Raises:
        InvalidInputError: A field is not valid, or is for detectors; the message names it.
    """

    engine: EngineConfig = LINES_ENGINE
    characters: Path | None = None
    height: int | None = None
    reading_limits: ReadingLimits | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("preset", self.preset), ("detector", self.detector), ("limits", self.limits)):
            if value is not None:
                raise InvalidInputError(f"{name} is an option of detectors, and this build is of a recogniser; drop it")
        if self.height is not None and not 1 <= self.height <= 1024:
            raise InvalidInputError(f"height must be from 1 to 1024 pixels; got {self.height}")
        if self.export.resize is not None and self.export.resize not in get_args(Fit):
            raise not_one_of("--resize of a recogniser", self.export.resize, get_args(Fit))
        if self.calibration.images != "serving":
            raise InvalidInputError("recognisers are calibrated on lines as served; drop calibration.images")

    @property
    def fit(self) -> Fit | None:
        """How a line gets the network's width; None: as is usual for the exporter."""
        return cast("Fit | None", self.export.resize)

    @property
    def most_lost(self) -> ReadingLimits:
        """The limits that apply."""
        return self.reading_limits or DEFAULT_READING_LIMITS[self.precision]
