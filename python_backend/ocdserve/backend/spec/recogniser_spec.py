# SPDX-License-Identifier: Apache-2.0
"""`recogniser.json`: the contract of a network that reads lines of text."""

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from ocdserve.backend.spec.detector_spec import NetworkSpec
from ocdserve.backend.spec.json_fields import build, check_common_fields, is_finite_number, read_object
from ocdserve.contract import TURN_BELOW, InvalidInputError

# 1: first version.
SCHEMA_VERSION = 1

SPEC_FILE = "recogniser.json"

Output = Literal["softmax", "logits"]
Fit = Literal["pad", "stretch"]

_LARGEST_HEIGHT = 1024
_LARGEST_WIDTH = 65_536


@dataclass(frozen=True)
class RecogniserNetworkSpec(NetworkSpec):
    """What a recogniser's network expects: float32 N x 3 x H x W of (pixel - mean) / std, N x T x classes out.

    Attributes:
        blank: Class of the CTC blank.
        scores: What the network returns per class: probabilities (softmax) or logits.
    """

    blank: int = 0
    scores: Output = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blank < 0:
            raise InvalidInputError(f"network.blank must be the index of a class, from 0; got {self.blank!r}")
        if self.scores not in get_args(Output):
            raise InvalidInputError(f"network.scores must be one of {', '.join(get_args(Output))}; got {self.scores!r}")


@dataclass(frozen=True)
class WidthPolicy:
    """How a line of any width gets one that the network takes, in pixels at the network's height.

    Attributes:
        steps: Pairs of a limit and a step: up to each limit, widths are multiples of its step. Lines wider than the
            last limit are squeezed to it.
        smallest: Least width.
        fit: `pad` adds pixels on the right, `stretch` scales the line.

    Raises:
        InvalidInputError: A field is out of its range; the message names it.
    """

    steps: tuple[tuple[int, int], ...] = ((320, 16), (640, 32), (1280, 64), (3200, 128))
    smallest: int = 16
    fit: Fit = "pad"

    def __post_init__(self) -> None:
        try:
            pairs = [(int(limit), int(step)) for limit, step in self.steps]
            whole = all(tuple(given) == pair for given, pair in zip(self.steps, pairs, strict=True))
        except (TypeError, ValueError):
            pairs, whole = [], False
        limits = [limit for limit, _ in pairs]
        if (
            not whole
            or not pairs
            or limits != sorted(set(limits))
            or limits[-1] > _LARGEST_WIDTH
            or any(step < 1 or limit < 1 or limit % step for limit, step in pairs)
        ):
            raise InvalidInputError(
                "widths.steps must be pairs of a limit and a step that divides it, of whole numbers from 1 to "
                f"{_LARGEST_WIDTH}, by growing limits; got {self.steps!r}"
            )
        object.__setattr__(self, "steps", tuple(pairs))
        if not 1 <= self.smallest <= self.largest or self.fitted(self.smallest) != self.smallest:
            raise InvalidInputError(f"widths.smallest must be a width of widths.steps; got {self.smallest!r}")
        if self.fit not in get_args(Fit):
            raise InvalidInputError(f"widths.fit must be one of {', '.join(get_args(Fit))}; got {self.fit!r}")

    @property
    def largest(self) -> int:
        """The largest width."""
        return self.steps[-1][0]

    def fitted(self, width: int) -> int:
        """The width that the network takes for a line of this width, at least 1."""
        step = next((step for limit, step in self.steps if width <= limit), None)
        return self.largest if step is None else max(-(-width // step) * step, self.smallest)


@dataclass(frozen=True)
class RecogniserSpec:
    """Content of `recogniser.json`.

    Attributes:
        kind: Always `recogniser`.
        name: Name of the recogniser.
        model: File with the network, ONNX, next to `recogniser.json`.
        precision: fp32, fp16 or int8; bf16 of an FP32 network that OpenVINO computes in bfloat16 if the processor can,
            so that what is read may depend on the processor.
        network: What the network expects.
        height: Height of a line in pixels.
        widths: How a line gets a width that the network takes.
        min_text_score: Lines that are read with a lower score are left out, unless a request says otherwise; 0 to 1.
        turn_below: Lines that are read with a lower score are also read upside down, see
            `ocdserve.results.reading.direction`; 0 to 1, 0: none.
        space_threshold: Probability from which a space is read where the blank is likelier: networks are too shy of
            spaces. 0 to 1; None: where it is the likeliest.
        characters: Text of each class but the blank, in the order of the classes.
        runtime: Runtime that the network was built and tested for; None: any that executes ONNX.
        engine: File with the network's TensorRT engine; None: there is none.
        schema_version: Version of this format.

    Raises:
        InvalidInputError: A field is unknown or out of its range; the message names it.
    """

    kind: str = "recogniser"
    name: str = "recogniser"
    model: str = "model.onnx"
    precision: str = "fp32"
    network: RecogniserNetworkSpec = field(default_factory=RecogniserNetworkSpec)
    height: int = 48
    widths: WidthPolicy = field(default_factory=WidthPolicy)
    min_text_score: float = 0.5
    turn_below: float = TURN_BELOW
    space_threshold: float | None = 0.1
    characters: tuple[str, ...] = field(default=(), repr=False)
    runtime: str | None = None
    engine: str | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        check_common_fields(self, SPEC_FILE, SCHEMA_VERSION)
        if self.kind != "recogniser":
            raise InvalidInputError(f"kind must be 'recogniser'; got {self.kind!r}")
        if not 1 <= self.height <= _LARGEST_HEIGHT:
            raise InvalidInputError(f"height must be from 1 to {_LARGEST_HEIGHT} pixels; got {self.height!r}")
        for name in ("min_text_score", "turn_below", "space_threshold"):
            value = getattr(self, name)
            if name == "space_threshold" and value is None:
                continue
            if not is_finite_number(value) or not 0 <= value <= 1:
                raise InvalidInputError(f"{name} must be a number from 0 to 1; got {value!r}")
        characters: Any = self.characters
        if not isinstance(characters, list | tuple) or not all(isinstance(each, str) and each for each in characters):
            raise InvalidInputError("characters must be a list of texts, one for each class but the blank, none empty")
        object.__setattr__(self, "characters", tuple(characters))
        if self.network.blank >= self.classes:
            raise InvalidInputError(
                f"network.blank must be the index of one of the {self.classes} classes, one per character and the "
                f"blank; got {self.network.blank}"
            )

    @property
    def classes(self) -> int:
        """Number of classes, the blank included."""
        return len(self.characters) + 1

    @cached_property
    def space(self) -> tuple[int, float] | None:
        """Class of the space, and its threshold; None without either."""
        if self.space_threshold is None or " " not in self.characters:
            return None
        # The last of several: in training, PaddleOCR's lists assign a character the last class that has it.
        index = len(self.characters) - 1 - self.characters[::-1].index(" ")
        return index + (index >= self.network.blank), self.space_threshold

    def to_json(self) -> str:
        """The text of `recogniser.json`; the characters are in one line."""
        characters = json.dumps(self.characters, ensure_ascii=False)
        text = json.dumps({**asdict(self), "characters": None}, indent=2)
        return text.replace('"characters": null', f'"characters": {characters}', 1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RecogniserSpec":
        """Read `recogniser.json`.

        Raises:
            InvalidInputError: The text is not a JSON object, or a field is unknown, of the wrong type or range.
        """
        return build(cls, read_object(text), {"network": RecogniserNetworkSpec, "widths": WidthPolicy})
