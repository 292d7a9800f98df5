# SPDX-License-Identifier: Apache-2.0
"""Drawn pages with exact labels: receipts, documents, screens, signs and words on photographs or textures.

A page depends on the seed, its index, the fonts and the photographs alone, with one version of NumPy,
OpenCV and Pillow.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.builder.train.data.drawing import layouts
from ocdserve.builder.train.data.drawing.damage import damaged, faded
from ocdserve.builder.train.data.drawing.fonts import Face, faces
from ocdserve.builder.train.data.drawing.grounds import ground
from ocdserve.builder.train.data.drawing.sheet import Sheet, homography_between, mapped, put

_Page = NDArray[np.uint8]
_Quads = list[NDArray[np.float64]]

# Shares of the kinds of pages; `empty` ones have no text.
_KINDS = {"receipt": 0.22, "document": 0.18, "screen": 0.12, "signs": 0.24, "bare": 0.14, "empty": 0.10}
# A text is ignored where less of it is on the page.
_LEAST_INSIDE = 0.95
_TRIES = 12


def drawn_pages(
    count: int,
    size: tuple[int, int],
    seed: int,
    photographs: Sequence[Path] = (),
    fonts: Iterable[Path] | None = None,
) -> Iterator[tuple[NDArray[np.uint8], Truth]]:
    """Draw pages of random kinds, fonts, scripts, sizes (8 to 120 pixels per em), colours, angles and damage.

    A polygon is the quad of a line, as the labels of scanned receipts are: texts that a gap of more than one em
    separates, such as an item and its price, are two. A text that the page's border cuts off is ignored.

    Args:
        count: Number of pages.
        size: Height and width of a page in pixels.
        seed: A page differs between seeds and indices.
        photographs: Image files without text of interest, as grounds; textures are drawn without them.
        fonts: Font files; None takes those of matplotlib, of installed packages of fonts and of the system.

    Yields:
        A page, uint8 RGB (H, W, 3), and its texts: float64 (4, 2) each, clockwise from the text's top left.

    Raises:
        InvalidInputError: A font or a photograph cannot be read.
    """
    available = faces(fonts)
    for index in range(count):
        with _same_pixels():
            page, truth = _drawn(np.random.default_rng((seed, index)), size, photographs, available)
        yield page, truth


@contextmanager
def _same_pixels() -> Iterator[None]:
    """Without IPP, whose resizing differs in the last digit between processors."""
    was_used = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        yield
    finally:
        cv2.ipp.setUseIPP(was_used)


def _drawn(
    random: np.random.Generator, size: tuple[int, int], photographs: Sequence[Path], available: Sequence[Face]
) -> tuple[_Page, Truth]:
    height, width = size
    kind = str(random.choice(list(_KINDS), p=list(_KINDS.values())))
    page = ground(random, height, width, photographs)
    quads: _Quads = []
    ems: list[int] = []
    if kind == "screen":
        sheet = layouts.screen(random, available, width, height)
        quads, ems = put(page, sheet), sheet.ems
    elif kind in ("receipt", "document"):
        quads, ems = _put_paper(random, page, kind, available)
    elif kind in ("signs", "bare"):
        quads, ems = _put_pieces(random, page, kind, available)
    page = damaged(random, page, min(ems, default=height), kind == "screen")
    return page, _truth(quads, size)


def _put_paper(
    random: np.random.Generator, page: _Page, kind: str, available: Sequence[Face]
) -> tuple[_Quads, list[int]]:
    """One sheet that takes most of the page, or more than all of it; slightly turned, seen at an angle."""
    height, width = page.shape[:2]
    whole = random.random() < 0.35
    if kind == "receipt":
        wide, tall = width * random.uniform(0.5, 1.0), height * random.uniform(0.75, 1.3)
        sheet = layouts.receipt(random, available, int(wide), int(tall))
        if random.random() < 0.4:
            sheet.image.paste(Image.fromarray(faded(random, np.asarray(sheet.image), sheet.colour)))
    else:
        wide, tall = width * random.uniform(0.8, 1.1), height * random.uniform(0.8, 1.1)
        sheet = layouts.document(random, available, int(width if whole else wide), int(height if whole else tall))
    if whole and kind == "document":
        return put(page, sheet), sheet.ems
    angle = random.uniform(-90, 90) if random.random() < 0.08 else random.normal(0, 4)
    centre = np.array([width, height]) / 2 + random.uniform(-0.04, 0.04, 2) * (width, height)
    return put(page, sheet, _seen(random, sheet, centre, angle, 0.05)), sheet.ems


def _put_pieces(
    random: np.random.Generator, page: _Page, kind: str, available: Sequence[Face]
) -> tuple[_Quads, list[int]]:
    """Several plates or bare texts, none above another."""
    height, width = page.shape[:2]
    taken = np.zeros((height // 4, width // 4), np.uint8)
    quads: _Quads = []
    ems: list[int] = []
    common = random.normal(0, 6) if random.random() < 0.6 else None
    for _ in range(int(random.integers(1, 16))):
        em = layouts.em_of(random, 10)
        place = random.uniform(0.05, 0.95, 2) * (width, height)
        if kind == "signs":
            sheet = layouts.sign(random, available, em)
        else:
            sheet = layouts.bare(random, available, em, *_ground_at(page, place, em))
        for _ in range(_TRIES):
            angle = random.uniform(-180, 180) if random.random() < 0.06 else common
            homography = _seen(random, sheet, place, random.uniform(-10, 10) if angle is None else angle, 0.12)
            if _free(taken, sheet, homography):
                quads += put(page, sheet, homography)
                ems += sheet.ems
                break
            if kind == "signs":
                place = random.uniform(0.05, 0.95, 2) * (width, height)
    return quads, ems


def _seen(
    random: np.random.Generator, sheet: Sheet, centre: NDArray[np.float64], angle: float, depth: float
) -> NDArray[np.float64]:
    """The homography that stretches a sheet, turns it by degrees around its centre, and moves each corner.

    Args:
        random: Decides how much.
        sheet: The sheet.
        centre: Where its centre comes to lie, (x, y).
        angle: Degrees, counterclockwise.
        depth: How far corners move at most, in halves of the shorter side.
    """
    half = np.array(sheet.size) / 2
    stretch = np.array([random.uniform(0.85, 1.2), 1.0])
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    target = (corners * stretch + random.uniform(-depth, depth, (4, 2)) * half.min()) @ np.array(
        [(cosine, -sine), (sine, cosine)]
    )
    return homography_between(corners + half, target + centre)


def _free(taken: NDArray[np.uint8], sheet: Sheet, homography: NDArray[np.float64]) -> bool:
    """Whether a sheet is above no other, and mostly on the page; it is then entered into `taken`, in 4 x 4 pixels."""
    width, height = sheet.size
    corners = mapped(homography, np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64))
    inside = np.clip(corners, 0, np.array(taken.shape[::-1]) * 4)
    if cv2.contourArea(inside.astype(np.float32)) < 0.8 * cv2.contourArea(corners.astype(np.float32)):
        return False
    piece = np.zeros_like(taken)
    cv2.fillConvexPoly(piece, np.rint(corners / 4).astype(np.int32), (1,))
    if (piece & taken).any():
        return False
    taken |= piece
    return True


def _ground_at(page: _Page, place: NDArray[np.float64], em: float) -> tuple[Sequence[float], float]:
    """Mean colour of the page within two em of a point, and the standard deviation of its grey levels there."""
    left, top = np.maximum(place - 2 * em, 0).astype(int)
    right, bottom = (place + 2 * em).astype(int)
    part = page[top:bottom, left:right]
    mean: list[float] = part.mean(axis=(0, 1)).tolist()
    return mean, float(part.mean(axis=2).std())


def _truth(quads: _Quads, size: tuple[int, int]) -> Truth:
    """Texts on the page; those that its border cuts off are ignored, those outside of it left out."""
    height, width = size
    border = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    kept, ignored = [], []
    for quad in quads:
        points = quad.astype(np.float32)
        inside, _ = cv2.intersectConvexConvex(points, border)
        share = inside / max(cv2.contourArea(points), 1e-6)
        if share > 0.01:
            kept.append(quad)
            ignored.append(bool(share < _LEAST_INSIDE))
    return Truth(tuple(kept), tuple(ignored))
