# SPDX-License-Identifier: Apache-2.0
"""Labels of annotation tools become the same polygons in pixels; what cannot be read is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdserve.backend.evaluation.dataset import Sample
from ocdserve.backend.evaluation.formats import is_labelled, load_labels
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections
from ocdserve.results.exchange import coco_dataset, to_icdar, to_labelme

_QUADS = np.array([[[10, 20], [110, 22], [109, 52], [9, 50]], [[30, 80], [60, 80], [60, 95], [30, 95]]], np.float32)
_FOUND = Detections(quads=_QUADS, scores=np.array([0.9, 0.8], np.float32), width=200, height=120)
_NOTHING = Detections(np.zeros((0, 4, 2), np.float32), np.zeros(0, np.float32), 200, 120)

# The example of Label Studio's documentation of its tasks, with the size of the picture that real exports have.
_TASK: dict[str, Any] = {
    "id": 1,
    "data": {"image": "https://example.com/opensource/label-studio/1.jpg"},
    "annotations": [
        {
            "id": "1001",
            "result": [
                {
                    "from_name": "tag",
                    "id": "Dx_aB91ISN",
                    "source": "$image",
                    "to_name": "img",
                    "type": "rectanglelabels",
                    "original_width": 600,
                    "original_height": 400,
                    "value": {
                        "height": 10.458911419423693,
                        "rectanglelabels": ["Moonwalker"],
                        "rotation": 0,
                        "width": 12.4,
                        "x": 50.8,
                        "y": 5.869797225186766,
                    },
                }
            ],
            "was_cancelled": False,
        }
    ],
}


def _images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"an image")


def _json(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def _polygons(sample: Sample) -> list[list[list[float]]]:
    assert all(polygon.dtype == np.float64 for polygon in sample.truth.polygons)
    return [polygon.round(6).tolist() for polygon in sample.truth.polygons]


def _region(value: dict[str, Any], kind: str = "rectanglelabels", **others: Any) -> dict[str, Any]:
    return {"type": kind, "original_width": 200, "original_height": 100, "value": value, **others}


def _task(*results: dict[str, Any], image: str = "a.jpg", **others: Any) -> dict[str, Any]:
    return {"data": {"image": image}, "annotations": [{"result": list(results)}], **others}


def test_what_we_write_is_read_back(tmp_path: Path) -> None:
    _images(tmp_path, "icdar/img/a.jpg", "icdar/img/b.jpg", "coco/images/a.jpg", "coco/images/b.jpg")
    _images(tmp_path, "me/a.jpg", "me/b.jpg")
    for name, found in {"a": _FOUND, "b": _NOTHING}.items():
        (tmp_path / "icdar/gt").mkdir(exist_ok=True)
        (tmp_path / f"icdar/gt/gt_{name}.txt").write_text(to_icdar(found))
        _json(tmp_path / f"me/{name}.json", to_labelme(found, f"{name}.jpg"))
    _json(tmp_path / "coco/annotations.json", coco_dataset({"a.jpg": _FOUND, "b.jpg": _NOTHING}))
    for data in ("icdar", "coco", "coco/annotations.json", "me"):
        first, second = load_labels(tmp_path / data)
        assert (first.image.name, second.image.name) == ("a.jpg", "b.jpg")
        assert first.image.is_file()
        assert _polygons(first) == _QUADS.tolist()
        assert first.truth.ignored == (False, False)
        assert second.truth.polygons == ()


def test_a_list_names_images_and_label_files(tmp_path: Path) -> None:
    _images(tmp_path, "one/a.jpg", "two/b.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("1,2,30,2,30,12,1,12,Bread\n")
    (tmp_path / "labels/b.txt").write_text("")
    listed = tmp_path / "list.txt"
    listed.write_text("one/a.jpg\tlabels/a.txt\ntwo/b.jpg labels/b.txt\n")
    first, second = load_labels(listed)
    assert _polygons(first) == [[[1, 2], [30, 2], [30, 12], [1, 12]]]
    assert second.image == tmp_path / "two/b.jpg"
    assert second.truth.polygons == ()
    listed.write_text("one/a.jpg\tlabels/a.txt\none/c.jpg\tlabels/a.txt\n")
    with pytest.raises(InvalidInputError, match=r"names files that do not exist: .*one/c\.jpg \(line 2\)"):
        load_labels(listed)


def test_coco_annotations_have_polygons_boxes_or_crowds(tmp_path: Path) -> None:
    # The keys and the first polygon's form are those of COCO's page on its format.
    content = {
        "info": {"description": "COCO 2014 Dataset"},
        "images": [
            {"id": 532, "width": 640, "height": 480, "file_name": "val/000000000532.jpg"},
            {"id": 9, "width": 640, "height": 480, "file_name": "empty.jpg"},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 532,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": [[5, 6, 25, 6, 25, 16, 5, 18, 2, 9]],
            },
            {"id": 2, "image_id": 532, "category_id": 1, "iscrowd": 0, "segmentation": [], "bbox": [10, 20.5, 30, 8]},
            {
                "id": 3,
                "image_id": 532,
                "category_id": 1,
                "iscrowd": 1,
                "segmentation": {"counts": [9], "size": [1, 9]},
                "bbox": [1, 1, 5, 5],
            },
            {
                "id": 4,
                "image_id": 532,
                "category_id": 2,
                "iscrowd": 0,
                "segmentation": [[0, 0, 4, 0, 4, 4], [6, 1, 9, 1, 9, 5]],
            },
            {"id": 5, "image_id": 532, "category_id": 1, "iscrowd": 0, "bbox": [7, 7, 0, 3]},
        ],
        "categories": [{"id": 1, "name": "text"}, {"id": 2, "name": "ignored"}],
    }
    _images(tmp_path, "images/val/000000000532.jpg", "images/empty.jpg")
    sample, empty = load_labels(_json(tmp_path / "annotations/instances.json", content))
    assert _polygons(sample) == [
        [[5, 6], [25, 6], [25, 16], [5, 18], [2, 9]],
        [[10, 20.5], [40, 20.5], [40, 28.5], [10, 28.5]],
        [[1, 1], [6, 1], [6, 6], [1, 6]],
        [[0, 0], [9, 0], [9, 5], [0, 5]],
    ]
    assert sample.truth.ignored == (False, False, True, True)
    assert empty.truth.polygons == ()
    assert load_labels(tmp_path)[0].image == tmp_path / "images/val/000000000532.jpg"


def test_label_studio_gives_boxes_in_percent(tmp_path: Path) -> None:
    _images(tmp_path, "1.jpg")
    (sample,) = load_labels(_json(tmp_path / "export.json", [_TASK]))
    assert sample.image == tmp_path / "1.jpg"
    left, top, right, bottom = 304.8, 23.479189, 379.2, 65.314835
    assert _polygons(sample) == [[[left, top], [right, top], [right, bottom], [left, bottom]]]


def test_label_studio_turns_boxes_clockwise_around_their_top_left(tmp_path: Path) -> None:
    _images(tmp_path, "a.jpg")
    # 40 x 10 pixels of 200 x 100, turned by a quarter and by 30 degrees.
    quarter = _region({"x": 50, "y": 30, "width": 20, "height": 10, "rotation": 90})
    third = _region({"x": 10, "y": 10, "width": 20, "height": 10, "rotation": 30})
    outline = _region({"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": ["Text"]}, "polygonlabels")
    (sample,) = load_labels(_json(tmp_path / "export.json", [_task(quarter, third, outline)]))
    first, second, last = _polygons(sample)
    assert first == [[100, 30], [100, 70], [90, 70], [90, 30]]
    assert second == [[20, 10], [54.641016, 30], [49.641016, 38.660254], [15, 18.660254]]
    assert last == [[0, 0], [100, 0], [100, 50]]


def test_label_studio_names_regions_in_several_results(tmp_path: Path) -> None:
    _images(tmp_path, "a.jpg")
    value = {"x": 10, "y": 10, "width": 20, "height": 10, "rotation": 0}
    # As its template for OCR: a box, its label and its text have one id.
    results = [
        _region(value, "rectangle", id="one"),
        _region({**value, "labels": ["Text"]}, "labels", id="one"),
        _region({**value, "text": ["###"]}, "textarea", id="one"),
        _region({**value, "labels": ["Ignore"]}, "labels", id="two"),
        _region({**value, "text": ["Bread"]}, "textarea", id="three"),
        {"type": "choices", "value": {"choices": ["receipt"]}, "id": "four"},
        _region({**value, "width": 0}, id="a stray click"),
    ]
    (sample,) = load_labels(_json(tmp_path / "export.json", [_task(*results)]))
    assert len(sample.truth.polygons) == 3
    assert sample.truth.ignored == (True, True, False)


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("scans/a%20b.jpg", "scans/a b.jpg"),
        ("/data/local-files/?d=project/scans/a.jpg", "scans/a.jpg"),
        ("/data/upload/7/0f3a9b12-a.jpg", "images/a.jpg"),
        ("/data/upload/7/0f3a9b12-a.jpg", "0f3a9b12-a.jpg"),
        ("s3://bucket/year/a.jpg", "images/year/a.jpg"),
        ("http://localhost:8080/files/a.jpg?token=x", "a.jpg"),
    ],
)
def test_label_studio_images_are_found_by_the_end_of_their_address(tmp_path: Path, address: str, file: str) -> None:
    _images(tmp_path, file)
    (sample,) = load_labels(_json(tmp_path / "export.json", [_task(image=address)]))
    assert sample.image == tmp_path / file


def test_label_studio_tasks_that_nobody_labelled_are_left_out(tmp_path: Path) -> None:
    _images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    skipped = {"data": {"image": "b.jpg"}, "annotations": [{"result": [], "was_cancelled": True}]}
    other_key = {"data": {"ref": "7", "page": "c.jpg"}, "annotations": [{"result": []}]}
    tasks = [_task(), skipped, {"data": {"image": "d.jpg"}, "annotations": []}, other_key]
    assert [sample.image.name for sample in load_labels(_json(tmp_path / "x.json", tasks))] == ["a.jpg", "c.jpg"]


def test_labelme_has_polygons_and_rectangles(tmp_path: Path) -> None:
    shapes = [
        {"label": "text", "points": [[30, 40], [10, 20]], "shape_type": "rectangle", "flags": {}},
        {
            "label": "text",
            "points": [[1, 1], [9, 1], [9, 5], [4, 8]],
            "shape_type": "polygon",
            "flags": {"ignored": True},
        },
        {"label": "###", "points": [[1, 1], [9, 1], [9, 5]]},
        {"label": "text", "points": [[1, 1], [9, 1], [9, 5]], "flags": {"ignored": False}},
    ]
    content = {"version": "4.5.6", "flags": {}, "shapes": shapes, "imagePath": "..\\imgs\\0001.jpg", "imageData": None}
    _images(tmp_path, "imgs/0001.jpg")
    (sample,) = load_labels(_json(tmp_path / "labels/0001.json", content))
    assert sample.image == tmp_path / "imgs/0001.jpg"
    assert _polygons(sample)[0] == [[10, 20], [30, 20], [30, 40], [10, 40]]
    assert sample.truth.ignored == (False, True, True, False)
    _images(tmp_path, "renamed/0002.png")
    (renamed,) = load_labels(_json(tmp_path / "renamed/0002.json", content | {"imagePath": "gone.jpg"}).parent)
    assert renamed.image == tmp_path / "renamed/0002.png"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"detections": []}, r"holds an object with detections; give a folder with img/ and gt/, a list"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1]}], "COCO's results without the images"),
        ([{"image": "a.jpg", "label": []}], "JSON-MIN: export as JSON"),
        ([], "holds an empty list"),
        (
            [_task(_region({"x": 1, "y": 1, "radiusX": 2}, "ellipselabels", id="r"))],
            "task 0: region r is a ellipselabels",
        ),
        (
            [_task(_region({"x": 1, "y": 1, "width": 2, "height": 2}, image_rotation=90), id=5)],
            "task 5: .* turned by 90",
        ),
        ([_task({"value": {"x": 1, "y": 1, "width": 2, "height": 2}})], "task 0: there is no 'original_width'"),
        ({"shapes": [{"points": [[1, 2], [3, 4]], "shape_type": "circle"}]}, "shape 0: it is a circle"),
        ({"shapes": [{"points": [[1, "x"], [3, 4]]}]}, "shape 0: could not convert string to float"),
        ({"shapes": 5}, "the list of each shape is a int"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 3, "image_id": 2}]},
            "annotation 3: .* id 2",
        ),
        ({"images": [], "annotations": []}, "no labelled image"),
        ({"shapes": [], "imagePath": "b/c.jpg"}, r"pictures that are not there: b/c\.jpg; put them next to it"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: Any, message: str) -> None:
    _images(tmp_path, "a.jpg")
    with pytest.raises(InvalidInputError, match=message):
        load_labels(_json(tmp_path / "labels.json", content))


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    cases = {"a.zip": b"PK\x03\x04", "a.json": b"{", "a.txt": b"hello\n", "empty.txt": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    messages = {
        "a.zip": "a binary file or an archive",
        "a.json": "is not JSON",
        "a.txt": r"a\.txt:1: expected an image, a tab and its label file; got 'hello'",
        "empty.txt": "is empty",
        "folder": "holds neither img/ and gt/ nor a JSON file",
        "missing": "there is no data set .*missing; give a folder with img/",
    }
    for name, message in messages.items():
        with pytest.raises(InvalidInputError, match=message):
            load_labels(tmp_path / name)
    whole = {"images": [], "annotations": []}
    _json(tmp_path / "folder/train.json", whole)
    _json(tmp_path / "folder/test.json", whole)
    with pytest.raises(InvalidInputError, match=r"test\.json holds a whole data set.* 2 JSON files.*name the file"):
        load_labels(tmp_path / "folder")


def test_an_image_is_labelled_once(tmp_path: Path) -> None:
    _images(tmp_path, "a.jpg")
    tasks = [_task(image="one/a.jpg"), _task(image="two/a.jpg")]
    with pytest.raises(InvalidInputError, match=r"labels .*a\.jpg twice"):
        load_labels(_json(tmp_path / "x.json", tasks))


def test_folders_of_photographs_are_distinguished_from_labelled_ones(tmp_path: Path) -> None:
    _images(tmp_path, "photographs/a.jpg", "me/a.jpg", "icdar/img/a.jpg")
    _json(tmp_path / "photographs/report.json", {"detections": []})
    _json(tmp_path / "me/a.json", to_labelme(_FOUND, "a.jpg"))
    (tmp_path / "icdar/gt").mkdir()
    labelled = {name: is_labelled(tmp_path / name) for name in ("photographs", "me", "icdar", "me/a.json")}
    assert labelled == {"photographs": False, "me": True, "icdar": True, "me/a.json": True}


def test_every_format_has_transcriptions(tmp_path: Path) -> None:
    _images(tmp_path, "img/a.jpg", "coco/a.jpg", "studio/a.jpg", "me/a.jpg")
    (tmp_path / "gt").mkdir()
    square = "0,0,9,0,9,9,0,9"
    (tmp_path / "gt/gt_a.txt").write_text(f"{square},TOTAL: 4,50\n{square},###\n{square}\n{square}, \n")
    sides = {"image_id": 1, "bbox": [0, 0, 9, 9]}
    annotations = [
        {**sides, "id": 1, "utf8_string": "TOTAL: 4,50"},
        {**sides, "id": 2, "attributes": {"transcription": "###"}},
        {**sides, "id": 3},
        {**sides, "id": 4, "attributes": {"text": " "}},
    ]
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations}
    box = {"x": 0, "y": 0, "width": 9, "height": 9}
    studio = [
        _region({**box, "text": ["TOTAL: 4,50"]}, "textarea", id="1"),
        _region({**box, "text": ["###"]}, "textarea", id="2"),
        _region({**box, "rectanglelabels": ["Text"]}, id="3"),
        _region({**box, "text": []}, "textarea", id="4"),
    ]
    shape = {"points": [[0, 0], [9, 9]], "shape_type": "rectangle", "label": "text"}
    shapes = [{**shape, "description": text} for text in ("TOTAL: 4,50", "###", None, "")]
    _json(tmp_path / "coco/coco.json", coco)
    _json(tmp_path / "studio/export.json", [_task(*studio)])
    _json(tmp_path / "me/a.json", {"shapes": shapes, "imagePath": "a.jpg"})
    for folder in (tmp_path, tmp_path / "coco", tmp_path / "studio", tmp_path / "me"):
        (sample,) = load_labels(folder)
        assert sample.truth.texts == ("TOTAL: 4,50", None, None, None)
        assert sample.truth.ignored == (False, True, False, False)


def test_without_any_transcription_there_are_none(tmp_path: Path) -> None:
    _images(tmp_path, "a.jpg")
    shapes = [{"points": [[0, 0], [9, 9]], "shape_type": "rectangle", "label": "text"}]
    _json(tmp_path / "a.json", {"shapes": shapes, "imagePath": "a.jpg"})
    assert load_labels(tmp_path)[0].truth.texts == ()
