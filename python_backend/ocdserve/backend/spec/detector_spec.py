# SPDX-License-Identifier: Apache-2.0
"""`detector.json`: the contract of a network."""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from ocdserve.backend.spec.params import TAO_BOX_THRESH, PostprocessParams
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.contract import InvalidInputError

# 1: first version.
SCHEMA_VERSION = 1

SPEC_FILE = "detector.json"

Color = Literal["BGR", "RGB"]

_LEAST_STD = 1e-6
_LARGEST_MEAN = 1e6

_T = TypeVar("_T")


@dataclass(frozen=True)
class NetworkSpec:
    """What the network itself expects: float32 N x 3 x H x W of (pixel - mean) / std.

    Attributes:
        input: Name of the input tensor; None where the model has only one.
        output: Name of the output with the probability map, N x 1 x H x W; None where there is only one.
        color: Channel order that the network was trained with.
        mean: Subtracted from the 0..255 pixel values, by network channel.
        std: Divides the difference, by network channel.
        folded: The model holds normalisation and layout already (`ocdserve.backend.network.rewrite.fold.fold`): uint8
            N x H x W x 3 RGB in, uint8 N x H x W map out. The other fields describe the original network.

    Raises:
        InvalidInputError: A field is out of its range; the message names it.
    """

    input: str | None = None
    output: str | None = None
    color: Color = "BGR"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    folded: bool = False

    def __post_init__(self) -> None:
        if self.color not in get_args(Color):
            raise InvalidInputError(f"network.color must be BGR or RGB; got {self.color!r}")
        for name in ("input", "output"):
            if not isinstance(getattr(self, name), str | None):
                raise InvalidInputError(f"network.{name} must be a tensor's name; got {getattr(self, name)!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_finite_number, values)):
                raise InvalidInputError(f"network.{name} must be three numbers, one per channel; got {values!r}")
            object.__setattr__(self, name, tuple(float(value) for value in values))
        # Networks compute in float32, where the quotient of pixels must be finite.
        if min(self.std) < _LEAST_STD:
            raise InvalidInputError(f"network.std must be positive, it divides; got {self.std!r}. The least is 1e-6.")
        if max(map(abs, self.mean)) > _LARGEST_MEAN:
            raise InvalidInputError(f"network.mean must be from -1e6 to 1e6; got {self.mean!r}")


@dataclass(frozen=True)
class DetectorSpec:
    """Content of `detector.json`.

    Attributes:
        name: Name of the detector.
        model: File with the network, ONNX, next to `detector.json`.
        precision: fp32, fp16, int8 or fp8.
        network: What the network expects.
        resize: How an image gets its network size; mode `tao` has no tiles, as in TAO.
        postprocess: Default thresholds.
        runtime: Runtime that the network was built and tested for; None: any that executes ONNX.
        engine: File with the network's TensorRT engine; None: there is none.
        schema_version: Version of this format.

    Raises:
        InvalidInputError: A field is unknown or out of its range; the message names it.
    """

    name: str = "detector"
    model: str = "model.onnx"
    precision: str = "fp32"
    network: NetworkSpec = field(default_factory=NetworkSpec)
    resize: ResizePolicy = field(default_factory=ResizePolicy)
    postprocess: PostprocessParams = field(default_factory=PostprocessParams)
    runtime: str | None = None
    engine: str | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise InvalidInputError(
                f"schema_version must be {SCHEMA_VERSION}; got {self.schema_version!r}. "
                "Build the bundle again with this version of ocdserve."
            )
        if not isinstance(self.runtime, str | None):
            raise InvalidInputError(f"runtime must be a runtime's name; got {self.runtime!r}")
        for name, file in (("model", self.model), ("engine", self.engine)):
            if name == "engine" and file is None:
                continue
            if not isinstance(file, str) or Path(file).name != file or file in ("", "..", SPEC_FILE):
                raise InvalidInputError(f"{name} must name a file next to detector.json; got {file!r}")

        # Also for what was written before there were tiles.
        tiles = self.postprocess.mode == "default" and self.resize.tiles is not False
        object.__setattr__(self, "resize", replace(self.resize, tiles=tiles))

    def to_json(self) -> str:
        """The text of `detector.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DetectorSpec":
        """Read `detector.json`.

        Raises:
            InvalidInputError: The text is not a JSON object, or a field is unknown, of the wrong type or range.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            raise InvalidInputError(f"not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise InvalidInputError(f"must hold a JSON object; got {type(values).__name__}")
        if isinstance(thresholds := values.get("postprocess"), dict) and thresholds.get("mode") == "tao":
            thresholds.setdefault("box_thresh", TAO_BOX_THRESH)
        sections = {"network": NetworkSpec, "resize": ResizePolicy, "postprocess": PostprocessParams}
        built = {
            name: _build(sections[name], value, f"{name}.") if name in sections else value
            for name, value in values.items()
        }
        return _build(cls, built, "")


def _build(cls: type[_T], values: Any, prefix: str) -> _T:
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"{prefix.rstrip('.')} must be a JSON object; got {values!r}")
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}."
            raise InvalidInputError(f"unknown field {prefix}{name}; {hint}")
        built[name] = _converted(f"{prefix}{name}", value, known[name].type)
    return cls(**built)


def _converted(name: str, value: Any, expected: Any) -> Any:
    """A JSON value as the field's type; a whole number may be written as 640.0. Other types pass as they are."""
    fits = {
        bool: isinstance(value, bool),
        str: isinstance(value, str),
        float: _is_finite_number(value),
        int: _is_finite_number(value) and value == int(value),
    }
    if expected not in fits:
        return value
    if not fits[expected]:
        raise InvalidInputError(f"{name} must be a JSON value of type {expected.__name__}; got {value!r}")
    return expected(value)


def _is_finite_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False
