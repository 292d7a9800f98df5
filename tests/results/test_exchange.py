# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ocdserve.contract import InvalidInputError
from ocdserve.results import coco_dataset
from ocdserve.results.detections import Detections

QUADS = [[[10.0, 20.25], [50.0, 20.0], [50.5, 40.0], [10.0, 40.0]], [[0.0, 0.0], [8.0, 6.0], [5.0, 10.0], [-3.0, 4.0]]]


def found(*, polygons: bool = False) -> Detections:
    triangles = (np.array([[10, 20], [50, 20], [30, 40]], np.float32), np.array([[0, 0], [8, 6], [5, 10]], np.float32))
    return Detections(
        np.array(QUADS, np.float32), np.array([0.75, 0.5], np.float32), 80, 60, triangles if polygons else None
    )


def test_json_is_the_dictionary_on_one_line() -> None:
    text = found().to_json()
    assert json.loads(text) == {
        "width": 80,
        "height": 60,
        "detections": [{"quad": QUADS[0], "score": 0.75}, {"quad": QUADS[1], "score": 0.5}],
    }
    assert "\n" not in text


def test_numbers_have_as_many_digits_as_they_need() -> None:
    quad = [[0.1, 1234.567], [1e-3, 16777216], [1 / 3, 2], [3, 4.25]]
    values = np.array([quad], np.float32)
    precise = Detections(values, np.array([0.7], np.float32), 80, 60, (values[0, :3],))
    assert precise.to_json() == (
        '{"width": 80, "height": 60, "detections": [{"quad": [[0.1, 1234.567], [0.001, 16777216.0], '
        '[0.33333334, 2.0], [3.0, 4.25]], "score": 0.7, "polygon": [[0.1, 1234.567], [0.001, 16777216.0], '
        "[0.33333334, 2.0]]}]}"
    )
    assert precise.to_labelme("a.png")["shapes"][0]["points"][0] == [0.1, 1234.567]
    assert precise.to_coco()[0]["segmentation"][0][:2] == [0.1, 1234.567]
    assert precise.to_coco()[0]["score"] == 0.7


def test_json_has_latency_and_request_id_if_known() -> None:
    timed = Detections(np.empty((0, 4, 2), np.float32), np.empty(0, np.float32), 8, 6, None, 12.5, "a-1")
    assert json.loads(timed.to_json()) == {
        "width": 8,
        "height": 6,
        "detections": [],
        "latency_ms": 12.5,
        "request_id": "a-1",
    }
    back = Detections.from_json(timed.to_json())
    assert (back.latency_ms, back.request_id, back.quads.shape) == (12.5, "a-1", (0, 4, 2))


@given(arrays(np.float32, st.tuples(st.integers(0, 5), st.just(9)), elements=st.floats(-1e6, 1e6, width=32)))
def test_json_round_trips_exactly(values: np.ndarray) -> None:
    before = Detections(values[:, :8].reshape(-1, 4, 2), values[:, 8], 640, 480)
    after = Detections.from_json(before.to_json().encode())
    assert after.quads.dtype == after.scores.dtype == np.float32
    assert after.quads.tobytes() == before.quads.tobytes()
    assert after.scores.tobytes() == before.scores.tobytes()
    assert (after.width, after.height, after.polygons) == (640, 480, None)


def test_polygons_round_trip_through_json() -> None:
    back = Detections.from_json(found(polygons=True).to_json()).polygons
    assert back is not None
    assert [polygon.tolist() for polygon in back] == [[[10, 20], [50, 20], [30, 40]], [[0, 0], [8, 6], [5, 10]]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON: "),
        ("[]", "not the JSON of detections (list indices must be integers"),
        ('{"width": 1, "height": 1}', "not the JSON of detections (no 'detections')"),
        ('{"width": 1, "height": 1, "detections": [{"quad": [1, 2], "score": 1}]}', "cannot reshape"),
        (
            '{"width": 1, "height": 1, "detections": [{"quad": [1,2,3,4,5,6,7,8], "score": 1},'
            ' {"quad": [1,2,3,4,5,6,7,8], "score": 1, "polygon": []}]}',
            "1 of 2 detections have a polygon; all or none must",
        ),
    ],
)
def test_other_text_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        Detections.from_json(text)
    assert reason in str(error.value)


def test_rows_are_flat_and_name_the_image() -> None:
    assert found().to_rows("a.png") == [
        {"image": "a.png", "width": 80, "height": 60, "index": 0, "score": 0.75}
        | {"x1": 10.0, "y1": 20.25, "x2": 50.0, "y2": 20.0, "x3": 50.5, "y3": 40.0, "x4": 10.0, "y4": 40.0},
        {"image": "a.png", "width": 80, "height": 60, "index": 1, "score": 0.5}
        | {"x1": 0.0, "y1": 0.0, "x2": 8.0, "y2": 6.0, "x3": 5.0, "y3": 10.0, "x4": -3.0, "y4": 4.0},
    ]
    assert "image" not in found().to_rows()[0]


def test_pyarrow_and_pandas_accept_the_rows() -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = pyarrow.Table.from_pylist(found().to_rows("a.png"))
    assert table.num_rows == 2
    assert str(table.schema.field("x1").type) == "double"
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    assert pandas.DataFrame(found().to_rows())["score"].tolist() == [0.75, 0.5]


def test_coco_has_outline_box_area_and_score() -> None:
    _, second = found().to_coco(image_id=7, category_id=3, first_id=11)
    assert second == {
        "id": 12,
        "image_id": 7,
        "category_id": 3,
        "segmentation": [[0.0, 0.0, 8.0, 6.0, 5.0, 10.0, -3.0, 4.0]],
        "bbox": [-3.0, 0.0, 11.0, 10.0],
        "area": 50.0,
        "iscrowd": 0,
        "score": 0.5,
    }
    assert found(polygons=True).to_coco()[0]["segmentation"] == [[10.0, 20.0, 50.0, 20.0, 30.0, 40.0]]


def test_a_coco_dataset_is_read_by_pycocotools(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(coco_dataset({"a.png": found(), "b.png": found(polygons=True)})))
    data = coco.COCO(file)
    assert data.getImgIds() == [1, 2]
    assert data.getAnnIds(imgIds=2) == [3, 4]
    assert data.loadCats(1) == [{"id": 1, "name": "text"}]
    mask = data.annToMask(data.loadAnns(1)[0])
    assert mask.shape == (60, 80)
    assert mask[30, 30] == 1
    assert mask[30, 5] == 0


def test_icdar_lines_are_whole_pixels_with_or_without_text() -> None:
    assert found().to_icdar() == "10,20,50,20,50,40,10,40\n0,0,8,6,5,10,-3,4\n"
    assert found().to_icdar(["Rye bread, sliced", "###"]).splitlines() == [
        "10,20,50,20,50,40,10,40,Rye bread, sliced",
        "0,0,8,6,5,10,-3,4,###",
    ]


def test_icdar_lines_are_read_by_the_evaluation(tmp_path: Path) -> None:
    evaluation = pytest.importorskip(
        "ocdserve.backend.evaluation.dataset", reason="the server's packages are not installed"
    )
    (tmp_path / "img").mkdir()
    (tmp_path / "gt").mkdir()
    (tmp_path / "img" / "a.jpg").touch()
    (tmp_path / "gt" / "gt_a.txt").write_text(found().to_icdar(["a, b", "###"]))
    [sample] = evaluation.load_dataset(tmp_path)
    assert [polygon.tolist() for polygon in sample.truth.polygons] == np.round(QUADS).tolist()
    assert sample.truth.ignored == (False, True)


@pytest.mark.parametrize("texts", [["one"], ["one", "two\nlines"]])
def test_icdar_texts_that_would_break_the_file_are_refused(texts: list[str]) -> None:
    with pytest.raises(InvalidInputError, match=r"one per detection|line break; got 'two"):
        found().to_icdar(texts)


def test_labelme_has_a_polygon_per_detection() -> None:
    content = found().to_labelme("a.png", label="word")
    assert (content["imagePath"], content["imageWidth"], content["imageHeight"]) == ("a.png", 80, 60)
    assert content["imageData"] is None
    assert [(shape["label"], shape["shape_type"], shape["points"]) for shape in content["shapes"]] == [
        ("word", "polygon", QUADS[0]),
        ("word", "polygon", QUADS[1]),
    ]
