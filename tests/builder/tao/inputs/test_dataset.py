# SPDX-License-Identifier: Apache-2.0
"""Finding images and labels, and saying what is wrong with a data set."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ocdserve.builder.tao.inputs.dataset import find_images, load_data_set, natural_key
from ocdserve.builder.tao.inputs.labels import LabelRules
from ocdserve.contract import InvalidInputError

ICDAR, TAO = LabelRules(), LabelRules(tao=True)
LINE = "1,1,9,1,9,9,1,9,word\n"


def data_set(folder: Path, names: dict[str, str], prefix: str = "gt_") -> Path:
    """img/ and gt/ with one image for each name; the values are the label files' stems."""
    for part in ("img", "gt"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, stem in names.items():
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(
            folder / "img" / name, name.rpartition(".")[2].upper().replace("JPG", "JPEG")
        )
        (folder / "gt" / f"{prefix}{stem}.txt").write_text(LINE)
    return folder


def names_of(folder: Path, rules: LabelRules = ICDAR) -> list[str]:
    return [sample.image.name for sample in load_data_set([str(folder)], rules).samples]


class TestFolder:
    def test_images_are_in_natural_order_with_their_labels(self, tmp_path: Path) -> None:
        data_set(tmp_path, {"img_10.jpg": "img_10", "img_9.png": "img_9", "img_1.JPG": "img_1"})
        assert names_of(tmp_path) == ["img_1.JPG", "img_9.png", "img_10.jpg"]

    def test_the_stem_ends_at_the_last_dot_in_tao_at_the_first(self, tmp_path: Path) -> None:
        data_set(tmp_path, {"shop.2024.jpg": "shop.2024"})
        assert names_of(tmp_path) == ["shop.2024.jpg"]
        with pytest.raises(InvalidInputError, match=r"label files are missing: .*gt_shop\.txt\. Write an empty one"):
            load_data_set([str(tmp_path)], TAO)

    def test_uber_s_labels_have_another_prefix(self, tmp_path: Path) -> None:
        data_set(tmp_path, {"a.jpg": "a"}, "truth_")
        (tmp_path / "gt" / "truth_a.txt").write_text("1 1 9 1 9 9 1 1\tA")
        assert names_of(tmp_path, LabelRules(format="uber")) == ["a.jpg"]

    def test_other_files_are_left_out_and_reported(self, tmp_path: Path) -> None:
        data_set(tmp_path, {"a.jpg": "a"})
        (tmp_path / "img" / "notes.md").write_text("x")
        (tmp_path / "img" / ".DS_Store").write_text("x")
        loaded = load_data_set([str(tmp_path)], ICDAR)
        assert [sample.image.name for sample in loaded.samples] == ["a.jpg"]
        assert len(loaded.notes) == 1 and "notes.md" in loaded.notes[0]

    def test_images_without_text_stay_in_the_set(self, tmp_path: Path) -> None:
        """Fault 6."""
        data_set(tmp_path, {"a.jpg": "a", "b.jpg": "b"})
        (tmp_path / "gt" / "gt_b.txt").write_text("")
        assert names_of(tmp_path) == ["a.jpg", "b.jpg"]
        assert names_of(tmp_path, TAO) == ["a.jpg"]

    def test_several_folders_are_one_set(self, tmp_path: Path) -> None:
        paths = [str(data_set(tmp_path / name, {"a.jpg": "a"})) for name in ("x", "y")]
        assert len(load_data_set(paths, ICDAR).samples) == 2

    @pytest.mark.parametrize("missing", ["img", "gt"])
    def test_a_missing_folder_is_named(self, tmp_path: Path, missing: str) -> None:
        data_set(tmp_path, {"a.jpg": "a"})
        shutil.rmtree(tmp_path / missing)
        with pytest.raises(InvalidInputError, match=f"needs the folders img/ and gt/; {missing}/ is missing"):
            load_data_set([str(tmp_path)], ICDAR)

    def test_missing_labels_are_counted_and_named(self, tmp_path: Path) -> None:
        data_set(tmp_path, {f"{index}.jpg": str(index) for index in range(8)})
        for index in range(7):
            (tmp_path / "gt" / f"gt_{index}.txt").unlink()
        with pytest.raises(InvalidInputError, match=r"gt_0\.txt.* and 2 more \(7 in all\)"):
            load_data_set([str(tmp_path)], ICDAR)

    def test_an_empty_data_path_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="data_path is empty"):
            load_data_set([], ICDAR)
        with pytest.raises(InvalidInputError, match=r"nowhere does not exist"):
            load_data_set([str(tmp_path / "nowhere")], ICDAR)
        (tmp_path / "img").mkdir()
        (tmp_path / "gt").mkdir()
        with pytest.raises(InvalidInputError, match=r"img holds no images"):
            load_data_set([str(tmp_path)], ICDAR)


class TestArchive:
    @pytest.mark.parametrize("kind", ["gztar", "zip", "tar"])
    def test_an_archive_must_be_extracted_first(self, tmp_path: Path, kind: str) -> None:
        data_set(tmp_path / "set", {"a.jpg": "a"})
        archive = shutil.make_archive(str(tmp_path / "data"), kind, tmp_path / "set")
        with pytest.raises(InvalidInputError, match=r"data\.\S+ is an archive, not a folder: extract it first"):
            load_data_set([archive], ICDAR)
        with pytest.raises(InvalidInputError, match="extract it first"):
            find_images(Path(archive))

    def test_an_archive_without_its_suffix_is_recognised_by_its_content(self, tmp_path: Path) -> None:
        data_set(tmp_path / "set", {"a.jpg": "a"})
        archive = Path(shutil.make_archive(str(tmp_path / "data"), "gztar", tmp_path / "set")).rename(tmp_path / "data")
        with pytest.raises(InvalidInputError, match="extract it first"):
            load_data_set([str(archive)], ICDAR)


class TestList:
    @pytest.mark.parametrize("between", ["\t", " "])
    def test_lines_name_image_and_label(self, tmp_path: Path, between: str) -> None:
        """Relative paths count from the list; behind .jpg a space will do."""
        data_set(tmp_path, {"a b.jpg": "a"})
        (tmp_path / "list.txt").write_text(f"\ufeffimg/a b.jpg{between}gt/gt_a.txt\n\n", "utf-8")
        (sample,) = load_data_set([str(tmp_path / "list.txt")], ICDAR).samples
        assert (sample.image.name, sample.labels.instances[0].text) == ("a b.jpg", "word")

    @pytest.mark.parametrize("name", ["a.jpg", "a.png"])
    @pytest.mark.parametrize("between", [" \t", "\t ", " \t ", "\t\t", " \t\t"])
    def test_blanks_around_a_tab_and_repeated_tabs_are_no_field(self, tmp_path: Path, name: str, between: str) -> None:
        """Half of the list files in reports of DBNet.pytorch have a blank and a tab."""
        data_set(tmp_path, {name: "a"})
        (tmp_path / "list.txt").write_text(f"img/{name}{between}gt/gt_a.txt \n")
        (sample,) = load_data_set([str(tmp_path / "list.txt")], ICDAR).samples
        assert (sample.image.name, sample.labels.path.name) == (name, "gt_a.txt")

    @pytest.mark.parametrize("line", ["img/a.jpg \tgt/gt_a.txt", "img/a.jpg\t\tgt/gt_a.txt"])
    def test_tao_takes_an_empty_field_for_the_label_which_is_reported_with_the_line(
        self, tmp_path: Path, line: str
    ) -> None:
        data_set(tmp_path, {"a.jpg": "a", "b.jpg": "b"})
        (tmp_path / "list.txt").write_text(f"img/b.jpg\tgt/gt_b.txt\n\n{line}\n")
        loaded = load_data_set([str(tmp_path / "list.txt")], TAO)
        assert [sample.image.name for sample in loaded.samples] == ["b.jpg"]
        assert loaded.notes == (
            "list.txt, skipped as TAO does: an empty field, of two tabs or a blank and a tab (line 3)",
        )

    def test_the_message_of_an_empty_set_says_what_was_skipped(self, tmp_path: Path) -> None:
        data_set(tmp_path, {"a.jpg": "a"})
        (tmp_path / "list.txt").write_text("img/a.jpg \tgt/gt_a.txt\nimg/a.jpg;gt/gt_a.txt\nimg/c.jpg\tgt/gt_a.txt\n")
        with pytest.raises(InvalidInputError) as caught:
            load_data_set([str(tmp_path / "list.txt")], TAO)
        assert str(caught.value) == (
            f"there are no images to evaluate in {tmp_path / 'list.txt'}: list.txt, skipped as TAO does: an empty "
            "field, of two tabs or a blank and a tab (line 1), no tab (line 2), "
            f"{tmp_path / 'img' / 'c.jpg'} is missing (line 3)"
        )

    @pytest.mark.parametrize("line", ["img/a.jpg", "img/a.jpg\t", "\tgt/gt_a.txt", "img/a.jpg;gt/gt_a.txt"])
    def test_a_line_of_one_field_is_refused_with_its_number(self, tmp_path: Path, line: str) -> None:
        data_set(tmp_path, {"a.jpg": "a"})
        (tmp_path / "list.txt").write_text(f"img/a.jpg\tgt/gt_a.txt\n{line}\n")
        with pytest.raises(InvalidInputError, match=r"list\.txt:2: expected an image, a tab and its label file; got"):
            load_data_set([str(tmp_path / "list.txt")], ICDAR)

    def test_missing_files_are_named_with_their_lines(self, tmp_path: Path) -> None:
        data_set(tmp_path, {"a.jpg": "a"})
        (tmp_path / "list.txt").write_text("\nimg/a.jpg\tgt/gt_b.txt\nimg/b.jpg\tgt/gt_a.txt\n")
        words = r"do not exist: \S*gt_b\.txt \(line 2\), \S*b\.jpg \(line 3\)$"
        with pytest.raises(InvalidInputError, match=words):
            load_data_set([str(tmp_path / "list.txt")], ICDAR)

    def test_other_suffixes_need_a_tab(self, tmp_path: Path) -> None:
        data_set(tmp_path, {"a.png": "a"})
        (tmp_path / "list.txt").write_text("img/a.png gt/gt_a.txt\n")
        with pytest.raises(InvalidInputError, match=r"list\.txt:1: expected an image, a tab and its label file"):
            load_data_set([str(tmp_path / "list.txt")], ICDAR)

    def test_missing_files_are_an_error_but_skipped_by_tao(self, tmp_path: Path) -> None:
        data_set(tmp_path, {"a.jpg": "a"})
        (tmp_path / "list.txt").write_text("img/a.jpg\tgt/gt_a.txt\nimg/b.jpg\tgt/gt_a.txt\n")
        with pytest.raises(InvalidInputError, match=r"names files that do not exist: \S*b\.jpg"):
            load_data_set([str(tmp_path / "list.txt")], ICDAR)
        loaded = load_data_set([str(tmp_path / "list.txt")], TAO)
        assert len(loaded.samples) == 1
        assert "b.jpg" in loaded.notes[0]

    def test_a_file_that_is_no_list_is_refused(self, tmp_path: Path) -> None:
        data_set(tmp_path, {"a.jpg": "a"})
        with pytest.raises(InvalidInputError, match=r"a\.jpg is not UTF-8 text.*takes folders, and lists"):
            load_data_set([str(tmp_path / "img" / "a.jpg")], ICDAR)


class TestImages:
    def test_a_folder_s_images_are_in_natural_order_without_subfolders(self, tmp_path: Path) -> None:
        data_set(tmp_path, {"p10.jpg": "a", "p2.bmp": "b"})
        (tmp_path / "img" / "sub.jpg").mkdir()
        (tmp_path / "img" / "p1.webp").write_bytes(b"")
        assert [path.name for path in find_images(tmp_path / "img")] == ["p1.webp", "p2.bmp", "p10.jpg"]
        assert [path.name for path in find_images(tmp_path / "img", tao=True)] == ["p2.bmp", "p10.jpg"]

    def test_a_missing_or_empty_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="does not exist"):
            find_images(tmp_path / "nowhere")
        with pytest.raises(InvalidInputError, match="holds no images"):
            find_images(tmp_path)

    def test_names_that_mix_numbers_and_texts_can_be_compared(self) -> None:
        names = ["1a", "a1", "10", "9", "a"]
        assert sorted(map(Path, names), key=natural_key) == [Path(n) for n in ("1a", "9", "10", "a", "a1")]
