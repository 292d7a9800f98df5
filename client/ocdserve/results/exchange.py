# SPDX-License-Identifier: Apache-2.0
"""Detections in exchange formats: JSON, table rows, COCO, ICDAR 2015, labelme."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections
from ocdserve.results.quads import polygon_area, shortest

__all__ = ["coco_dataset", "from_dict", "from_json", "to_coco", "to_icdar", "to_json", "to_labelme", "to_rows"]

_COORDINATES = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")
# Of the rows of `to_rows`.
COLUMNS = ("image", "page", "width", "height", "index", "score", *_COORDINATES)
# The version of labelme whose format is written; labelme warns about files of another major version.
_LABELME_VERSION = "5.5.0"


def to_json(found: Detections) -> str:
    """One line of JSON: `Detections.to_dict`, and latency_ms and request_id if known."""
    result = found.to_dict()
    extras = {"latency_ms": found.latency_ms, "request_id": found.request_id}
    return json.dumps(result | {name: value for name, value in extras.items() if value is not None})


def from_json(text: str | bytes) -> Detections:
    """Parse the output of `to_json` or `ocdserve detect --json`; unknown keys are ignored.

    Raises:
        InvalidInputError: The text is not JSON, or not that of detections.
    """
    return from_dict(parsed_json(text))


def parsed_json(text: str | bytes) -> Any:
    """Parse JSON; raises InvalidInputError for other text."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"not JSON: {error}; give what Detections.to_json wrote") from error


def from_dict(content: Any) -> Detections:
    """Detections from parsed JSON.

    Raises:
        InvalidInputError: It does not describe detections.
    """
    try:
        items = content["detections"]
        polygons = tuple(_points(item["polygon"]) for item in items if "polygon" in item)
        if polygons and len(polygons) != len(items):
            raise ValueError(f"{len(polygons)} of {len(items)} detections have a polygon; all or none must")
        latency = content.get("latency_ms")
        return Detections(
            quads=np.array([item["quad"] for item in items], np.float32).reshape(len(items), 4, 2),
            scores=np.array([item["score"] for item in items], np.float32),
            width=int(content["width"]),
            height=int(content["height"]),
            polygons=polygons or None,
            latency_ms=None if latency is None else float(latency),
            request_id=content.get("request_id"),
            page=content.get("page"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InvalidInputError(
            f"not the JSON of detections ({what}); it needs width, height and detections [{{quad, score}}]"
        ) from error


def to_rows(found: Detections, image: str | None = None) -> list[dict[str, Any]]:
    """One flat row per detection: image and page (if known), width, height, index, score, x1, y1, ... x4, y4."""
    head: dict[str, Any] = {} if image is None else {"image": image}
    head |= {} if found.page is None else {"page": found.page}
    head |= {"width": found.width, "height": found.height}
    flat = shortest(found.quads.reshape(-1, 8))
    return [
        head | {"index": index, "score": score} | dict(zip(_COORDINATES, corners, strict=True))
        for index, (corners, score) in enumerate(zip(flat, shortest(found.scores), strict=True))
    ]


def to_coco(found: Detections, *, image_id: int = 1, category_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
    """COCO annotations: polygon or quad as `segmentation`, its bounding box, area and score.

    Args:
        found: Detections of one image.
        image_id: The image's id.
        category_id: The category's id.
        first_id: Id of the first annotation; the others follow.
    """
    annotations = []
    for index, (points, score) in enumerate(zip(_outlines(found), shortest(found.scores), strict=True)):
        left, top = points.min(axis=0).tolist()
        right, bottom = points.max(axis=0).tolist()
        annotations.append(
            {
                "id": first_id + index,
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": [shortest(points.ravel())],
                "bbox": [left, top, right - left, bottom - top],
                "area": polygon_area(points),
                "iscrowd": 0,
                "score": score,
            }
        )
    return annotations


def coco_dataset(results: Mapping[str, Detections], *, category: str = "text") -> dict[str, Any]:
    """A whole COCO file: images (ids from 1 in the order given), annotations, one category (id 1).

    Args:
        results: Detections by file name.
        category: The category's name.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (name, found) in enumerate(results.items(), 1):
        images.append({"id": image_id, "file_name": name, "width": found.width, "height": found.height})
        annotations += to_coco(found, image_id=image_id, first_id=len(annotations) + 1)
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": category}]}


def to_icdar(found: Detections, texts: Sequence[str] | None = None) -> str:
    """Lines of ICDAR 2015 (challenge 4): x1,y1,...,x4,y4[,text], whole pixels, each with a line end.

    Raises:
        InvalidInputError: There is not one text per detection, or a text contains a line break.
    """
    if texts is not None and len(texts) != len(found):
        raise InvalidInputError(f"texts must be one per detection: {len(found)} detections, {len(texts)} texts")
    for text in texts or ():
        if text.splitlines() not in ([], [text]):
            raise InvalidInputError(f"a text of ICDAR's format must not hold a line break; got {text!r}")
    corners = [",".join(str(round(value)) for value in quad) for quad in found.quads.reshape(-1, 8).tolist()]
    rows = corners if texts is None else [f"{row},{text}" for row, text in zip(corners, texts, strict=True)]
    return "".join(f"{row}\n" for row in rows)


def to_labelme(found: Detections, image_path: str, *, label: str = "text") -> dict[str, Any]:
    """Content of labelme's JSON file for an image: a polygon per detection, the score as description.

    Args:
        found: Detections of one image.
        image_path: Path of the image, relative to the JSON file.
        label: Label of every shape.
    """
    shapes = [
        {
            "label": label,
            "points": shortest(points),
            "group_id": None,
            "description": f"{score:.4f}",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for points, score in zip(_outlines(found), found.scores, strict=True)
    ]
    return {
        "version": _LABELME_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": found.height,
        "imageWidth": found.width,
    }


def _outlines(found: Detections) -> Sequence[NDArray[np.float32]]:
    """The polygon of each detection, or its quad if there is none; float32 (M, 2) each."""
    if found.polygons is None:
        return list(found.quads)
    return [polygon if len(polygon) > 2 else quad for polygon, quad in zip(found.polygons, found.quads, strict=True)]


def _points(values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(-1, 2)
