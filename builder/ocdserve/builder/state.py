# SPDX-License-Identifier: Apache-2.0
"""What is known of a build while it runs."""

from dataclasses import dataclass, field
from typing import Any

import onnx

from ocdserve.backend.network.rewrite.fold import fold
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.builder.calibration.cache import CalibrationCache
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
    """What is known so far of a build, step by step."""

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
    keep_float32: frozenset[str] = frozenset()
    headroom: list[dict[str, Any]] = field(default_factory=list)
    damage: dict[str, float] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)

    @property
    def spec(self) -> DetectorSpec:
        return self.description.spec

    def folded(self, model: onnx.ModelProto) -> onnx.ModelProto:
        return fold(model, self.spec.network, "float32")

    @property
    def has_float16(self) -> bool:
        """8 bits on a GPU are mixed with FP16; on the CPU nothing computes in FP16, so the rest stays FP32."""
        return self.config.precision == "fp16" or (self.config.is_quantised and self.config.engine_runtime is not None)

    @property
    def rounds_like_target(self) -> bool:
        """Whether a graph that rounds as the target does is judged in its place, which the CPU cannot execute."""
        return self.has_float16 or self.config.engine_runtime is not None
