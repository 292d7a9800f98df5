# SPDX-License-Identifier: Apache-2.0
"""The training set of a spec."""

from dataclasses import dataclass

from ocdserve.backend.evaluation.dataset import Sample, Truth
from ocdserve.builder.tao.inputs.dataset import DataSet, label_format, load_data_set
from ocdserve.builder.tao.inputs.labels import LabelRules
from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.train.data.dataset import SAMPLE_KEYS, TrainingSet
from ocdserve.builder.train.data.pre_processes import Augmentation, augmentation
from ocdserve.contract import InvalidInputError

_ARGS = "dataset.train_dataset.args"


@dataclass(frozen=True)
class TrainingData:
    """Samples to train with.

    Attributes:
        dataset: Indexed by (epoch, index).
        notes: Files and labels that were left out and why, one sentence each.
    """

    dataset: TrainingSet
    notes: tuple[str, ...]


def training_data(spec: Spec, seed: int) -> TrainingData:
    """Read the labels of `dataset.train_dataset`; pictures are read when they are asked for.

    Labels are read by our rules, whatever `ocdserve.compat` says: corners keep their order, pictures without text stay.

    Raises:
        InvalidInputError: A key, a path or a label file is invalid, or the set is empty or an archive.
    """
    data = spec.dataset.train_dataset
    dropped = [name for name in data.args.filter_keys if name in SAMPLE_KEYS]
    if dropped:
        raise InvalidInputError(
            f"{_ARGS}.filter_keys drops {', '.join(dropped)}, without which there is nothing to learn; take it out "
            "of the list"
        )
    rules = LabelRules(label_format(data), data.args.ignore_tags)
    found = load_data_set(data.data_path, rules, "train_dataset")
    steps = _augmentation(spec)
    mode = data.args.img_mode
    return TrainingData(TrainingSet(_samples(found), steps, seed, mode), found.notes)  # type: ignore[arg-type]


def _augmentation(spec: Spec) -> Augmentation:
    data = spec.dataset.train_dataset
    try:
        steps = augmentation([(step.type, step.args) for step in data.args.pre_processes])
    except InvalidInputError as error:
        raise InvalidInputError(f"{_ARGS}: {error}") from error
    if steps.size is None and data.loader.batch_size > 1:
        raise InvalidInputError(
            f"{_ARGS}.pre_processes: the pictures of a batch need one size; end the steps with EastRandomCropData or a "
            "Resize2D to [width, height], or set dataset.train_dataset.loader.batch_size to 1"
        )
    return steps


def _samples(data: DataSet) -> list[Sample]:
    return [
        Sample(
            sample.image,
            Truth(
                tuple(label.polygon for label in sample.labels.instances),
                tuple(label.ignored for label in sample.labels.instances),
            ),
        )
        for sample in data.samples
    ]
