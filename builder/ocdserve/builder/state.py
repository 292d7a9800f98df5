# SPDX-License-Identifier: Apache-2.0
"""State of a running build."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from ocdserve.backend.network.rewrite.fold import fold
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.builder.calibration.cache import CalibrationCache
from ocdserve.builder.calibration.calibrate import Extremes
from ocdserve.builder.calibration.images import Images
from ocdserve.builder.config import BuildConfig
from ocdserve.builder.graph.describe import Description
from ocdserve.builder.graph.layer_rules import Pinned
from ocdserve.builder.graph.quantise import Layer
from ocdserve.builder.progress import Progress
from ocdserve.contract import OcdserveError


class GateError(OcdserveError):
    """The network loses more accuracy than the limits allow; nothing was written."""


@dataclass
class BuildState:
    """Results of the steps of a build so far."""

    config: BuildConfig
    progress: Progress
    description: Description
    images: Images
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

    @property
    def spec(self) -> DetectorSpec:
        return self.description.spec

    def folded(self, model: onnx.ModelProto) -> onnx.ModelProto:
        return fold(model, self.spec.network, "float32")

    @property
    def has_float16(self) -> bool:
        """Whether layers outside of INT8 are FP16: on a GPU. No CPU runtime computes in FP16, there they stay FP32."""
        return self.config.precision == "fp16" or (self.config.is_quantised and self.config.engine_runtime is not None)

    @property
    def rounds_like_target(self) -> bool:
        """Whether the gate runs a graph that rounds as the target does, which the CPU cannot execute."""
        return self.has_float16 or self.config.engine_runtime is not None
