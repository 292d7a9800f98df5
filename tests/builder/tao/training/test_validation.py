# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ocdserve.backend.evaluation.figures import Counts
from ocdserve.builder.tao.spec import Spec, load_spec
from ocdserve.builder.tao.training.trainer.validation import TorchNetwork, validator
from ocdserve.contract import InvalidInputError

from ..conftest import label, picture

# TAO's mean of the first channel, over 255.
FIRST_MEAN = 122.67891434 / 255
CPU = torch.device("cpu")


class First(nn.Module):
    """The first channel of an image as probability."""

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return x[:, :1] + FIRST_MEAN


def spec_of(folder: Path, *overrides: str) -> Spec:
    size = "[{type: Resize2D, args: {short_size: [256, 160], resize_text_polys: true}}]"
    data = f"dataset.validate_dataset.data_path=[{folder}]"
    return load_spec(None, [data, f"dataset.validate_dataset.args.pre_processes={size}", *overrides]).spec


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Two pictures of one word each, found by its blue; the label of the second is elsewhere."""
    for stem, left in (("a", 0), ("b", 120)):
        picture(tmp_path / "img" / f"{stem}.png", [(40, 40, 120, 40, 0.9)])
        # A region grows by 1.5 area / perimeter = 22.5 pixels.
        label(tmp_path, stem, [f"{17 + left},17,{183 + left},17,{183 + left},103,{17 + left},103,word"])
    return tmp_path


def test_maps_have_the_images_order_and_the_module_its_mode() -> None:
    module = First()
    images = [
        np.full(shape, value, np.uint8) for shape, value in (((32, 64, 3), 255), ((32, 32, 3), 0), ((32, 64, 3), 51))
    ]
    maps = TorchNetwork(module, CPU).infer(images)
    assert [(found.shape, round(float(found[0, 0]), 4)) for found in maps] == [
        ((32, 64), 1.0),
        ((32, 32), 0.0),
        ((32, 64), 0.2),
    ]
    assert module.training


@pytest.mark.parametrize("compat", ["fixed", "tao"])
def test_detections_are_compared_with_the_labels(words: Path, compat: str) -> None:
    found = validator(spec := spec_of(words, f"ocdserve.compat={compat}"), spec.train.post_processing.args)
    assert found.measure(TorchNetwork(First(), CPU)) == Counts(matched=1, detections=2, truths=2)
    assert found.measure(TorchNetwork(First(), CPU), slice(0, None, 2)) == Counts(1, 1, 1)


def test_the_channel_order_is_that_of_img_mode(words: Path) -> None:
    """In RGB, the first channel is the red one, 30 of 255 everywhere."""
    spec = spec_of(words, "dataset.validate_dataset.args.img_mode=RGB")
    assert validator(spec, spec.train.post_processing.args).measure(TorchNetwork(First(), CPU)).detections == 0


def test_the_thresholds_are_those_given(words: Path) -> None:
    spec = spec_of(words, "train.post_processing.args.box_thresh=0.95")
    assert validator(spec, spec.train.post_processing.args).measure(TorchNetwork(First(), CPU)).detections == 0


def test_an_unreadable_image_is_named(words: Path) -> None:
    """Fault 5: TAO takes another image in its place."""
    (words / "img" / "b.png").write_bytes(b"no picture")
    spec = spec_of(words)
    with pytest.raises(InvalidInputError, match=r"validation: 1 of 2 images could not be read: .*b\.png"):
        validator(spec, spec.train.post_processing.args).measure(TorchNetwork(First(), CPU))


def test_a_set_without_a_size_is_refused(words: Path) -> None:
    spec = spec_of(words, "dataset.validate_dataset.args.pre_processes=[]")
    with pytest.raises(InvalidInputError, match=r"validate_dataset\.args\.pre_processes needs a Resize2D"):
        validator(spec, spec.train.post_processing.args)
