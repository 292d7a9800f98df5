# SPDX-License-Identifier: Apache-2.0
"""The bundle: one folder that holds a detector, `detector.json` beside its network.

`detector.json` is the contract of a network: tensor names, layout, colour order, normalisation, resize policy
and default post-processing. Calibration, evaluation and serving all read this one file.
"""

import difflib
import hashlib
import importlib.util
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from ocdserve.backend.postprocess import PostprocessParams
from ocdserve.backend.preprocess import ResizePolicy
from ocdserve.contract import InvalidInputError, UnavailableError

# 1: first version.
SCHEMA_VERSION = 1

_SPEC_FILE = "detector.json"
# What else a build leaves beside the network.
_COMPANIONS = ("report.json", "calibration.cache", "damage.png")

Color = Literal["BGR", "RGB"]
_T = TypeVar("_T")

_DEFAULT_MODEL_PACKAGE = "rapidocr"
_DEFAULT_MODEL_FILE = "models/PP-OCRv6_det_small.onnx"


@dataclass(frozen=True)
class NetworkSpec:
    """What the network itself expects: float32 N x 3 x H x W of (pixel - mean) / std.

    Attributes:
        input: Name of the input tensor; None where the model has only one.
        output: Name of the output with the probability map, N x 1 x H x W; None where there is only one.
        color: Channel order that the network was trained with.
        mean: Subtracted from the 0..255 pixel values, by network channel.
        std: Divides what is left, by network channel.
        folded: The model holds normalisation and layout already (`ocdserve.backend.network.graph.fold`): uint8
            N x H x W x 3 RGB in, uint8 N x H x W map out. The other fields tell what it was made from.

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
                raise InvalidInputError(f"network.{name} must be three numbers, one a channel; got {values!r}")
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if min(self.std) <= 0:
            raise InvalidInputError(f"network.std must be positive, it divides; got {self.std!r}")


@dataclass(frozen=True)
class DetectorSpec:
    """Content of `detector.json`.

    Attributes:
        name: Name of the detector.
        model: File with the network, ONNX, beside `detector.json`.
        precision: fp32, fp16, int8 or fp8.
        network: What the network expects.
        resize: How an image gets its network size.
        postprocess: Default thresholds.
        runtime: Runtime that the network was built and judged for; None: any that executes ONNX.
        engine: File with the engine that TensorRT made of the network; None: there is none.
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
            if not isinstance(file, str) or Path(file).name != file or file in ("", "..", _SPEC_FILE):
                raise InvalidInputError(f"{name} must name a file beside detector.json; got {file!r}")

    def to_json(self) -> str:
        """The text of `detector.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DetectorSpec":
        """Read `detector.json`.

        Raises:
            InvalidInputError: The text is no JSON object, or a field is unknown, of the wrong type or range.
        """
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidInputError(f"not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise InvalidInputError(f"must hold a JSON object; got {type(values).__name__}")
        sections = {"network": NetworkSpec, "resize": ResizePolicy, "postprocess": PostprocessParams}
        built = {
            name: _build(sections[name], value, f"{name}.") if name in sections else value
            for name, value in values.items()
        }
        return _build(cls, built, "")


@dataclass(frozen=True)
class Bundle:
    """A detector ready to load: its contract and the file with its network."""

    spec: DetectorSpec
    model_path: Path

    @classmethod
    def load(cls, directory: Path | str | None = None) -> "Bundle":
        """Open a bundle: a folder, or one with the network of the `rapidocr` package.

        Args:
            directory: The folder; None or `default` for the default detector, `fast` for the same network on less than
                half the pixels. A folder of such a name comes first.

        Raises:
            InvalidInputError: The folder is no valid bundle.
            UnavailableError: The default network is not installed.
        """
        if directory is None:
            return cls(PRESETS[_BUILT_IN["default"]], _default_model())
        path = Path(directory) / _SPEC_FILE
        if not path.is_file():
            if str(directory) in _BUILT_IN:
                return cls(PRESETS[_BUILT_IN[str(directory)]], _default_model())
            raise InvalidInputError(
                f"{directory} is no bundle: it holds no detector.json. Name a folder made by a build, or a built-in "
                f"detector: {', '.join(_BUILT_IN)}."
            )
        try:
            spec = DetectorSpec.from_json(path.read_text("utf-8"))
        except (InvalidInputError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{path}: {error}") from error
        for file in filter(None, (spec.model, spec.engine)):
            if not (path.parent / file).is_file():
                raise InvalidInputError(f"{path}: the network {file!r} is not beside it. Copy the bundle as a whole.")
        return cls(spec, path.parent / spec.model)

    def save(self, directory: Path) -> "Bundle":
        """Write the bundle as a folder, with what its build left beside the network; returns the copy."""
        directory.mkdir(parents=True, exist_ok=True)
        model = directory / self.spec.model
        files = [(self.model_path, model)]
        if self.engine_path is not None:
            files.append((self.engine_path, directory / self.engine_path.name))
        if (self.model_path.parent / _SPEC_FILE).is_file():
            companions = (self.model_path.parent / name for name in _COMPANIONS)
            files += [(path, directory / path.name) for path in companions if path.is_file()]
        for source, target in files:
            if not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)
        (directory / _SPEC_FILE).write_text(self.spec.to_json(), "utf-8")
        return Bundle(self.spec, model)

    @property
    def engine_path(self) -> Path | None:
        """File of the TensorRT engine, if there is one."""
        return None if self.spec.engine is None else self.model_path.with_name(self.spec.engine)

    def sha256(self) -> str:
        """Hash of the network file, hexadecimal."""
        return hashlib.sha256(self.model_path.read_bytes()).hexdigest()


# Names of the built-in detectors, and their presets.
_BUILT_IN = {"default": "ppocr", "fast": "ppocr-fast"}


def _default_model() -> Path:
    found = importlib.util.find_spec(_DEFAULT_MODEL_PACKAGE)
    for location in (found.submodule_search_locations if found else None) or ():
        path = Path(location) / _DEFAULT_MODEL_FILE
        if path.is_file():
            return path
    raise UnavailableError(
        "the default network is not installed: it comes with the package rapidocr>=3.10. "
        "Run `pip install 'ocdserve[server]'`, or name a bundle of your own."
    )


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
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ppocr: PaddleOCR's normalisation (x / 255 - 0.5) / 0.5 on BGR, and its thresholds; resize chosen on the evaluation
#   sets of this project (see ARCHITECTURE.md).
# ppocr-fast: the same at less than half the pixels, PaddleOCR's limit of 960.
# ocdnet: NVIDIA TAO's: mean by channel index in BGR, division by 255, a plain stretch to 1280 x 736.
# dbnet: the ImageNet statistics that most DBNet trainings use, RGB.
PRESETS: dict[str, DetectorSpec] = {
    "ppocr": DetectorSpec(
        name="ppocr",
        resize=ResizePolicy(kind="short_side", side=736, largest_side=1600, bucket=64),
        postprocess=PostprocessParams(box_thresh=0.6, unclip_ratio=1.5),
    ),
    "ppocr-fast": DetectorSpec(
        name="ppocr-fast",
        resize=ResizePolicy(kind="short_side", side=480, largest_side=960, bucket=32),
        postprocess=PostprocessParams(box_thresh=0.6, unclip_ratio=1.5),
    ),
    "ocdnet": DetectorSpec(
        name="ocdnet",
        network=NetworkSpec(mean=(122.67891434, 116.66876762, 104.00698793), std=(255.0, 255.0, 255.0)),
        resize=ResizePolicy(kind="fixed", width=1280, height=736),
    ),
    "dbnet": DetectorSpec(
        name="dbnet",
        network=NetworkSpec(color="RGB", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
        resize=ResizePolicy(kind="short_side", side=736, largest_side=1600, bucket=64),
        postprocess=PostprocessParams(box_thresh=0.5),
    ),
}
