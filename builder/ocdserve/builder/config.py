# SPDX-License-Identifier: Apache-2.0
"""What to build: the options of the recipe, validated before anything is read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ocdserve.backend import PRESETS
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.builder.accuracy.gate import GateLimits
from ocdserve.builder.calibration.calibrate import CalibrationOptions
from ocdserve.builder.calibration.images import DataConfig
from ocdserve.builder.engine.options import EngineConfig, EngineRuntime
from ocdserve.builder.graph.layer_rules import LayerRule
from ocdserve.contract import InvalidInputError

Precision = Literal["fp32", "fp16", "int8", "fp8-experimental"]
Runtime = Literal["openvino", "onnxruntime", EngineRuntime]

# Points of hmean that each precision may lose, and the box agreement that stands in for it without ground truth.
DEFAULT_LIMITS = {
    "fp32": GateLimits(0.1, 0.99),
    "fp16": GateLimits(0.1, 0.99),
    "int8": GateLimits(0.5, 0.95),
    "fp8-experimental": GateLimits(0.5, 0.95),
}


@dataclass(frozen=True)
class BuildConfig:
    """What to build.

    Attributes:
        onnx: Exported DB network, float32 N x 3 x H x W in, N x 1 x H x W probability out.
        output: Folder of the bundle; it must not exist yet.
        preset: Normalisation, resize policy and thresholds: one of `ocdserve.backend.PRESETS`; None recognises the
            exporter.
        detector: The same in full, in place of a preset; its name, model and precision are set by the build.
        name: Name of the detector; None takes the ONNX file's.
        precision: What the network computes in. On the CPU `fp16` only halves the file.
        runtime: What it is built for; None: any runtime that executes ONNX on the CPU.
        data: Images to calibrate and judge with.
        calibration: How ranges are chosen.
        gate: Whether to judge the result.
        limits: What it may lose; None takes `DEFAULT_LIMITS`.
        keep: Layers that stay in the higher precision.
        layers: Layers that are pinned to a precision.
        search: Whether to look for more such layers when the gate does not pass.
        explain: Measure the damage of every layer and draw it.
        fold: Store the ONNX with normalisation and layout in it: uint8 N x H x W x 3 pixels in, uint8 map out. An
            engine always is so.
        engine: Settings of TensorRT.
        threads: Cores for everything that runs on the CPU; None: all.

    Raises:
        InvalidInputError: A field is not valid; the message names it.
    """

    onnx: Path
    output: Path
    preset: str | None = None
    detector: DetectorSpec | None = None
    name: str | None = None
    precision: Precision = "fp32"
    runtime: Runtime | None = None
    data: DataConfig = field(default_factory=DataConfig)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    gate: bool = True
    limits: GateLimits | None = None
    keep: tuple[str, ...] = ()
    layers: tuple[LayerRule, ...] = ()
    search: bool = True
    explain: bool = False
    fold: bool = False
    engine: EngineConfig = field(default_factory=EngineConfig)
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise InvalidInputError(f"preset must be one of {', '.join(PRESETS)}; got {self.preset!r}")
        for name, kind in (("precision", Precision), ("runtime", Runtime)):
            value = getattr(self, name)
            if value is not None and value not in get_args(kind):
                raise InvalidInputError(f"{name} must be one of {', '.join(get_args(kind))}; got {value!r}")
        if not self.onnx.is_file():
            raise InvalidInputError(f"onnx: there is no file {str(self.onnx)!r}")
        if self.output.exists():
            raise InvalidInputError(f"output: {str(self.output)!r} exists; name a new folder or remove it")
        if self.precision == "fp8-experimental" and self.engine_runtime is None:
            raise InvalidInputError(
                "fp8-experimental is for tensorrt and tensorrt-rtx; on the CPU nothing computes in it. "
                "Name --runtime tensorrt-rtx, or take int8."
            )

    @property
    def engine_runtime(self) -> EngineRuntime | None:
        """The runtime, if it takes an engine that is built ahead of time."""
        return next((name for name in get_args(EngineRuntime) if name == self.runtime), None)

    @property
    def is_quantised(self) -> bool:
        """Whether layers compute in 8 bits."""
        return self.precision in ("int8", "fp8-experimental")

    @property
    def needs_images(self) -> bool:
        """Whether ranges cannot be had without photographs; FP16 only asks for them where it is judged."""
        return self.data.calibration_cache is None and (
            self.is_quantised or (self.precision == "fp16" and (self.gate or self.explain))
        )

    @property
    def gate_limits(self) -> GateLimits:
        """The limits in force."""
        return self.limits or DEFAULT_LIMITS[self.precision]
