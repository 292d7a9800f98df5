# SPDX-License-Identifier: Apache-2.0
"""`detector.json`: the contract of a network."""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, get_args

from ocdserve.backend.spec.json_fields import build, check_common_fields, is_finite_number, read_object
from ocdserve.backend.spec.params import TAO_BOX_THRESH, PostprocessParams
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.contract import InvalidInputError

# 1: first version.
SCHEMA_VERSION = 1

SPEC_FILE = "detector.json"

Color = Literal["BGR", "RGB"]

_LEAST_STD = 1e-6
_LARGEST_MEAN = 1e6


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
            if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(is_finite_number, values)):
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
        precision: fp32, fp16, int8 or fp8; bf16 of an FP32 network that OpenVINO computes in bfloat16 if the processor
            can, so that answers may depend on the processor.
        network: What the network expects.
        resize: How an image gets its network size; mode `tao` has no tiles and no `reduce_jpeg`, as in TAO.
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
        check_common_fields(self, SPEC_FILE, SCHEMA_VERSION)
        if self.postprocess.mode == "tao" and self.resize.reduce_jpeg:
            raise InvalidInputError(
                "resize.reduce_jpeg must be false in mode tao, which has TAO's pixels; got true. Choose one of them."
            )
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
        values = read_object(text)
        if isinstance(thresholds := values.get("postprocess"), dict) and thresholds.get("mode") == "tao":
            thresholds.setdefault("box_thresh", TAO_BOX_THRESH)
        sections = {"network": NetworkSpec, "resize": ResizePolicy, "postprocess": PostprocessParams}
        return build(cls, values, sections)
