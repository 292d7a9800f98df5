# SPDX-License-Identifier: Apache-2.0
"""The training set of a spec; faults of TAO's reading of labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ocdserve.builder.tao.spec import PreProcess, Spec
from ocdserve.builder.tao.spec.dataset import Dataset, TrainArgs, TrainDataset, TrainLoader
from ocdserve.builder.tao.training.data import training_data
from ocdserve.contract import InvalidInputError

CROP = PreProcess("EastRandomCropData", {"size": [64, 64], "max_tries": 50, "keep_ratio": True})
TARGETS = (PreProcess("MakeBorderMap", None), PreProcess("MakeShrinkMap", None))
TEXT = "10,10,60,10,60,30,10,30,text"


def labelled(folder: Path, labels: dict[str, str], prefix: str = "gt_") -> Path:
    (folder / "img").mkdir(parents=True)
    (folder / "gt").mkdir()
    for stem, text in labels.items():
        Image.new("RGB", (100, 80), (200, 200, 200)).save(folder / "img" / f"{stem}.png")
        (folder / "gt" / f"{prefix}{stem}.txt").write_text(text, "utf-8")
    return folder


def spec(*paths: Path, steps: tuple[PreProcess, ...] = (CROP, *TARGETS), batch: int = 1, **keys: Any) -> Spec:
    args = TrainArgs(pre_processes=steps, filter_keys=keys.pop("filter_keys", ("img_path",)))
    names = tuple(str(path) for path in paths)
    train = TrainDataset(data_path=names, args=args, loader=TrainLoader(batch_size=batch), **keys)
    return Spec(dataset=Dataset(train_dataset=train))


def test_folders_and_lists_become_samples(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "set", {"a.1": f"{TEXT}\n10,50,40,50,40,60,10,60,###\n"})
    (tmp_path / "list.txt").write_text("set/img/a.1.png\tset/gt/gt_a.1.txt\n", "utf-8")
    data = training_data(spec(folder, tmp_path / "list.txt"), seed=3)
    assert [sample.image.name for sample in data.dataset.samples] == ["a.1.png", "a.1.png"]
    truth = data.dataset.samples[0].truth
    assert truth.ignored == (False, True)
    np.testing.assert_array_equal(truth.polygons[0], [[10, 10], [60, 10], [60, 30], [10, 30]])
    assert (data.dataset.seed, data.dataset.mode) == (3, "BGR")
    assert data.dataset[0, 0]["img"].shape == (3, 64, 64)


def test_uber_text_is_read(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "uber", {"a": "10 10 60 10 60 30 10 30 10 10\ttwo words\n"}, prefix="truth_")
    (sample,) = training_data(spec(folder, data_name="UberDataset"), seed=0).dataset.samples
    assert (len(sample.truth.polygons[0]), sample.truth.ignored) == (4, (True,))


def test_pictures_without_text_are_kept(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "set", {"blank": "", "text": TEXT, "ignored": TEXT.replace("text", "*")})
    data = training_data(spec(folder), seed=0)
    assert {sample.image.stem: len(sample.truth.polygons) for sample in data.dataset.samples} == {
        "blank": 0,
        "text": 1,
        "ignored": 1,
    }


def test_a_quad_at_45_degrees_keeps_its_four_corners(tmp_path: Path) -> None:
    # 50 x 10 pixels; ordering by sums and differences would make it a triangle of half the area.
    quad = np.array([[20, 10], [55, 45], [48, 52], [13, 17]])
    folder = labelled(tmp_path / "set", {"a": ",".join(map(str, quad.ravel())) + ",text"})
    (sample,) = training_data(spec(folder), seed=0).dataset.samples
    np.testing.assert_array_equal(sample.truth.polygons[0], quad)
    (again,) = training_data(
        spec(labelled(tmp_path / "b", {"a": ",".join(map(str, quad[::-1].ravel())) + ",t"})), 0
    ).dataset.samples
    np.testing.assert_array_equal(again.truth.polygons[0], quad[::-1])


def test_labels_without_area_are_left_out_with_a_note(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "set", {"a": f"{TEXT}\n5,5,9,5,5,5,9,5,line"})
    data = training_data(spec(folder), seed=0)
    assert len(data.dataset.samples[0].truth.polygons) == 1
    assert data.notes == ("gt_a.txt:2: a polygon without area: '5,5,9,5,5,5,9,5,line'",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": (PreProcess("Blur", None), *TARGETS)}, "args: pre_processes: the steps are IaaAugment.*'Blur'"),
        ({"steps": TARGETS, "batch": 2}, "the pictures of a batch need one size"),
        ({"filter_keys": ("img_path", "shrink_map")}, "filter_keys drops shrink_map, without which"),
        ({"data_name": "Pascal"}, "dataset.train_dataset.data_name must be one of ICDAR2015Dataset, UberDataset"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = labelled(tmp_path / "set", {"a": TEXT})
    with pytest.raises(InvalidInputError, match=message):
        training_data(spec(folder, **change), seed=0)


def test_missing_data_and_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"dataset\.train_dataset\.data_path is empty"):
        training_data(spec(), seed=0)
    (tmp_path / "data.tar.gz").write_bytes(b"")
    with pytest.raises(InvalidInputError, match=r"data\.tar\.gz is an archive, not a folder: extract it first"):
        training_data(spec(tmp_path / "data.tar.gz"), seed=0)
