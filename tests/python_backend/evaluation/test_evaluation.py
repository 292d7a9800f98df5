# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdserve.backend.evaluation.dataset import Truth, load_dataset
from ocdserve.backend.evaluation.figures import Evaluation, ImageResult
from ocdserve.backend.evaluation.matching import match
from ocdserve.contract import InvalidInputError


def box(x: float, y: float, width: float = 10, height: float = 10) -> list[list[float]]:
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]


def truth(*polygons: list[list[float]], ignored: tuple[list[list[float]], ...] = ()) -> Truth:
    arrays = tuple(np.array(polygon, np.float64) for polygon in (*polygons, *ignored))
    return Truth(arrays, (False,) * len(polygons) + (True,) * len(ignored))


def counts(quads: list[Any], known: Truth) -> tuple[int, int, int]:
    result = match(np.array(quads, np.float32).reshape(-1, 4, 2), known)
    return result.matched, result.detections, result.truths


class TestMatch:
    def test_the_same_box_matches(self) -> None:
        assert counts([box(0, 0)], truth(box(0, 0))) == (1, 1, 1)

    def test_the_sense_of_the_corners_does_not_matter(self) -> None:
        assert counts([box(0, 0)[::-1]], truth(box(0, 0))) == (1, 1, 1)

    def test_an_overlap_of_half_is_not_more_than_half(self) -> None:
        # Intersection 50, union 100.
        assert counts([box(0, 0, 5, 10)], truth(box(0, 0, 10, 10))) == (0, 1, 1)
        assert counts([box(0, 0, 5.1, 10)], truth(box(0, 0, 10, 10))) == (1, 1, 1)

    def test_it_is_the_union_that_counts_not_the_detection(self) -> None:
        # Wholly inside of the truth, but only two fifths of it.
        assert counts([box(0, 0, 4, 10)], truth(box(0, 0, 10, 10))) == (0, 1, 1)

    def test_a_truth_is_matched_once(self) -> None:
        assert counts([box(0, 0), box(0, 0)], truth(box(0, 0))) == (1, 2, 1)

    def test_a_detection_matches_once(self) -> None:
        assert counts([box(0, 0)], truth(box(0, 0), box(0, 0))) == (1, 1, 2)

    def test_the_first_that_overlaps_enough_is_taken_not_the_best(self) -> None:
        # The first truth takes the first detection, though the second truth fits that one only.
        first, second = box(0, 0, 10, 10), box(0, 0, 10, 14)
        detections = [box(0, 0, 10, 12), box(0, 0, 10, 9)]
        assert counts(detections, truth(first, second)) == (2, 2, 2)
        # Turned around, the wide truth takes it and the narrow one is left with the other.
        assert counts([box(0, 0, 10, 12), box(0, 0, 10, 6)], truth(first, second)) == (1, 2, 2)
        assert counts([box(0, 0, 10, 6), box(0, 0, 10, 12)], truth(first, second)) == (2, 2, 2)

    def test_a_detection_in_a_don_t_care_region_does_not_count(self) -> None:
        assert counts([box(0, 0), box(50, 50)], truth(box(0, 0), ignored=(box(45, 45, 40, 40),))) == (1, 1, 1)

    def test_a_detection_half_in_a_don_t_care_region_counts(self) -> None:
        region = box(0, 0, 100, 100)
        assert counts([box(95, 0, 10, 10)], truth(ignored=(region,))) == (0, 1, 0)
        assert counts([box(94.9, 0, 10, 10)], truth(ignored=(region,))) == (0, 0, 0)

    def test_two_don_t_care_regions_are_not_added_up(self) -> None:
        regions = (box(0, 0, 4, 10), box(6, 0, 4, 10))
        assert counts([box(0, 0)], truth(ignored=regions)) == (0, 1, 0)

    def test_don_t_care_truths_are_not_missed(self) -> None:
        assert counts([], truth(ignored=(box(0, 0),))) == (0, 0, 0)

    def test_a_detection_that_fits_a_truth_is_lost_when_it_lies_in_a_don_t_care_region(self) -> None:
        assert counts([box(0, 0)], truth(box(0, 0), ignored=(box(0, 0),))) == (0, 0, 1)

    def test_nothing_against_nothing(self) -> None:
        assert counts([], truth()) == (0, 0, 0)
        assert counts([], truth(box(0, 0))) == (0, 0, 1)
        assert counts([box(0, 0)], truth()) == (0, 1, 0)

    @pytest.mark.parametrize(
        "invalid",
        [
            [[0, 0], [10, 10], [10, 0], [0, 10]],  # crosses itself
            [[0, 0], [10, 0], [10, 0], [0, 0]],  # no area
            [[3, 3]] * 4,
        ],
    )
    def test_polygons_that_are_none_are_left_out_on_both_sides(self, invalid: list[list[float]]) -> None:
        assert counts([invalid, box(50, 50)], truth(invalid, box(50, 50))) == (1, 1, 1)
        assert counts([box(0, 0)], truth(ignored=(invalid,))) == (0, 1, 0)

    def test_a_slanted_pair_is_measured_exactly(self) -> None:
        # Two diamonds of area 200, shifted by half their diagonal along the axis: a quarter in common.
        diamond = [[10, 0], [20, 10], [10, 20], [0, 10]]
        shifted = [[x + 10, y] for x, y in diamond]
        assert counts([shifted], truth(diamond)) == (0, 1, 1)
        near = [[x + 2, y] for x, y in diamond]
        # In common: a diamond of diagonals 18 and 18, 162 of 400 - 162.
        assert counts([near], truth(diamond)) == (1, 1, 1)


class TestEvaluation:
    def test_figures_follow_from_the_sums_over_all_images(self) -> None:
        evaluation = Evaluation((ImageResult(1, 2, 4), ImageResult(2, 2, 2)))
        assert evaluation.to_dict() == {
            "images": 2,
            "precision": 0.75,
            "recall": 0.5,
            "hmean": pytest.approx(0.6),
            "matched": 3,
            "detections": 4,
            "truths": 6,
        }

    @pytest.mark.parametrize(
        "images",
        [(), (ImageResult(0, 0, 0),), (ImageResult(0, 5, 0),), (ImageResult(0, 0, 5),), (ImageResult(0, 5, 5),)],
    )
    def test_without_matches_all_figures_are_zero(self, images: tuple[ImageResult, ...]) -> None:
        evaluation = Evaluation(images)
        assert (evaluation.precision, evaluation.recall, evaluation.hmean) == (0, 0, 0)


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
    def test_every_way_to_write_a_line(self, folder: Path, text: str, ignored: bool) -> None:
        (folder / "gt" / "gt_a.txt").write_bytes(text.encode())
        (sample,) = load_dataset(folder)
        assert sample.truth.ignored == (ignored,)
        assert sample.truth.polygons[0].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]

    def test_an_empty_file_is_an_image_without_text(self, folder: Path) -> None:
        (folder / "gt" / "gt_a.txt").write_text("\n  \n")
        (sample,) = load_dataset(folder)
        assert sample.truth == Truth((), ())

    def test_images_come_sorted_and_other_files_are_no_images(self, folder: Path) -> None:
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
    def test_the_sets_are_read_whole(self, shared_data: Path, name: str, images: int) -> None:
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

    @pytest.mark.parametrize("name", ["receipts", "scene"])
    def test_the_truth_itself_is_found_whole(self, shared_data: Path, name: str) -> None:
        results = [
            match(np.array([p for p, i in zip(s.truth.polygons, s.truth.ignored, strict=True) if not i]), s.truth)
            for s in load_dataset(shared_data / name)
        ]
        # A truth that lies in a don't-care region is lost, by the rules.
        assert Evaluation(tuple(results)).recall > 0.97
        assert Evaluation(tuple(results)).precision > 0.97
