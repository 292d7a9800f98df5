# SPDX-License-Identifier: Apache-2.0
"""The section `dataset`."""

from dataclasses import dataclass, field
from typing import Any

from ocdserve.builder.tao.spec.field import key
from ocdserve.builder.tao.spec.shared import IMAGE_MODES


@dataclass(frozen=True)
class PreProcess:
    """One preprocessing step: the name of a class of TAO, and its arguments."""

    type: str = key("", "for example Resize2D")
    args: Any = key(None, "arguments of the step: a mapping, for some steps a list")


@dataclass(frozen=True)
class TrainArgs:
    """How training images are read and augmented."""

    img_mode: str = key("BGR", "channel order of the network's input", choices=IMAGE_MODES)
    filter_keys: tuple[str, ...] = key(
        ("img_path", "img_name", "text_polys", "texts", "ignore_tags", "shape"), "fields of a sample that are dropped"
    )
    ignore_tags: tuple[str, ...] = key(("*", "###"), "texts that mean don't-care")
    pre_processes: tuple[PreProcess, ...] = key(
        (
            PreProcess("EastRandomCropData", {"keep_ratio": True, "max_tries": 50, "size": [640, 640]}),
            PreProcess("MakeBorderMap", {"shrink_ratio": 0.4, "thresh_max": 0.7, "thresh_min": 0.3}),
            PreProcess("MakeShrinkMap", {"shrink_ratio": 0.4, "min_text_size": 8}),
        ),
        "steps, in order",
    )


@dataclass(frozen=True)
class ValidateArgs:
    """How evaluation images are read."""

    img_mode: str = key("BGR", "channel order of the network's input", choices=IMAGE_MODES)
    filter_keys: tuple[str, ...] = key(("",), "fields of a sample that are dropped")
    ignore_tags: tuple[str, ...] = key(("*", "###"), "texts that mean don't-care")
    pre_processes: tuple[PreProcess, ...] = key(
        (PreProcess("Resize2D", {"short_size": [1280, 736], "resize_text_polys": True}),), "steps, in order"
    )


@dataclass(frozen=True)
class TrainLoader:
    """How training samples are batched."""

    batch_size: int = key(16, "images per batch", minimum=1)
    shuffle: bool = key(True, "shuffle the images")
    pin_memory: bool = key(False, "page-locked batches")
    num_workers: int = key(0, "processes that read and augment images; 0: the training process", minimum=0)
    collate_fn: str = key("", "class of TAO that joins samples; no effect here")


@dataclass(frozen=True)
class ValidateLoader:
    """How evaluation images are batched."""

    batch_size: int = key(1, "images per batch", minimum=1)
    shuffle: bool = key(False, "shuffle the images; no effect on results")
    pin_memory: bool = key(False, "page-locked batches; no effect here")
    num_workers: int = key(0, "threads that read images; 0: up to four", minimum=0)
    collate_fn: str = key("ICDARCollateFN", "class of TAO that joins samples; no effect here")


@dataclass(frozen=True)
class TrainDataset:
    """Images to train with."""

    data_name: str = key("ICDAR2015Dataset", "ICDAR2015Dataset or UberDataset")
    data_path: tuple[str, ...] = key((), "folders with img/ and gt/, or list files")
    args: TrainArgs = field(default_factory=TrainArgs)
    loader: TrainLoader = field(default_factory=TrainLoader)


@dataclass(frozen=True)
class ValidateDataset:
    """Images to evaluate with."""

    data_name: str = key("ICDAR2015Dataset", "ICDAR2015Dataset or UberDataset")
    data_path: tuple[str, ...] = key((), "folders with img/ and gt/, or list files")
    args: ValidateArgs = field(default_factory=ValidateArgs)
    loader: ValidateLoader = field(default_factory=ValidateLoader)


@dataclass(frozen=True)
class QuantCalibrationDataset:
    """Calibration images of the action quantize."""

    images_dir: str = key("", "folder of images")


@dataclass(frozen=True)
class Dataset:
    """All data sets."""

    train_dataset: TrainDataset = field(default_factory=TrainDataset)
    validate_dataset: ValidateDataset = field(default_factory=ValidateDataset)
    quant_calibration_dataset: QuantCalibrationDataset = field(default_factory=QuantCalibrationDataset)
