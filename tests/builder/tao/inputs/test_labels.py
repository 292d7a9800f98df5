# SPDX-License-Identifier: Apache-2.0
"""Label files: values from the files themselves, TAO's reading from `tao_reference`."""

from pathlib import Path

import numpy as np
import pytest
import tao_reference
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.builder.tao.inputs.labels import LabelRules, order_by_sums, read_labels, simple_polygon
from ocdserve.contract import InvalidInputError

ICDAR, TAO = LabelRules(), LabelRules(tao=True)
UBER = LabelRules(format="uber")
SQUARE = "10,20,30,20,30,40,10,40"
HEXAGON = "10,10,60,5,110,10,110,40,60,45,10,40"
SIX = [[10, 10], [60, 5], [110, 10], [110, 40], [60, 45], [10, 40]]
ARC = [[0, 30], [20, 10], [40, 2], [60, 0], [80, 2], [100, 10], [120, 30]]


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "gt_a.txt"
    path.write_bytes(text.encode(encoding))
    return path


def shoelace(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


class TestIcdar:
    @pytest.mark.parametrize("rules", [ICDAR, TAO])
    def test_a_line_is_four_corners_and_a_text(self, tmp_path: Path, rules: LabelRules) -> None:
        labels = read_labels(written(tmp_path, f"\ufeff{SQUARE},Café\r\n\r\n{SQUARE},###\n{SQUARE},*\n"), rules)
        assert [(label.text, label.ignored) for label in labels.instances] == [
            ("Café", False),
            ("###", True),
            ("*", True),
        ]
        assert labels.instances[0].polygon.tolist() == [[10, 20], [30, 20], [30, 40], [10, 40]]

    def test_commas_belong_to_the_text(self, tmp_path: Path) -> None:
        path = written(tmp_path, f"{SQUARE},RM 1,234.50\n{SQUARE},###,x\n")
        labels = read_labels(path, ICDAR).instances
        assert [(label.text, label.ignored) for label in labels] == [("RM 1,234.50", False), ("###,x", False)]
        as_tao = read_labels(path, TAO).instances
        assert [(label.text, label.ignored) for label in as_tao] == [("RM 1", False), ("###", True)]

    @pytest.mark.parametrize(
        ("line", "corners", "text"),
        [
            (f"{HEXAGON},HELLO", SIX, "HELLO"),
            (f"{HEXAGON},###", SIX, "###"),
            (f"{HEXAGON}", SIX, None),
            (f"{HEXAGON},2024", SIX, "2024"),
            (f"{HEXAGON},a,b", SIX, "a,b"),
            ("10, 10, 60, 5, 110, 10, 110, 40, 60.5, 45, ", [*SIX[:4], [60.5, 45]], ""),
            # Curved text, seven corners on each long side.
            (
                "0,30,20,10,40,2,60,0,80,2,100,10,120,30,120,70,100,50,80,42,60,40,40,42,20,50,0,70,CURVED",
                [*ARC, *([x, y + 40] for x, y in ARC[::-1])],
                "CURVED",
            ),
        ],
    )
    def test_a_line_may_have_more_corners(
        self, tmp_path: Path, line: str, corners: list[list[float]], text: str | None
    ) -> None:
        (label,) = read_labels(written(tmp_path, line), ICDAR).instances
        assert label.polygon.tolist() == corners
        assert (label.text, label.ignored) == (text, text == "###")

    @pytest.mark.parametrize(
        "text", ["1,234.50", "1,234,567", "12,50", "7", "2,5 kg", "1,234,A", "12,-", "1e3,2", ",5"]
    )
    def test_numbers_far_from_the_fourth_corner_are_the_text(self, tmp_path: Path, text: str) -> None:
        (label,) = read_labels(written(tmp_path, f"800,900,880,900,880,930,800,930,{text}"), ICDAR).instances
        assert label.polygon.tolist() == [[800, 900], [880, 900], [880, 930], [800, 930]]
        assert label.text == text

    def test_tao_reads_the_first_four_corners_which_is_reported(self, tmp_path: Path) -> None:
        path = written(tmp_path, f"{SQUARE},a\n{HEXAGON},HELLO\n")
        labels = read_labels(path, TAO)
        assert [label.text for label in labels.instances] == ["a", "60"]
        assert labels.instances[1].polygon.tolist() == [[10, 10], [110, 10], [110, 40], [10, 10]]
        assert labels.notes == ("gt_a.txt: more than four corners (line 2): as in TAO, the first four are read",)

    def test_a_byte_order_mark_that_was_saved_as_latin_1_is_dropped(self, tmp_path: Path) -> None:
        assert len(read_labels(written(tmp_path, f"\xef\xbb\xbf{SQUARE},a"), ICDAR).instances) == 1

    def test_texts_of_other_ignore_tags_count(self, tmp_path: Path) -> None:
        labels = read_labels(
            written(tmp_path, f"{SQUARE},###\n{SQUARE},illegible"), LabelRules(ignore_tags=("illegible",))
        )
        assert [label.ignored for label in labels.instances] == [False, True]

    def test_a_line_without_text_is_an_instance_and_keeps_the_flags_of_the_others(self, tmp_path: Path) -> None:
        """Fault 8."""
        path = written(tmp_path, f"{SQUARE},a\n{SQUARE}\n{SQUARE},###\n")
        labels = read_labels(path, ICDAR).instances
        assert [(label.text, label.ignored) for label in labels] == [("a", False), (None, False), ("###", True)]
        with pytest.raises(InvalidInputError, match=r"without a text \(line 2\).*shifts.*Leave out ocdserve\.compat"):
            read_labels(path, TAO)

    def test_a_rectangle_at_45_degrees_keeps_its_corners(self, tmp_path: Path) -> None:
        """Fault 7: 100 x 20 turned by 45 degrees; TAO's order takes a corner twice."""
        turned = "0,0,70.71,70.71,56.57,84.85,-14.14,14.14,a"
        path = written(tmp_path, turned)
        assert shoelace(read_labels(path, ICDAR).instances[0].polygon) == pytest.approx(2000, rel=1e-3)
        tao = read_labels(path, TAO).instances[0].polygon
        assert len({tuple(corner) for corner in tao.tolist()}) == 3
        assert shoelace(tao) == pytest.approx(1000, rel=1e-3)

    def test_corners_given_crosswise_are_reordered(self, tmp_path: Path) -> None:
        labels = read_labels(written(tmp_path, "10,20,30,40,30,20,10,40,a"), ICDAR).instances
        assert shoelace(labels[0].polygon) == 400

    def test_a_polygon_without_area_is_left_out_and_reported(self, tmp_path: Path) -> None:
        labels = read_labels(written(tmp_path, f"1,1,5,5,9,9,3,3,a\n{SQUARE},b"), ICDAR)
        assert [label.text for label in labels.instances] == ["b"]
        assert labels.notes == ("gt_a.txt:1: a polygon without area: '1,1,5,5,9,9,3,3,a'",)

    @pytest.mark.parametrize(
        "line", ["1,2,3", "a,b,c,d,e,f,g,h,text", "1,2,3,4,5,6,7,nan,text", "1 2 3 4 5 6 7 8 text"]
    )
    def test_a_malformed_line_is_named(self, tmp_path: Path, line: str) -> None:
        path = written(tmp_path, f"{SQUARE},a\n{line}\n")
        with pytest.raises(InvalidInputError, match=r"gt_a\.txt:2: expected x1,y1,\.\.\.,x4,y4,text; got"):
            read_labels(path, ICDAR)

    def test_tao_skips_malformed_lines(self, tmp_path: Path) -> None:
        labels = read_labels(written(tmp_path, f"1,2,3\n{SQUARE},a\n"), TAO)
        assert [label.text for label in labels.instances] == ["a"]
        assert "gt_a.txt:1" in labels.notes[0]

    def test_another_encoding_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"is not UTF-8 text"):
            read_labels(written(tmp_path, f"{SQUARE},Café", "latin-1"), ICDAR)

    @given(st.lists(st.integers(-60, 300), min_size=8, max_size=8), st.sampled_from(["a", "###", "x,###", "###,x"]))
    def test_tao_s_reading_equals_the_reference(
        self, tmp_path_factory: pytest.TempPathFactory, numbers: list[int], text: str
    ) -> None:
        path = written(tmp_path_factory.mktemp("labels"), f"{','.join(map(str, numbers))},{text}\n")
        expected = tao_reference.labels_of(path)
        found = read_labels(path, TAO).instances
        assert [(label.polygon.tolist(), label.ignored) for label in found] == [
            (quad.tolist(), ignored) for quad, ignored in expected
        ]


class TestUber:
    def test_a_line_is_a_closed_polygon_a_tab_and_a_text(self, tmp_path: Path) -> None:
        labels = read_labels(written(tmp_path, "10 20 30 20 40 30 30 40 10 40 10 20\tEXIT\n"), UBER).instances
        assert labels[0].polygon.tolist() == [[10, 20], [30, 20], [40, 30], [30, 40], [10, 40]]
        assert (labels[0].text, labels[0].ignored) == ("EXIT", False)

    @pytest.mark.parametrize("tao", [False, True])
    def test_several_words_are_don_t_care(self, tmp_path: Path, tao: bool) -> None:
        path = written(tmp_path, "10 20 30 20 30 40 10 20\tMAIN STREET\tname\n")
        labels = read_labels(path, LabelRules(format="uber", tao=tao)).instances
        assert [(label.text, label.ignored) for label in labels] == [("###", True)]

    def test_an_open_polygon_is_refused_where_tao_drops_its_last_corner(self, tmp_path: Path) -> None:
        path = written(tmp_path, "10 20 30 20 30 40 10 40\tA\n")
        with pytest.raises(InvalidInputError, match=r"gt_a\.txt:1: .*the last point must repeat the first"):
            read_labels(path, UBER)
        tao = read_labels(path, LabelRules(format="uber", tao=True)).instances
        assert tao[0].polygon.tolist() == [[10, 20], [30, 20], [30, 40]]


class TestOrder:
    @given(st.floats(0, 360), st.floats(5, 200), st.floats(5, 50), st.permutations(range(4)))
    def test_any_order_of_a_rectangle_s_corners_has_its_area(
        self, angle: float, width: float, height: float, order: list[int]
    ) -> None:
        turn = np.deg2rad(angle)
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ np.array(
            [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
        )
        repaired = simple_polygon(corners[order])
        assert repaired is not None
        assert shoelace(repaired) == pytest.approx(width * height, rel=1e-6)

    def test_sums_and_differences_order_an_upright_rectangle_from_the_top_left(self) -> None:
        corners = np.array([[30.0, 40], [10, 20], [10, 40], [30, 20]])
        assert order_by_sums(corners).tolist() == [[10, 20], [30, 20], [30, 40], [10, 40]]
