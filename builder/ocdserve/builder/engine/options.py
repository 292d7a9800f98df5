# SPDX-License-Identifier: Apache-2.0
"""Which engine to build: shapes, target GPUs and the builder's settings."""

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal, get_args

from ocdserve.backend.network.options import EngineRuntime as EngineRuntime
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.contract import InvalidInputError, not_one_of

HardwareCompatibility = Literal["none", "same_compute_capability", "ampere_plus"]

CURRENT = "current"

# Kernels are chosen for a 720p photograph.
_TYPICAL_IMAGE = (720, 1280)

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{middle}b": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for middle, base in (("", 1000), ("i", 1024))
}


@dataclass(frozen=True)
class ShapeProfile:
    """Input shapes of an engine, each (batch, height, width) with sides in pixels.

    Attributes:
        min: Smallest length of each dimension.
        opt: Shape that the builder tunes for.
        max: Largest length of each dimension.

    Raises:
        InvalidInputError: A shape is not three positive integers, or min <= opt <= max does not hold.
    """

    min: tuple[int, int, int]
    opt: tuple[int, int, int]
    max: tuple[int, int, int]

    def __post_init__(self) -> None:
        for name in ("min", "opt", "max"):
            shape = getattr(self, name)
            if len(shape) != 3 or not all(type(length) is int and length > 0 for length in shape):
                raise InvalidInputError(
                    f"profile.{name} must be (batch, height, width), positive whole numbers; got {shape!r}"
                )
        for name, *lengths in zip(("batch", "height", "width"), self.min, self.opt, self.max, strict=True):
            if sorted(lengths) != lengths:
                raise InvalidInputError(
                    f"profile: the {name} must grow from min over opt to max; got {', '.join(map(str, lengths))}"
                )


def profile_of(resize: ResizePolicy, max_batch: int = 1, opt_batch: int = 1, min_batch: int = 1) -> ShapeProfile:
    """The shapes that a resize policy may produce.

    A policy of fixed size has one. For others it is every multiple of the stride up to the largest side, because
    clients may send images that they have resized themselves; the engine is tuned for a 720p photograph.

    Raises:
        InvalidInputError: The batch sizes are not positive, or do not increase from `min_batch` to `max_batch`.
    """
    typical, _ = resize.sizes(*_TYPICAL_IMAGE)
    if resize.has_one_size:
        return ShapeProfile((min_batch, *typical), (opt_batch, *typical), (max_batch, *typical))
    smallest, largest = (resize.stride, resize.stride), (resize.largest_side, resize.largest_side)
    return ShapeProfile((min_batch, *smallest), (opt_batch, *typical), (max_batch, *largest))


def parse_bytes(text: str) -> int:
    """Parse a size such as `2GiB` (2 x 1024^3), `512MB` (512 x 1000^2) or `1000000`.

    Raises:
        InvalidInputError: The text is malformed, or not a positive whole number of bytes.
    """
    match = _SIZE.fullmatch(text)
    unit = match[2].lower() if match else None
    if match is None or unit not in _UNITS:
        raise InvalidInputError(
            f"a size must be a number with B, kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024) "
            f"or without a unit for bytes; got {text!r}"
        )
    size = Decimal(match[1]) * _UNITS[unit]
    if size != int(size) or size < 1:
        raise InvalidInputError(f"a size must be a positive whole number of bytes; {text!r} is {size} bytes")
    return int(size)


@dataclass(frozen=True)
class EngineConfig:
    """How an engine is built.

    Attributes:
        architectures: GPU architectures such as `sm_89`; `current` is the GPU of this machine, the only one that
            TensorRT builds for. TensorRT-RTX needs no GPU and can put several architectures into one engine.
        max_batch: Largest batch of the engine.
        min_batch: Smallest batch.
        opt_batch: Batch that kernels are chosen for; None chooses them twice, for the largest batch and for single
            images (`profiles`).
        workspace_bytes: GPU memory that a layer may use while it runs; None is the runtime's default, no limit.
        optimization_level: From 0 (first kernel that works) to 5 (compile and time all). 3 is TensorRT's own
            default; level 5 has taken hours for networks of this kind and gained little. TensorRT-RTX chooses its
            kernels on the target: there the level changed neither time nor plan.
        hardware_compatibility: TensorRT only. `same_compute_capability`: other models of the same architecture;
            `ampere_plus`: all architectures from sm_80 on, slower.
        version_compatible: TensorRT only. The plan also loads in later releases, slower.
        timing_cache: TensorRT only. File with measured kernel times, read and extended by each build.
        store: Folder of engines to reuse; None is the user's cache folder.

    Raises:
        InvalidInputError: A field is out of its range; the message names it.
    """

    architectures: tuple[str, ...] = (CURRENT,)
    max_batch: int = 8
    min_batch: int = 1
    opt_batch: int | None = None
    workspace_bytes: int | None = None
    optimization_level: int = 3
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    timing_cache: Path | None = None
    store: Path | None = None

    def __post_init__(self) -> None:
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            raise not_one_of("hardware_compatibility", self.hardware_compatibility, get_args(HardwareCompatibility))
        if type(self.optimization_level) is not int or not 0 <= self.optimization_level <= 5:
            raise InvalidInputError(f"optimization_level must be from 0 to 5; got {self.optimization_level!r}")
        if self.workspace_bytes is not None and (type(self.workspace_bytes) is not int or self.workspace_bytes < 1):
            raise InvalidInputError(f"workspace_bytes must be a positive whole number; got {self.workspace_bytes!r}")
        wanted = self.architectures
        if not all(re.fullmatch(rf"sm_\d{{2,3}}|{CURRENT}", name) for name in wanted):
            raise InvalidInputError(
                f"architectures must be names such as 'sm_89', or 'current'; got {', '.join(map(repr, wanted))}"
            )
        if not wanted or len(set(wanted)) < len(wanted) or (CURRENT in wanted and len(wanted) > 1):
            raise InvalidInputError(
                f"architectures must be different names, or 'current' alone; got {', '.join(wanted) or 'none'}"
            )

    def profiles(self, profile: ShapeProfile) -> tuple[ShapeProfile, ...]:
        """Optimization profiles of an engine for these shapes.

        The first has all shapes, for programs that select none; a second may have single images alone. Of those that
        take a shape, `TensorRtNetwork` selects the one tuned nearest to it.
        """
        if self.opt_batch is not None or profile.min[0] > 1 or profile.max[0] == 1:
            return (profile,)
        single = ((1, *shape[1:]) for shape in (profile.min, profile.opt, profile.max))
        return (profile, ShapeProfile(*single))

    def check(self, runtime: EngineRuntime) -> None:
        """Raise InvalidInputError for an unknown runtime, or a setting that the runtime does not have."""
        if runtime not in get_args(EngineRuntime):
            raise not_one_of("runtime", runtime, get_args(EngineRuntime))
        if runtime == "tensorrt":
            if len(self.architectures) > 1:
                raise InvalidInputError(
                    f"a TensorRT engine is for one GPU architecture; got {', '.join(self.architectures)}. Build on a "
                    "machine with each of the GPUs, or take hardware_compatibility='ampere_plus'."
                )
            return
        if self.hardware_compatibility != "none":
            raise InvalidInputError(
                "TensorRT-RTX has no hardware-compatible mode; name the architectures, one engine can be for several"
            )
        if self.version_compatible:
            raise InvalidInputError(
                "TensorRT-RTX has no version-compatible mode: an engine loads only in the release that built it. "
                "Build again after an update, which takes seconds."
            )
        if self.timing_cache is not None:
            raise InvalidInputError(
                "TensorRT-RTX uses no timing cache: it times nothing while it builds. Leave timing_cache out."
            )
