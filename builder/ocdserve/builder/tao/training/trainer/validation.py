# SPDX-License-Identifier: Apache-2.0
"""Measure a network on labelled images, with the post-processing and the matching of the action `evaluate`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.presets import PRESETS
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.builder.tao.evaluate.measure import MeasureOptions, measure
from ocdserve.builder.tao.inputs.dataset import DataSet, label_format, load_data_set
from ocdserve.builder.tao.inputs.labels import LabelRules
from ocdserve.builder.tao.inputs.pipeline import (
    LoaderOptions,
    NetworkImage,
    ReadOptions,
    Unreadable,
    named_unreadable,
    read_image,
    run_pipeline,
)
from ocdserve.builder.tao.inputs.prepare import resize_policy
from ocdserve.builder.tao.spec import PostProcessingArgs, Spec
from ocdserve.contract import InvalidInputError


class TorchNetwork:
    """A network of PyTorch behind the interface of compiled networks.

    Args:
        module: Float (N, 3, H, W), normalised as TAO does, to probabilities (N, 1, H, W) in evaluation mode.
        device: Where its weights are.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._module = module
        self._device = device
        spec = PRESETS["ocdnet"].network
        self._mean = torch.tensor(spec.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(spec.std, device=device).view(3, 1, 1)

    def infer(self, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the float32 map (h, w) of each image: uint8 or float32 (h, w, 3), channels in the network's order.

        Images of equal sizes are computed in one batch.
        """
        maps: list[NDArray[Any] | None] = [None] * len(images)
        for shape in dict.fromkeys(image.shape for image in images):
            indices = [index for index, image in enumerate(images) if image.shape == shape]
            batch = np.stack([images[index] for index in indices]).transpose(0, 3, 1, 2)
            with _evaluating(self._module), torch.no_grad():
                pixels = torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)
                found = self._module((pixels.float() - self._mean) / self._std)[:, 0].float().cpu().numpy()
            for index, probability in zip(indices, found, strict=True):
                maps[index] = probability
        return [probability for probability in maps if probability is not None]


@dataclass(frozen=True)
class Validator:
    """Labelled images, and how a network is measured on them.

    Attributes:
        data: The images.
        read: How they become the network's pixels.
        options: Post-processing and matching.
        loader: Batch size and readers.
    """

    data: DataSet
    read: ReadOptions
    options: MeasureOptions
    loader: LoaderOptions

    def measure(self, network: TorchNetwork, part: slice = slice(None)) -> Counts:
        """Return the summed counts of a part of the images.

        Raises:
            InvalidInputError: An image cannot be read.
        """
        samples = self.data.samples[part]

        def finish(index: int, image: NetworkImage, probability: NDArray[Any]) -> Counts:
            sample = samples[index]
            return measure(sample.image, sample.labels.instances, probability, image.frame, self.options).counts

        read = partial(read_image, options=self.read)
        found = list(run_pipeline([sample.image for sample in samples], read, network, finish, self.loader))
        unreadable = [result for result in found if isinstance(result, Unreadable)]
        if unreadable:
            raise InvalidInputError(f"validation: {named_unreadable(unreadable, len(samples))}")
        return total(result for result in found if isinstance(result, Counts))


def validator(spec: Spec, thresholds: PostProcessingArgs) -> Validator:
    """Read the labels of `dataset.validate_dataset`.

    Args:
        spec: Its data set, and `ocdserve.compat`.
        thresholds: Of the post-processing.

    Raises:
        InvalidInputError: A key or a label file is invalid, or the set is empty or an archive.
    """
    data = spec.dataset.validate_dataset
    tao = spec.ocdserve.compat == "tao"
    images = load_data_set(data.data_path, LabelRules(label_format(data), data.args.ignore_tags, tao))
    policy, resizes_labels = resize_policy(data.args.pre_processes)
    if policy is None:
        raise InvalidInputError(
            "dataset.validate_dataset.args.pre_processes needs a Resize2D, for the network takes sides of multiples of "
            "32 pixels only"
        )
    return Validator(
        images,
        read_options(policy, data.args.img_mode, tao),
        MeasureOptions(postprocess_params(thresholds, tao), resizes_labels, has_sweep=False),
        LoaderOptions(data.loader.batch_size, data.loader.num_workers),
    )


def read_options(policy: ResizePolicy, img_mode: Any, is_float: bool = False) -> ReadOptions:
    """How images are read for a `TorchNetwork`: each in one piece, in the order of `img_mode`."""
    # Decoded images are RGB, and are turned around where the mode is another one.
    return ReadOptions(replace(policy, tiles=False), img_mode, "RGB", is_float)


def postprocess_params(thresholds: PostProcessingArgs, tao: bool) -> PostprocessParams:
    """The post-processing of a `TorchNetwork`: with the thresholds of a spec, as in TAO or as served."""
    own = PostprocessParams(mode="tao") if tao else PRESETS["ocdnet"].postprocess
    return replace(own, **asdict(thresholds))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
