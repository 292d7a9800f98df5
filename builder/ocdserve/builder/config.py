# SPDX-License-Identifier: Apache-2.0
"""Build options, validated before anything is read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ocdserve.backend import PRESETS
from ocdserve.backend.network.options import BUILD_RUNTIMES
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.builder.accuracy.gate import GateLimits
from ocdserve.builder.calibration.calibrate import CalibrationOptions
from ocdserve.builder.calibration.images import DataConfig
from ocdserve.builder.engine.options import EngineConfig, EngineRuntime
from ocdserve.builder.graph.ends import ExportOptions
from ocdserve.builder.graph.layer_rules import LayerRule
from ocdserve.contract import InvalidInputError, did_you_mean, not_one_of

Precision = Literal["fp32", "fp16", "int8", "fp8-experimental"]

# By precision: points of hmean that may be lost and, without ground truth, the smallest box agreement.
DEFAULT_LIMITS = {
    "fp32": GateLimits(0.1, 0.99),
    "fp16": GateLimits(0.1, 0.99),
    "int8": GateLimits(0.5, 0.95),
    "fp8-experimental": GateLimits(0.5, 0.95),
}


@dataclass(frozen=True)
class BuildConfig:
    """Options of a build.

    Attributes:
        onnx: Exported DB network, an image in, a probability map out; `export` has what exports differ in.
        output: Folder of the bundle; it must not exist yet.
        preset: Normalisation, resize policy and thresholds: one of `ocdserve.backend.PRESETS`; None detects the
            exporter.
        detector: The full specification instead of a preset; the build sets its name, model and precision, of which
            bf16 stays if an FP32 network is built for a CPU.
        export: What the export differs in from the preset, and from what is recognised.
        trial: Whether to refuse a network that finds no text on a drawn page; else the notes say so.
        name: Name of the detector; None takes the ONNX file's.
        precision: Precision that the network computes in. On the CPU `fp16` only halves the file.
        runtime: Target runtime; None is any that executes ONNX on the CPU.
        data: Images for calibration and evaluation.
        calibration: How ranges are chosen.
        gate: Whether to check the accuracy of the result.
        gate_refuses: Whether a result that loses more than the limits allow is refused; else the notes say so.
        limits: Largest loss; None takes `DEFAULT_LIMITS`.
        keep: Layers to exclude from quantisation.
        layers: Layers pinned to a precision.
        search: Whether to look for more layers to exclude if the gate fails.
        explain: Measure the sensitivity of every layer and plot it.
        fold: Store the ONNX with normalisation and layout in it: uint8 N x H x W x 3 pixels in, uint8 map out. An
            engine always has them.
        engine: Settings of TensorRT and TensorRT-RTX.
        threads: Cores for everything that runs on the CPU; None is all.

    Raises:
        InvalidInputError: A field is not valid; the message names it.
    """

    onnx: Path
    output: Path
    preset: str | None = None
    detector: DetectorSpec | None = None
    export: ExportOptions = field(default_factory=ExportOptions)
    trial: bool = True
    name: str | None = None
    precision: Precision = "fp32"
    runtime: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    gate: bool = True
    gate_refuses: bool = True
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
            raise not_one_of("preset", self.preset, PRESETS)
        for name, known in (("precision", get_args(Precision)), ("runtime", BUILD_RUNTIMES)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise not_one_of(name, value, known)
        if not self.onnx.is_file():
            raise InvalidInputError(
                f"onnx: there is no file {str(self.onnx)!r}{did_you_mean(str(self.onnx), ['default'])}"
            )
        if self.output.exists():
            raise InvalidInputError(f"output: {str(self.output)!r} exists; name a new folder or remove it")
        if self.precision == "fp8-experimental" and self.engine_runtime is None:
            raise InvalidInputError(
                "fp8-experimental is for tensorrt and tensorrt-rtx; no CPU runtime computes in it. "
                "Set --runtime tensorrt-rtx, or use int8."
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
        """Whether photographs are required to measure ranges; for FP16 only if it is judged."""
        return self.data.calibration_cache is None and (
            self.is_quantised or (self.precision == "fp16" and (self.gate or self.explain))
        )

    @property
    def gate_limits(self) -> GateLimits:
        """The limits that apply."""
        return self.limits or DEFAULT_LIMITS[self.precision]
