# SPDX-License-Identifier: Apache-2.0
"""Label files of TAO's two data sets: quads of ICDAR 2015 and polygons of Uber-Text."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import DONT_CARE, parse_outline, parse_quad, read_lines
from ocdserve.contract import InvalidInputError

LabelFormat = Literal["icdar", "uber"]
_FORMS: dict[LabelFormat, str] = {"icdar": "x1,y1,...,x4,y4,text", "uber": "x1 y1 ... xn yn x1 y1<tab>text"}


@dataclass(frozen=True)
class Label:
    """One text instance.

    Attributes:
        polygon: float64 (M, 2), source pixels; simple and with an area.
        text: The transcription; None where the line has none.
        ignored: Whether it is don't-care.
    """

    polygon: NDArray[np.float64]
    text: str | None
    ignored: bool


@dataclass(frozen=True)
class Labels:
    """The label file of one image.

    Attributes:
        path: The file.
        instances: In the order of the lines.
        notes: Lines that were left out and why, one sentence each.
    """

    path: Path
    instances: tuple[Label, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelRules:
    """How label files are read.

    Attributes:
        format: `icdar`: `x1,y1,...,x4,y4,text`, or more corners. `uber`: `x1 y1 ... xn yn x1 y1`, a tab, the text;
            several words are don't-care.
        ignore_tags: Transcriptions that mean don't-care.
        tao: Read as TAO Deploy does: further corners belong to the text, which ends at its first comma, corners are
            ordered by sums and differences (which turns some quads into triangles), malformed lines are skipped.
    """

    format: LabelFormat = "icdar"
    ignore_tags: tuple[str, ...] = ("*", DONT_CARE)
    tao: bool = False


def read_labels(path: Path, rules: LabelRules) -> Labels:
    """Read one label file.

    Raises:
        InvalidInputError: The file or a line cannot be read; the message names file, line and rule.
    """
    fields = _icdar_fields if rules.format == "icdar" else _uber_fields
    return (_parse_tao if rules.tao else _parse)(path, fields, rules)


_Fields = Callable[[str, bool], "tuple[NDArray[np.float64], str | None]"]


def _icdar_fields(line: str, tao: bool) -> tuple[NDArray[np.float64], str | None]:
    if not tao:
        return parse_outline(line)
    polygon, text = parse_quad(line)
    return polygon, text.partition(",")[0] if text else text


def _uber_fields(line: str, tao: bool) -> tuple[NDArray[np.float64], str | None]:
    coordinates, *rest = line.split("\t")
    fields = coordinates.split(" ") if tao else coordinates.split()
    points = np.array([float(field) for field in fields]).reshape(-1, 2)
    if not tao and (points[0] != points[-1]).any():
        raise ValueError("the last point must repeat the first")
    text = rest[0] if rest else None
    return points[:-1], DONT_CARE if text is not None and len(text.split(" ")) > 1 else text


def _parse(path: Path, fields: _Fields, rules: LabelRules) -> Labels:
    ignore_tags = {_normal(tag) for tag in rules.ignore_tags}
    instances, notes = [], []
    for number, line in read_lines(path):
        try:
            polygon, text = fields(line, False)
            if not np.isfinite(polygon).all():
                raise ValueError("a coordinate is not finite")
        except ValueError as error:
            raise InvalidInputError(
                f"{path}:{number}: expected {_FORMS[rules.format]}; got {line!r} ({error})"
            ) from error
        simple = simple_polygon(polygon)
        if simple is None:
            notes.append(f"{path.name}:{number}: a polygon without area: {line!r}")
        else:
            instances.append(Label(simple, text, text is not None and _normal(text) in ignore_tags))
    return Labels(path, tuple(instances), tuple(notes))


def _parse_tao(path: Path, fields: _Fields, rules: LabelRules) -> Labels:
    instances, notes, textless, longer = [], [], [], []
    for number, line in read_lines(path):
        try:
            polygon, text = fields(line, True)
        except ValueError:
            notes.append(f"{path.name}:{number}: skipped, not in the format: {line!r}")
            continue
        ordered = order_by_sums(polygon) if rules.format == "icdar" else polygon
        if not cv2.contourArea(ordered.astype(np.float32)) > 0:
            continue
        if rules.format == "icdar" and len(parse_outline(line)[0]) > 4:
            longer.append(str(number))
        if text is None:
            textless.append(str(number))
        instances.append(Label(ordered, text, text in rules.ignore_tags))
    if longer:
        notes.append(
            f"{path.name}: more than four corners (line {', '.join(longer)}): as in TAO, the first four are read"
        )
    if textless:
        raise InvalidInputError(
            f"{path}: lines without a text (line {', '.join(textless)}): TAO Deploy shifts the don't-care flags of the "
            "others and then fails. Leave out ocdserve.compat=tao, or write a comma and an empty text."
        )
    return Labels(path, tuple(instances), tuple(notes))


def simple_polygon(points: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return a polygon without self-intersection through the same corners; None where it has no area.

    A simple polygon is returned as it is; other points, such as corners given crosswise, are sorted by their angle
    around the centre.

    Args:
        points: (M, 2).
    """
    if len(points) < 3:
        return None
    if _is_simple(points):
        return points
    dx, dy = (points - points.mean(axis=0)).T
    ordered = points[np.argsort(np.arctan2(dy, dx), kind="stable")]
    return ordered if _is_simple(ordered) else None


def order_by_sums(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Order corners (4, 2) by TAO's rule: least x + y, least y - x, largest x + y, largest y - x; one may repeat."""
    sums, differences = points.sum(axis=1), points[:, 1] - points[:, 0]
    chosen = [np.argmin(sums), np.argmin(differences), np.argmax(sums), np.argmax(differences)]
    return points[chosen].astype(np.float32).astype(np.float64)


def _is_simple(points: NDArray[np.float64]) -> bool:
    polygon = shapely.Polygon(points)
    return bool(polygon.is_valid) and polygon.area > 0


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())
