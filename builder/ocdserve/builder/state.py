# SPDX-License-Identifier: Apache-2.0
"""State of a running build."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ocdserve.builder.calibration.cache import CalibrationCache
from ocdserve.builder.calibration.calibrate import Extremes
from ocdserve.builder.calibration.images import Images
from ocdserve.builder.config import BuildConfig
from ocdserve.builder.graph.layer_rules import Pinned
from ocdserve.builder.graph.quantise import Layer
from ocdserve.builder.progress import Progress
from ocdserve.contract import OcdserveError


class GateError(OcdserveError):
    """The network loses more accuracy than the limits allow; nothing was written."""


@dataclass
class BuildState(ABC):
    """Results of the steps of a build so far.

    Attributes:
        sha256: Hash of the exported file.
        aliases: Tensors of the export that the normal form lacks, and those with the same values.
        model: The network in normal form, FP32.
    """

    config: BuildConfig
    progress: Progress
    images: Images
    sha256: str
    aliases: Mapping[str, str]
    model: onnx.ModelProto
    notes: list[str]
    pinned: Pinned
    candidates: tuple[Layer, ...] = ()
    chosen: tuple[Layer, ...] = ()
    scales: dict[str, float] = field(default_factory=dict)
    cache: CalibrationCache | None = None
    extremes: Mapping[str, Extremes] | None = None
    keep_float32: frozenset[str] = frozenset()
    headroom: list[dict[str, Any]] = field(default_factory=list)
    sensitivity: dict[str, float] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)

    @abstractmethod
    def folded(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The network between uint8 pixels (N, H, W, 3) and float32 results."""

    @abstractmethod
    def measured(self) -> tuple[onnx.ModelProto, Sequence[NDArray[np.uint8]]]:
        """The folded network and the pictures, uint8 (h, w, 3) each, to measure ranges with."""

    @abstractmethod
    def reference_pixels(self) -> NDArray[np.uint8]:
        """A picture of the reference size, uint8 (h, w, 3), for figures such as multiplications."""

    @property
    def has_float16(self) -> bool:
        """Whether layers outside of INT8 are FP16: on a GPU. No CPU runtime computes in FP16, there they stay FP32."""
        return self.config.precision == "fp16" or (self.config.is_quantised and self.config.engine_runtime is not None)

    @property
    def rounds_like_target(self) -> bool:
        """Whether the gate runs a graph that rounds as the target does, which the CPU cannot execute."""
        return self.has_float16 or self.config.engine_runtime is not None
