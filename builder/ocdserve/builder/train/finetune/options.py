# SPDX-License-Identifier: Apache-2.0
"""Options of fine-tuning, validated before anything is read."""

from dataclasses import dataclass
from pathlib import Path

from ocdserve.backend import PRESETS
from ocdserve.contract import InvalidInputError


@dataclass(frozen=True)
class Schedule:
    """How long and how fast is trained.

    Attributes:
        steps: Steps of the optimiser.
        crop: Side of a crop in pixels of the network.
        crops: Crops of the user's pictures in a step.
        keep_crops: Crops of other pictures in a step, on which the network is to stay as it is.
        strange_crops: Mixtures of all pictures in a step, at any scale and angle and in any colours, on which it is to
            stay as it is too: what it sees in none of the pictures must not become text.
        rate: Highest learning rate, of AdamW.
        warmup: Steps to reach it, an eighth of all at most; it then falls to 0 by a cosine.
        weight_decay: Of AdamW.
        keep_weight: Factor of the loss on other pictures.
        average: Decay of the weights' moving average.
        clip: Largest norm of the gradient.

    Raises:
        InvalidInputError: A value is out of its range; the message names it.
    """

    steps: int = 160
    crop: int = 320
    crops: int = 4
    keep_crops: int = 2
    strange_crops: int = 2
    rate: float = 5e-5
    warmup: int = 20
    weight_decay: float = 1e-4
    keep_weight: float = 3.0
    average: float = 0.97
    clip: float = 5.0

    def __post_init__(self) -> None:
        for name in ("steps", "crop", "crops", "keep_crops", "rate", "warmup", "keep_weight", "average", "clip"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name} must be positive; got {getattr(self, name)!r}")
        if self.strange_crops < 0:
            raise InvalidInputError(f"strange_crops must not be negative; got {self.strange_crops}")
        if self.average >= 1:
            raise InvalidInputError(f"average must be below 1; got {self.average!r}")


@dataclass(frozen=True)
class FineTuneOptions:
    """Options of fine-tuning.

    Attributes:
        data: The user's pictures: labelled, or any folder of pictures with `self_distil`.
        output: Folder of the bundle; it must not exist yet.
        bundle: What is trained further: a bundle folder, an ONNX file that a build takes, the name of a built-in
            detector, or None for the default one.
        preset: Of an ONNX file, one of `ocdserve.backend.PRESETS`; None recognises the exporter.
        self_distil: Without labels: the teacher's maps are the targets as they are.
        teacher: The detector whose maps, corrected by the labels, are the targets: a bundle folder or the name of a
            built-in one. None: `default` for the built-in `fast` and `lite`, else the detector itself at a larger size.
        keep_data: Other pictures, with or without text, on which the detector is to stay as it is.
        name: Name of the new detector; None takes the old one's and `-finetuned`.
        seed: Of all that is random.
        threads: Cores; None is all.
        schedule: How long and how fast is trained.
        most_lost: Largest loss on other pictures, in points of hmean.

    Raises:
        InvalidInputError: A field is not valid; the message names it.
    """

    data: Path
    output: Path
    bundle: Path | str | None = None
    preset: str | None = None
    self_distil: bool = False
    teacher: Path | str | None = None
    keep_data: Path | None = None
    name: str | None = None
    seed: int = 0
    threads: int | None = None
    schedule: Schedule = Schedule()
    most_lost: float = 1.0

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise InvalidInputError(f"preset: must be one of {', '.join(PRESETS)}; got {self.preset!r}")
        if not 0 <= self.seed < 2**32:
            raise InvalidInputError(f"seed must be from 0 to {2**32 - 1}; got {self.seed}")
        for name in ("data", "keep_data"):
            folder = getattr(self, name)
            if folder is not None and not folder.exists():
                raise InvalidInputError(f"{name.replace('_', '-')}: there is no folder {str(folder)!r}")
        if self.output.exists():
            raise InvalidInputError(f"output: {str(self.output)!r} exists; name a new folder or remove it")
        if self.threads is not None and self.threads < 1:
            raise InvalidInputError(f"threads must be at least 1; got {self.threads}")
        if not 0 <= self.most_lost <= 100:
            raise InvalidInputError(f"most_lost must be from 0 to 100 points of hmean; got {self.most_lost!r}")
