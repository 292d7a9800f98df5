# SPDX-License-Identifier: Apache-2.0
"""Labels in JSON, of COCO, Label Studio and labelme, as polygons in pixels."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import DONT_CARE, Truth
from ocdserve.contract import IMAGE_SUFFIXES, InvalidInputError, is_image
from ocdserve.results.quads import polygon_area

_IGNORED = frozenset({DONT_CARE, "ignore", "ignored"})
# Regions without an area, such as of a stray click, are smaller; in square pixels.
_LEAST_AREA = 1e-3
# labelme's shapes that surround an area with straight sides; the last two are of programs that write its format.
_POLYGONS = ("polygon", "rectangle", "rotation", "quadrilateral")
# Keys of transcriptions: of COCO-Text, and of what other tools add to COCO's annotations or to their attributes.
_TEXT_KEYS = ("utf8_string", "transcription", "text")
# What Label Studio puts in front of the names of uploaded files.
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")

# Polygon, whether it is don't-care, transcription.
_Region = tuple[NDArray[np.float64], bool, str | None]
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Entry:
    """One labelled image of a JSON file.

    Attributes:
        file: The JSON file.
        image: What it calls the image.
        names: Paths by which the image may be found, the most specific first.
        truth: Its polygons.
    """

    file: Path
    image: str
    names: tuple[str, ...]
    truth: Truth


def coco(file: Path, content: Mapping[str, Any]) -> list[Entry]:
    """Read a COCO file.

    Raises:
        InvalidInputError: It is malformed; the message names file and annotation.
    """
    categories = _each(file, "category", content.get("categories", []), lambda item: (item["id"], item.get("name")))
    ignored = {category for category, name in categories if _is_ignored([name])}
    names = dict(_each(file, "image", content["images"], lambda image: (image["id"], str(image["file_name"]))))
    regions: dict[Any, list[_Region]] = {image_id: [] for image_id in names}

    def read(item: Mapping[str, Any]) -> None:
        if item["image_id"] not in regions:
            raise ValueError(f"there is no image with the id {item['image_id']!r}")
        text = _coco_text(item)
        flagged = item.get("iscrowd") or item.get("ignore") or item.get("category_id") in ignored
        regions[item["image_id"]].append((_coco_polygon(item), bool(flagged) or _is_ignored([text]), text))

    _each(file, "annotation", content["annotations"], read)
    return [Entry(file, name, _endings(name), _truth(regions[image_id])) for image_id, name in names.items()]


def label_studio(file: Path, tasks: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Read Label Studio's export "JSON"; tasks without an annotation that was not skipped are left out.

    Raises:
        InvalidInputError: It is malformed, or has a region of another form; the message names file and task.
    """

    def read(task: Mapping[str, Any]) -> Entry | None:
        annotation = next((item for item in task["annotations"] if not item.get("was_cancelled")), None)
        if annotation is None:
            return None
        address = _address(task["data"])
        names = (*_endings(_path(address)), *_endings(task.get("file_upload") or ""))
        uploaded = (name[9:] for name in names if _UPLOAD_PREFIX.match(name))
        return Entry(file, address, (*names, *uploaded), _truth(_studio_regions(annotation["result"])))

    return [entry for entry in _each(file, "task", tasks, read) if entry]


def labelme(file: Path, content: Mapping[str, Any]) -> list[Entry]:
    """Read a file of labelme.

    Raises:
        InvalidInputError: It is malformed, or has a shape of another form; the message names file and shape.
    """

    def read(shape: Mapping[str, Any]) -> _Region:
        points, kind = _points(shape["points"]), shape.get("shape_type") or "polygon"
        if kind not in _POLYGONS:
            raise ValueError(f"it is a {kind}; text is surrounded by polygons and rectangles")
        if kind == "rectangle" and len(points) == 2:
            points = _box(*points.min(axis=0), *np.ptp(points, axis=0))
        flags = [name for name, is_set in (shape.get("flags") or {}).items() if is_set]
        return points, _is_ignored([shape.get("label"), shape.get("description"), *flags]), shape.get("description")

    regions = _each(file, "shape", content["shapes"], read)
    image = str(content.get("imagePath") or file.stem)
    names = (*_endings(image), *(f"{file.stem}{suffix}" for suffix in IMAGE_SUFFIXES))
    return [Entry(file, image, names, _truth(regions))]


def _each(file: Path, what: str, items: Any, read: Callable[[Any], _Read]) -> list[_Read]:
    """Read the items of a list.

    Raises:
        InvalidInputError: It is no list, or an item is malformed; the message names file and item.
    """
    if not isinstance(items, list):
        raise InvalidInputError(f"{file}: what should be the list of each {what} is a {type(items).__name__}")
    results = []
    for index, item in enumerate(items):
        try:
            results.append(read(item))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            name = item.get("id", index) if isinstance(item, Mapping) else index
            reason = f"there is no {error}" if isinstance(error, KeyError) else error
            raise InvalidInputError(f"{file}, {what} {name}: {reason}") from error
    return results


def _coco_polygon(item: Mapping[str, Any]) -> NDArray[np.float64]:
    """The polygon of an annotation; of several parts, or of a mask, the box around them."""
    parts = item.get("segmentation")
    if isinstance(parts, list) and parts:
        polygons = [np.array(part, np.float64).reshape(-1, 2) for part in parts]
        if len(polygons) == 1:
            return _points(polygons[0])
        corners = _points(np.concatenate(polygons))
        return _box(*corners.min(axis=0), *np.ptp(corners, axis=0))
    x, y, width, height = item["bbox"]
    return _box(x, y, width, height)


def _coco_text(item: Mapping[str, Any]) -> Any:
    attributes = item.get("attributes")
    found = {**(attributes if isinstance(attributes, Mapping) else {}), **item}
    return next((found[key] for key in _TEXT_KEYS if key in found), None)


def _studio_regions(results: Iterable[Mapping[str, Any]]) -> list[_Region]:
    """The regions of an annotation: results with one id describe one region, as its box, label and transcription."""
    regions: dict[Any, NDArray[np.float64]] = {}
    said: dict[Any, list[Any]] = {}
    texts: dict[Any, str] = {}
    for index, result in enumerate(results):
        value, key = result.get("value", {}), result.get("id", index)
        for name in (result.get("type"), "text"):
            words = value.get(name, ())
            words = [words] if isinstance(words, str) else words
            said.setdefault(key, []).extend(words)
            if name == "text" and words:
                texts[key] = " ".join(words)
        if "points" not in value and "width" not in value:
            if {"x", "y", "rle", "format"} & value.keys():
                raise ValueError(
                    f"region {key} is a {result.get('type')}; text is surrounded by polygons and rectangles"
                )
            continue
        if result.get("image_rotation"):
            raise ValueError(
                f"the picture was turned by {result['image_rotation']} degrees; turn the file, label again"
            )
        percent = np.array([result["original_width"], result["original_height"]], np.float64) / 100
        regions[key] = _studio_polygon(value, percent)
    return [(polygon, _is_ignored(said[key]), texts.get(key)) for key, polygon in regions.items()]


def _studio_polygon(value: Mapping[str, Any], percent: NDArray[np.float64]) -> NDArray[np.float64]:
    """A polygon, or a rectangle that is turned clockwise around its top left corner; sides in per cent of the image's.

    Args:
        value: Of a result.
        percent: Pixels of a per cent of width and height, float64 (2,).
    """
    if "points" in value:
        return _points(value["points"]) * percent
    size = np.array([value["width"], value["height"]], np.float64) * percent
    turn = math.radians(value.get("rotation") or 0)
    across, down = np.array([math.cos(turn), math.sin(turn)]), np.array([-math.sin(turn), math.cos(turn)])
    box = _box(0, 0, *size)
    start = np.array([value["x"], value["y"]], np.float64) * percent
    return _points(start + box[:, :1] * across + box[:, 1:] * down)


def _address(data: Mapping[str, Any]) -> str:
    """The image of a task of Label Studio, whose key the labelling interface names."""
    texts = [text for text in data.values() if isinstance(text, str)]
    images = [text for text in texts if is_image(Path(_path(text)))]
    if "image" in data or not images:
        return str(data["image"])
    return images[0]


def _path(address: str) -> str:
    """The path of a URL; of Label Studio's local files the one after `?d=`."""
    parts = urlsplit(address)
    return (parse_qs(parts.query).get("d") or [unquote(parts.path)])[0]


def _endings(path: str) -> tuple[str, ...]:
    """A path and its ends: of `a/b/c.jpg` also `b/c.jpg` and `c.jpg`."""
    parts = [part for part in path.replace("\\", "/").split("/") if part]
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return tuple(dict.fromkeys([path, *ends])) if parts else ()


def _is_ignored(names: Iterable[Any]) -> bool:
    return any(isinstance(name, str) and name.strip().lower() in _IGNORED for name in names)


def _truth(regions: Iterable[_Region]) -> Truth:
    kept = [region for region in regions if polygon_area(region[0]) > _LEAST_AREA]
    texts = tuple(None if ignored or not isinstance(text, str) else text.strip() or None for _, ignored, text in kept)
    polygons, ignored = tuple(region[0] for region in kept), tuple(region[1] for region in kept)
    return Truth(polygons, ignored, texts if any(texts) else ())


def _box(x: float, y: float, width: float, height: float) -> NDArray[np.float64]:
    return _points([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])


def _points(values: Any) -> NDArray[np.float64]:
    points = np.array(values, np.float64).reshape(-1, 2)
    if len(points) < 2:
        raise ValueError(f"a region has at least two points; got {len(points)}")
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is not finite")
    return points
