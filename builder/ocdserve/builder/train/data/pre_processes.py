# SPDX-License-Identifier: Apache-2.0
"""The ordered list of steps that makes training samples of labelled pictures: `pre_processes` of NVIDIA TAO's specs."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.builder.train.data.augment import View
from ocdserve.builder.train.data.steps import (
    Affine,
    EastRandomCropData,
    Fliplr,
    GaussianBlur,
    Range,
    Resize,
    Resize2D,
    Sometimes,
    Step,
)
from ocdserve.builder.train.data.targets import border_map, check_targets, shrink_map
from ocdserve.contract import InvalidInputError

_GROUP = "IaaAugment"
_AUGMENTERS: dict[str, type[Step]] = {kind.__name__: kind for kind in (Fliplr, Affine, Resize, GaussianBlur, Sometimes)}
_STEPS: dict[str, type[Step]] = {kind.__name__: kind for kind in (EastRandomCropData, Resize2D)}


@dataclass(frozen=True)
class MakeBorderMap:
    """Arguments of `border_map`."""

    shrink_ratio: float = 0.4
    thresh_min: float = 0.3
    thresh_max: float = 0.7

    def __post_init__(self) -> None:
        check_targets(self.shrink_ratio, self.thresh_min, self.thresh_max)


@dataclass(frozen=True)
class MakeShrinkMap:
    """Arguments of `shrink_map`."""

    shrink_ratio: float = 0.4
    min_text_size: float = 8

    def __post_init__(self) -> None:
        check_targets(self.shrink_ratio)


_TARGETS = {kind.__name__: kind for kind in (MakeBorderMap, MakeShrinkMap)}


class TrainingSample(NamedTuple):
    """What a network is trained with.

    Attributes:
        image: uint8 (H, W, 3).
        shrink_map, shrink_mask, threshold_map, threshold_mask: float32 (H, W); see `targets`.
    """

    image: NDArray[np.uint8]
    shrink_map: NDArray[np.float32]
    shrink_mask: NDArray[np.float32]
    threshold_map: NDArray[np.float32]
    threshold_mask: NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """Steps that change a picture, and how targets are made of the result.

    Attributes:
        steps: In order.
        border: Arguments of the border map.
        shrink: Arguments of the shrink map.
    """

    steps: tuple[Step, ...] = (EastRandomCropData(),)
    border: MakeBorderMap = MakeBorderMap()
    shrink: MakeShrinkMap = MakeShrinkMap()

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of every sample; None where they depend on the picture."""
        size: tuple[int, int] | None = None
        for step in self.steps:
            if isinstance(step, EastRandomCropData):
                size = step.size[::-1]
            elif isinstance(step, Resize2D):
                size = step.short_size[::-1] if isinstance(step.short_size, tuple) else None
            elif isinstance(step, Resize | Sometimes):
                size = None
        return size

    def __call__(self, image: NDArray[np.uint8], truth: Truth, random: Generator) -> TrainingSample:
        """Make a sample of a picture, uint8 (H, W, 3), and its labels."""
        view = View.of(image, truth)
        for step in self.steps:
            view = step(view, random)
        labels = view.polygons, view.ignored, view.size
        border, shrink = self.border, self.shrink
        return TrainingSample(
            view.pixels(),
            *shrink_map(*labels, shrink.shrink_ratio, shrink.min_text_size),
            *border_map(*labels, border.shrink_ratio, border.thresh_min, border.thresh_max),
        )


def augmentation(pre_processes: Sequence[tuple[str, Any]]) -> Augmentation:
    """Read the list of (type, arguments) of a spec.

    `IaaAugment` takes a list of augmenters, each {type, args}; own code, without imgaug.

    Raises:
        InvalidInputError: A step or an argument is unknown or invalid, a target is missing, or steps follow the
            targets; the message names it.
    """
    steps: list[Step] = []
    targets: dict[str, Any] = {}
    for name, args in pre_processes:
        if name in _TARGETS:
            targets[name] = _built(_TARGETS[name], args)
        elif targets:
            raise InvalidInputError(
                f"pre_processes: {name} comes after {' and '.join(targets)}, so that the target would not fit the "
                f"picture any more; put {' and '.join(_TARGETS)} last"
            )
        elif name == _GROUP:
            steps += _augmenters(args)
        elif name in _STEPS:
            steps.append(_built(_STEPS[name], args))
        else:
            raise InvalidInputError(
                f"pre_processes: the steps are {', '.join((_GROUP, *_STEPS, *_TARGETS))}; got {name!r}"
            )
    missing = [name for name in _TARGETS if name not in targets]
    if missing:
        raise InvalidInputError(f"pre_processes lacks {' and '.join(missing)}, without which there is nothing to learn")
    return Augmentation(tuple(steps), targets["MakeBorderMap"], targets["MakeShrinkMap"])


def _augmenters(args: Any) -> tuple[Step, ...]:
    """Read the arguments of IaaAugment, or a list of Sometimes: augmenters, or a single one."""
    entries = [args] if isinstance(args, Mapping) else args
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise InvalidInputError(f"{_GROUP} takes a list of augmenters, each of type and args; got {args!r}")
    steps: list[Step] = []
    for entry in entries:
        if not isinstance(entry, Mapping) or not {"type"} <= set(entry) <= {"type", "args"}:
            raise InvalidInputError(f"{_GROUP}: an augmenter is a mapping of type and args; got {entry!r}")
        if entry["type"] not in _AUGMENTERS:
            raise InvalidInputError(f"{_GROUP}: the augmenters are {', '.join(_AUGMENTERS)}; got {entry['type']!r}")
        steps.append(_built(_AUGMENTERS[entry["type"]], entry.get("args")))
    return tuple(steps)


def _built(kind: Any, args: Any) -> Any:
    """Make a step of its arguments, each converted to the type of its field."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if kind is Resize2D and not isinstance(args, Mapping):
        args = {"short_size": args}
    given = {} if args is None else args
    needed = [field.name for field in fields.values() if field.default is dataclasses.MISSING]
    if not isinstance(given, Mapping) or not set(needed) <= set(given) <= set(fields):
        optional = [f"{name} (optional)" for name in fields if name not in needed]
        got = ", ".join(map(str, given)) if isinstance(given, Mapping) else repr(args)
        raise InvalidInputError(f"{kind.__name__} takes {', '.join([*needed, *optional])}; got {got or 'nothing'}")
    return kind(**{key: _converted(f"{kind.__name__}.{key}", fields[key].type, value) for key, value in given.items()})


def _converted(name: str, kind: Any, value: Any) -> Any:
    if kind == tuple[Step, ...]:
        return _augmenters(value)
    if kind == tuple[float, float]:
        return _range(name, value)
    is_pair = isinstance(value, Sequence) and [type(side) for side in value] == [int, int]
    if kind in (tuple[int, int], tuple[int, int] | int) and is_pair:
        return tuple(value)
    if kind == tuple[int, int]:
        raise InvalidInputError(f"{name} must be [width, height] in pixels; got {value!r}")
    if kind == tuple[int, int] | int and type(value) is not int:
        raise InvalidInputError(f"{name} must be [width, height] or one number, in pixels; got {value!r}")
    if kind is bool and type(value) is not bool:
        raise InvalidInputError(f"{name} must be true or false; got {value!r}")
    if kind is int and type(value) is not int:
        raise InvalidInputError(f"{name} must be a whole number; got {value!r}")
    return _number(name, value) if kind is float else value


def _range(name: str, value: Any) -> Range:
    """Read a number, or the two ends of a range."""
    ends = [value, value] if not isinstance(value, Sequence) or isinstance(value, str) else list(value)
    low, high = (_number(name, end) for end in ends) if len(ends) == 2 else (math.nan, math.nan)
    if not low <= high:
        raise InvalidInputError(f"{name} must be a number or a range [low, high]; got {value!r}")
    return low, high


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InvalidInputError(f"{name} must be a finite number; got {value!r}")
    return float(value)
