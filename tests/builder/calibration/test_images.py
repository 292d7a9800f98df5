# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from pathlib import Path

import pytest

from ocdserve.builder.calibration.images import DataConfig, pick_images
from ocdserve.contract import InvalidInputError


@pytest.fixture
def data_set(pictures: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    shutil.copytree(pictures, folder / "img")
    (folder / "gt").mkdir()
    for path in (folder / "img").iterdir():
        (folder / "gt" / f"gt_{path.stem}.txt").write_text("1,1,50,1,50,20,1,20,word\n")
    return folder


class TestPickImages:
    def test_calibration_images_are_not_used_for_evaluation(self, data_set: Path) -> None:
        images = pick_images(DataConfig(evaluation=data_set, calibration_count=3), needed=True)
        assert len(images.calibration) == 3 and len(images.evaluation) == 5 and not images.is_shared
        assert not set(images.calibration) & set(images.evaluation)
        assert all(truth is not None for truth in images.evaluation.values())

    def test_at_most_half_of_one_folder_is_used_for_calibration(self, data_set: Path) -> None:
        images = pick_images(DataConfig(evaluation=data_set, calibration_count=100), needed=True)
        assert len(images.calibration) == len(images.evaluation) == 4

    def test_without_evaluation_all_images_may_be_used_for_calibration(self, data_set: Path) -> None:
        images = pick_images(DataConfig(evaluation=data_set, calibration_count=100), needed=True, judged=False)
        assert len(images.calibration) == 8 and images.evaluation == {} and not images.is_shared

    def test_copies_in_another_folder_are_recognised(self, data_set: Path, pictures: Path) -> None:
        config = DataConfig(calibration_images=pictures, evaluation=data_set, calibration_count=3)
        images = pick_images(config, needed=True)
        assert not {path.name for path in images.calibration} & {path.name for path in images.evaluation}

    def test_the_choice_depends_on_the_seed_only(self, data_set: Path, pictures: Path) -> None:
        first = pick_images(DataConfig(evaluation=data_set, calibration_count=3, seed=1), needed=True)
        same = pick_images(DataConfig(evaluation=pictures, calibration_count=3, seed=1), needed=True)
        other = pick_images(DataConfig(evaluation=data_set, calibration_count=3, seed=2), needed=True)
        names = [[path.name for path in images.calibration] for images in (first, same, other)]
        assert names[0] == names[1] != names[2]
        assert first.sha256() == same.sha256() != other.sha256()

    def test_photographs_alone_have_no_truth(self, pictures: Path) -> None:
        images = pick_images(DataConfig(calibration_images=pictures, calibration_count=2), needed=True)
        assert len(images.evaluation) == 6 and set(images.evaluation.values()) == {None}

    def test_a_single_image_serves_for_both_and_is_reported(self, pictures: Path, tmp_path: Path) -> None:
        folder = tmp_path / "one"
        folder.mkdir()
        shutil.copy(pictures / "picture_0.png", folder)
        images = pick_images(DataConfig(calibration_images=folder), needed=True)
        assert images.is_shared and images.record()["evaluated_on_calibration_images"] is True

    def test_fp32_uses_all_images_for_evaluation(self, data_set: Path) -> None:
        images = pick_images(DataConfig(evaluation=data_set), needed=False)
        assert images.calibration == () and len(images.evaluation) == 8

    def test_labels_of_annotation_tools_are_read(self, data_set: Path) -> None:
        names = [path.name for path in sorted((data_set / "img").iterdir())]
        labels = {"shapes": [{"label": "text", "points": [[1, 1], [50, 1], [50, 20]]}], "imagePath": ""}
        listed = data_set / "list.txt"
        listed.write_text("".join(f"img/{name}\tgt/gt_{Path(name).stem}.txt\n" for name in names))
        for name in names:
            (data_set / "img" / f"{name}.json").write_text(json.dumps(labels | {"imagePath": name}))
        for evaluation, corners in ((listed, 4), (data_set / "img", 3)):
            images = pick_images(DataConfig(evaluation=evaluation, calibration_count=3), needed=True)
            assert len(images.calibration) == 3 and len(images.evaluation) == 5
            assert [len(truth.polygons[0]) for truth in images.evaluation.values() if truth] == [corners] * 5

    def test_without_images_a_lower_precision_is_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="needs photographs"):
            pick_images(DataConfig(), needed=True)

    def test_a_folder_without_images_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="holds no images"):
            pick_images(DataConfig(calibration_images=tmp_path), needed=True)

    @pytest.mark.parametrize("with_truth", [True, False])
    def test_files_that_cannot_be_read_are_left_out_and_reported(self, data_set: Path, with_truth: bool) -> None:
        picture = data_set / "img" / "picture_1.png"
        picture.write_bytes(picture.read_bytes()[:200])
        (data_set / "img" / "picture_2.png").write_bytes(b"")
        (data_set / "img" / "._picture_0.png").write_bytes(b"hidden, by macOS")
        if not with_truth:
            shutil.rmtree(data_set / "gt")
        images = pick_images(DataConfig(evaluation=data_set, calibration_count=3), needed=True)
        assert len(images.calibration) == 3 and len(images.evaluation) == 3
        names = {path.name for path in (*images.calibration, *images.evaluation)}
        assert names == {f"picture_{index}.png" for index in (0, 3, 4, 5, 6, 7)}
        [note] = images.notes()
        assert note.startswith("2 images were left out, as they cannot be read: picture_1.png (")
        assert "; picture_2.png (the image is empty" in note

    def test_others_take_the_place_of_chosen_images_that_cannot_be_read(self, pictures: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(pictures, tmp_path / "photographs")
        config = DataConfig(calibration_images=folder, calibration_count=4)
        first = pick_images(config, needed=True, judged=False).calibration
        for path in first[:3]:
            path.write_bytes(b"damaged")
        images = pick_images(config, needed=True, judged=False)
        assert len(images.calibration) == 4 and first[3] in images.calibration
        assert not set(first[:3]) & set(images.calibration)
        assert len(images.skipped) == 3

    def test_a_folder_in_which_no_image_can_be_read_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"no image")
        for judged in (True, False):
            with pytest.raises(InvalidInputError, match=r"no image in .* can be read: a\.png \(not an image"):
                pick_images(DataConfig(calibration_images=tmp_path), needed=True, judged=judged)
