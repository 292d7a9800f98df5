# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from ocdserve.backend.evaluation.dataset import Truth, load_dataset, parse_outline
from ocdserve.contract import InvalidInputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    (tmp_path / "gt").mkdir()
    (tmp_path / "img" / "a.jpg").write_bytes(b"")
    return tmp_path


class TestLoadDataset:
    def test_lines_are_polygons_with_text(self, folder: Path) -> None:
        (folder / "gt" / "gt_a.txt").write_text("1,2,3,4,5,6,7,8,word\n10,20,30,40,50,60,70.5,80,###\n")
        (sample,) = load_dataset(folder)
        assert sample.image == folder / "img" / "a.jpg"
        assert [polygon.tolist() for polygon in sample.truth.polygons] == [
            [[1, 2], [3, 4], [5, 6], [7, 8]],
            [[10, 20], [30, 40], [50, 60], [70.5, 80]],
        ]
        assert sample.truth.ignored == (False, True)

    def test_a_line_may_have_more_than_four_corners(self, folder: Path) -> None:
        lines = "10,10,60,5,110,10,110,40,60,45,10,40,###\n800,900,880,900,880,930,800,930,1,234.50\n"
        (folder / "gt" / "gt_a.txt").write_text(lines)
        (sample,) = load_dataset(folder)
        assert [polygon.tolist() for polygon in sample.truth.polygons] == [
            [[10, 10], [60, 5], [110, 10], [110, 40], [60, 45], [10, 40]],
            [[800, 900], [880, 900], [880, 930], [800, 930]],
        ]
        assert sample.truth.ignored == (True, False)

    @pytest.mark.parametrize(
        ("text", "ignored"),
        [
            ("1,2,3,4,5,6,7,8,one, two,3", False),
            ("1,2,3,4,5,6,7,8,###", True),
            ("1,2,3,4,5,6,7,8,*", False),
            ("1,2,3,4,5,6,7,8, ### \r", True),
            ("1,2,3,4,5,6,7,8,####", False),
            ("1,2,3,4,5,6,7,8,", False),
            ("1,2,3,4,5,6,7,8", False),
            ("\ufeff1,2,3,4,5,6,7,8,word", False),
            (" 1, 2, 3, 4, 5, 6, 7, 8, größe", False),
            ("1,2,3,4,5,6,7,8,a\u2028b\x0cc\x85d", False),
        ],
    )
    def test_every_form_of_a_line(self, folder: Path, text: str, ignored: bool) -> None:
        (folder / "gt" / "gt_a.txt").write_bytes(text.encode())
        (sample,) = load_dataset(folder)
        assert sample.truth.ignored == (ignored,)
        assert sample.truth.polygons[0].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]

    def test_an_empty_file_is_an_image_without_text(self, folder: Path) -> None:
        (folder / "gt" / "gt_a.txt").write_text("\n  \n")
        (sample,) = load_dataset(folder)
        assert sample.truth == Truth((), ())

    def test_images_are_sorted_and_other_files_left_out(self, folder: Path) -> None:
        for name in ("b.PNG", "a b.tif", "notes.txt", "c.jpg.bak"):
            (folder / "img" / name).write_bytes(b"")
        for stem in ("a", "b", "a b"):
            (folder / "gt" / f"gt_{stem}.txt").write_text("")
        assert [sample.image.name for sample in load_dataset(folder)] == ["a b.tif", "a.jpg", "b.PNG"]

    @pytest.mark.parametrize(
        "line", ["1,2,3,4,5,6,7", "1,2,3,4,5,6,seven,8,word", "word", "1 2 3 4 5 6 7 8 word", "nan,2,3,4,5,6,7,8,word"]
    )
    def test_a_bad_line_is_refused_with_file_and_number(self, folder: Path, line: str) -> None:
        (folder / "gt" / "gt_a.txt").write_text(f"1,2,3,4,5,6,7,8,word\n\n{line}\n")
        with pytest.raises(InvalidInputError, match=rf"gt_a\.txt:3: expected x1,y1,.*,text; got '{line}'"):
            load_dataset(folder)

    def test_truth_that_is_not_utf_8_is_refused_by_name(self, folder: Path) -> None:
        (folder / "gt" / "gt_a.txt").write_bytes("1,2,3,4,5,6,7,8,größe".encode("latin-1"))
        with pytest.raises(InvalidInputError, match=r"gt_a\.txt"):
            load_dataset(folder)

    def test_a_missing_truth_file_is_refused_by_name(self, folder: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"gt_a\.txt is missing; write an empty one"):
            load_dataset(folder)

    @pytest.mark.parametrize("name", ["img", "gt"])
    def test_a_missing_folder_is_refused_by_name(self, tmp_path: Path, name: str) -> None:
        (tmp_path / ({"img", "gt"} - {name}).pop()).mkdir()
        with pytest.raises(InvalidInputError, match=rf"needs the folders img/ and gt/; {name}/ is missing"):
            load_dataset(tmp_path)

    def test_a_folder_without_images_is_refused(self, folder: Path) -> None:
        (folder / "img" / "a.jpg").unlink()
        with pytest.raises(InvalidInputError, match=r"img holds no images \(\.jpg"):
            load_dataset(folder)


class TestSharedData:
    @pytest.mark.parametrize(("name", "images"), [("receipts", 40), ("scene", 10)])
    def test_the_sets_are_read_completely(self, shared_data: Path, name: str, images: int) -> None:
        samples = load_dataset(shared_data / name)
        lines = [
            line
            for path in sorted((shared_data / name / "gt").iterdir())
            for line in path.read_text("utf-8-sig").split("\n")
            if line.strip()
        ]
        assert len(samples) == images
        assert sum(len(sample.truth.polygons) for sample in samples) == len(lines) > images
        assert sum(sum(sample.truth.ignored) for sample in samples) == sum(
            line.rstrip().endswith(",###") for line in lines
        )


@pytest.mark.parametrize("text", ["250,000", "12,000", "24,99"])
def test_a_text_of_two_numbers_is_not_a_corner(text: str) -> None:
    corners, read = parse_outline(f"100,100,300,100,300,140,100,140,{text}")
    assert corners.tolist() == [[100, 100], [300, 100], [300, 140], [100, 140]]
    assert read == text
