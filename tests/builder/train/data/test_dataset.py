# SPDX-License-Identifier: Apache-2.0
"""The data set of training samples and the order of epochs."""

import gc
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ocdserve.backend.evaluation.dataset import Sample, Truth
from ocdserve.builder.train.data.dataset import EpochSampler, ImageMode, SampleError, TrainingSet
from ocdserve.builder.train.data.pre_processes import Augmentation
from ocdserve.builder.train.data.steps import EastRandomCropData, Fliplr, Resize2D
from ocdserve.contract import InvalidInputError

TEXT = np.array([[20, 30], [60, 30], [60, 42], [20, 42]], np.float64)
RANDOM = Augmentation((Fliplr(0.5), EastRandomCropData((64, 64))))


def dataset(folder: Path, count: int = 5, augmentation: Augmentation = RANDOM, **options: Any) -> TrainingSet:
    """Noise with one text, of which every second picture has none."""
    random, samples = np.random.default_rng(0), []
    for index in range(count):
        path = folder / f"page_{index}.png"
        Image.fromarray(random.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(path)
        samples.append(Sample(path, Truth((TEXT,), (False,)) if index % 2 == 0 else Truth((), ())))
    return TrainingSet(samples, augmentation, **options)


def test_pixels_are_normalised_by_the_index_of_their_channel(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (255, 0, 128)).save(tmp_path / "red.png")
    samples = [Sample(tmp_path / "red.png", Truth((), ()))]
    steps = Augmentation((Resize2D((64, 32)),))
    means = (122.67891434, 116.66876762, 104.00698793)
    # OpenCV's luma: 0.299 R + 0.587 G + 0.114 B = 90.8.
    expected: dict[ImageMode, tuple[int, int, int]] = {"BGR": (128, 0, 255), "RGB": (255, 0, 128), "GRAY": (91, 91, 91)}
    for mode, channels in expected.items():
        item = TrainingSet(samples, steps, mode=mode)[0]
        assert item["img"].shape == (3, 32, 64)
        assert item["img"].dtype == torch.float32
        assert item["img"].is_contiguous()
        for channel, (value, mean) in enumerate(zip(channels, means, strict=True)):
            assert item["img"][channel].unique().item() == pytest.approx((value - mean) / 255, abs=1e-6)


def test_an_item_has_the_picture_and_its_targets(tmp_path: Path) -> None:
    item = dataset(tmp_path)[0, 0]
    assert list(item) == ["img", "shrink_map", "shrink_mask", "threshold_map", "threshold_mask"]
    assert {item[name].shape for name in list(item)[1:]} == {torch.Size([64, 64])}
    assert {tensor.dtype for tensor in item.values()} == {torch.float32}
    assert item["shrink_map"].any() and item["threshold_mask"].any()


def test_pictures_without_text_are_kept(tmp_path: Path) -> None:
    data = dataset(tmp_path, 4)
    assert len(data) == 4
    item = data[0, 1]
    assert not item["shrink_map"].any() and not item["threshold_mask"].any()
    assert item["shrink_mask"].all()


def test_a_sample_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    data = dataset(tmp_path, seed=7)
    first = data[2, 3]["img"]
    np.random.seed(1)
    torch.manual_seed(1)
    for index in (4, 0):
        data[2, index]
    assert torch.equal(data[2, 3]["img"], first)
    assert torch.equal(dataset(tmp_path, seed=7)[2, 3]["img"], first)
    assert not torch.equal(data[3, 3]["img"], first)
    assert not torch.equal(dataset(tmp_path, seed=8)[2, 3]["img"], first)
    assert torch.equal(data[3]["img"], data[0, 3]["img"])


# A spawned worker imports PyTorch, which takes seconds.
@pytest.mark.parametrize(("workers", "method"), [(2, "fork"), pytest.param(1, "spawn", marks=pytest.mark.long)])
def test_workers_make_the_same_samples(tmp_path: Path, workers: int, method: str) -> None:
    data = dataset(tmp_path)
    sampler = EpochSampler(len(data), seed=3)
    # OpenCV has started its threads, as it has after a validation.
    cv2.GaussianBlur(np.zeros((1000, 1000, 3), np.uint8), (0, 0), 3)
    here = list(DataLoader(data, batch_size=2, sampler=sampler))
    apart = list(
        DataLoader(
            data,
            batch_size=2,
            sampler=sampler,
            num_workers=workers,
            multiprocessing_context=method,
            timeout=100,
        )
    )
    assert [batch["img"].shape[0] for batch in here] == [2, 2, 1]
    for ours, theirs in zip(here, apart, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_data_set_can_be_sent_to_another_process(tmp_path: Path) -> None:
    data = dataset(tmp_path, seed=7)
    received = pickle.loads(pickle.dumps(data))
    assert torch.equal(received[1, 2]["img"], data[1, 2]["img"])


def test_an_unreadable_picture_is_named_and_not_replaced(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    data.samples[1].image.write_bytes(data.samples[1].image.read_bytes()[:500])
    data.samples[2].image.unlink()
    with pytest.raises(SampleError, match=r"no sample can be made of .*page_1\.png: .*truncated"):
        data[0, 1]
    with pytest.raises(InvalidInputError, match=r"page_2\.png cannot be read: No such file"):
        data[0, 2]


def test_a_worker_s_error_is_one_line_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # After an error PyTorch waits this long, 5 s, for its worker when the loader is collected.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    data = dataset(tmp_path)
    data.samples[2].image.unlink()
    loader = DataLoader(data, sampler=EpochSampler(len(data), shuffle=False), num_workers=1)
    try:
        list(loader)
        message = ""
    except InvalidInputError as error:
        message = str(error)
    gc.collect()
    assert message == f"{data.samples[2].image} cannot be read: No such file or directory"


def test_every_epoch_has_its_own_order_of_all_pictures() -> None:
    sampler = EpochSampler(50, seed=5)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {key[0] for key in keys} == {epoch}
        orders.append([index for _, index in keys])
        assert sorted(orders[-1]) == list(range(50))
        assert len(sampler) == 50
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [list(range(50))] != orders[:1]


def test_a_training_that_resumes_at_an_epoch_has_the_same_order() -> None:
    through, resumed = EpochSampler(20, seed=5), EpochSampler(20, seed=5)
    for epoch in range(4):
        through.set_epoch(epoch)
        expected = list(through)
    resumed.set_epoch(3)
    assert list(resumed) == expected
    assert list(resumed) == expected


def test_processes_share_an_epoch_shuffled_and_in_equal_parts() -> None:
    parts = [EpochSampler(10, seed=1, rank=rank, ranks=4) for rank in range(4)]
    drawn = []
    for part in parts:
        part.set_epoch(1)
        assert len(part) == len(list(part)) == 3
        drawn.append([index for _, index in part])
    together = [drawn[position % 4][position // 4] for position in range(12)]
    whole = EpochSampler(10, seed=1)
    whole.set_epoch(1)
    assert together[:10] == [index for _, index in whole]
    assert together[10:] == together[:2]
    assert together[:10] != list(range(10))


def test_without_shuffling_the_order_is_that_of_the_files() -> None:
    assert list(EpochSampler(3, shuffle=False)) == [(0, 0), (0, 1), (0, 2)]
    assert list(EpochSampler(3, shuffle=False, rank=1, ranks=2)) == [(0, 1), (0, 0)]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InvalidInputError, match="no pictures to train with"):
        TrainingSet([], RANDOM)
    with pytest.raises(InvalidInputError, match="seed of a data set must be at least 0; got -1"):
        TrainingSet([Sample(Path("a.png"), Truth((), ()))], RANDOM, seed=-1)
    with pytest.raises(InvalidInputError, match="at least 0 and below 2; got 2"):
        EpochSampler(3, rank=2, ranks=2)
