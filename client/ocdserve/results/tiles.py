# SPDX-License-Identifier: Apache-2.0
"""Large images in tiles: the layout of the tiles, and the merging of their detections. Pure: no network.

A tile cuts text at its inner edges, those that are not the image's. Text that it cuts and a neighbour contains whole is
left to the neighbour; text cut by both at facing edges is one, if it lines up; duplicates are removed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections
from ocdserve.results.pictures import pixels_of
from ocdserve.results.quads import (
    convex_hull,
    intersection_area,
    intersection_areas,
    page_angle,
    quad_areas,
    quad_sizes,
    smallest_rectangle,
    turned,
)

# The default detector does not scale up to 1600 pixels; both are multiples of its 32.
DEFAULT_TILE, DEFAULT_OVERLAP = 1280, 192
_SMALLEST_TILE = 64

# A quad that ends closer than this to an inner edge is cut by it: pixels, and a share of its shorter side.
_EDGE_PX, _EDGE_SHARE = 4.0, 0.5
# Two quads are the same text if they share this part of the smaller; one replaces those that it covers this far.
_SAME, _COVERS = 0.5, 0.75
# Two halves of a text share this part of the tiles' common strip, and of their length along the seam.
_STRIP, _ALIGNED = 0.7, 0.5

# A text of an overview replaces pieces if it is so high, in pixels of the overview: what is lower is more exact in the
# tiles. Where they show nothing, lower text is taken.
LEAST_IN_OVERVIEW, _LEAST_ALONE = 28, 22
# It overlaps no piece that it does not cover by more than this part of the smaller, and its score is so much lower than
# theirs at most. Of a text so many times as long as high they take this part of the length at least, and extend across
# the line so many times as far as along it at most: else they are columns.
_APART, _WORSE = 0.25, 0.05
_LONG, _FILLED, _ACROSS = 6.0, 0.6, 1.2
# Columns of the overview replace a line of the tiles if they are so wide, in pixels of the overview: wider ones may be
# letters. Their scores are so much lower than the line's at most.
_COLUMN_WIDTHS, _WORSE_IN_COLUMNS = (16, 48), 0.1
# Large texts and pieces are at least so high, as a part of the image's shorter side. They belong together if they share
# more than this part of the smaller. The texts replace the pieces if they cover this of each and score so much better.
_LARGE, _TOUCHES, _OF_EACH, _BETTER = 0.5, 0.1, 0.5, 0.08

# Signs that make distances from bounds to a tile's edges positive inside of it: left, top, right, bottom.
_OUTWARDS = np.array([-1, -1, 1, 1])

Boxes = NDArray[np.int64]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TiledImage:
    """An image and its tiles.

    Attributes:
        pixels: uint8 (H, W, 3) RGB.
        boxes: int64 (T, 4), left, top, right, bottom of each tile in pixels; see `tile_boxes`.
        page: Page of its file; None: none was chosen.
    """

    pixels: NDArray[np.uint8]
    boxes: Boxes
    page: int | None = None

    @classmethod
    def of(cls, image: bytes | NDArray[np.uint8], tile: int, overlap: int, page: int | None = None) -> "TiledImage":
        """Lay tiles over an image.

        Args:
            image: uint8 (H, W, 3) RGB, or an encoded image, which Pillow decodes.
            tile: Side of a tile in pixels.
            overlap: Minimum overlap of neighbours in pixels.
            page: Page of a file of several, from 1.

        Raises:
            InvalidInputError: The image, `tile` or `overlap` is not valid.
            UnavailableError: The image must be decoded and Pillow is not installed.
        """
        pixels = pixels_of(image, page)
        height, width = pixels.shape[:2]
        return cls(pixels, tile_boxes(width, height, tile, overlap), page)

    def tiles(self) -> Iterator[NDArray[np.uint8]]:
        """uint8 (h, w, 3) RGB tiles, all of one size, each copied when it is requested."""
        return (np.ascontiguousarray(self.pixels[top:bottom, left:right]) for left, top, right, bottom in self.boxes)

    def merge(self, found: Sequence[Detections], latency_ms: float | None = None) -> Detections:
        """The image's detections from those of its tiles, in the tiles' order; see `merge_tiles`."""
        height, width = self.pixels.shape[:2]
        return replace(merge_tiles(self.boxes, found, width, height), latency_ms=latency_ms, page=self.page)


def tile_boxes(width: int, height: int, tile: int = DEFAULT_TILE, overlap: int = DEFAULT_OVERLAP) -> Boxes:
    """The layout of an image's tiles: as few as possible, of one size, spread evenly, row by row.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        tile: Side of a tile in pixels, from 64; a smaller image is one tile of its own size.
        overlap: Minimum overlap of neighbours in pixels, at most half a tile. Twice the height of the largest text is
            enough: longer text is merged.

    Returns:
        int64 (T, 4): left, top, right, bottom in pixels.

    Raises:
        InvalidInputError: `tile` or `overlap` is out of range.

    >>> tile_boxes(250, 100, tile=100, overlap=20).tolist()
    [[0, 0, 100, 100], [75, 0, 175, 100], [150, 0, 250, 100]]
    """
    if tile < _SMALLEST_TILE:
        raise InvalidInputError(f"tile must be at least {_SMALLEST_TILE} pixels; got {tile}")
    if not 0 <= overlap <= tile // 2:
        raise InvalidInputError(f"overlap must be from 0 to half a tile, {tile // 2} pixels; got {overlap}")
    lefts, tops = tile_starts(width, tile, overlap), tile_starts(height, tile, overlap)
    corners = [(left, top, min(left + tile, width), min(top + tile, height)) for top in tops for left in lefts]
    return np.array(corners, np.int64)


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one side of an image: as few as possible, evenly spread; the same rules and units."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [int(start) for start in np.linspace(0, length - tile, count).round()]


def merge_tiles(boxes: Boxes, found: Sequence[Detections], width: int, height: int) -> Detections:
    """Merge the detections of all tiles.

    Text across a seam becomes the smallest rectangle around its parts, with their area-weighted mean score; its polygon
    is the convex hull of theirs. All other detections are unchanged.

    Args:
        boxes: int64 (T, 4), the tiles; see `tile_boxes`.
        found: T detections in pixels of their tiles.
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Returns:
        Detections in pixels of the image, best score first.
    """
    pieces = _Pieces.gather(boxes, found, width, height)
    alive = ~pieces.seen_whole_elsewhere(boxes)
    groups = _joined(len(alive), _links(pieces, boxes, alive))
    texts = [_text(pieces, group) for group in groups if alive[group[0]]]
    texts.sort(key=lambda text: -text[1])
    polygons = tuple(polygon for _, _, polygon in texts if polygon is not None)
    return Detections(
        quads=np.array([quad for quad, _, _ in texts], np.float32).reshape(-1, 4, 2),
        scores=np.array([score for _, score, _ in texts], np.float32),
        width=width,
        height=height,
        polygons=None if pieces.polygons is None else polygons,
    )


def with_overview(found: Detections, overview: Detections) -> Detections:
    """Replace the pieces of large letters, and lines of columns, by the texts that an overview of the image shows.

    A network sees letters only up to a size, and larger ones as their strokes, or not at all; large words that are
    turned and side by side it sees as one line. A text of the overview is taken where nothing is found, where it covers
    pieces of which one is narrower than the line is high, and where it is one of the columns that a piece consists of.
    Large pieces may end anywhere: all texts that they touch replace them together, if these score better.

    Args:
        found: The detections of the image.
        overview: Those of the image scaled down, in its pixels.

    Returns:
        Detections in pixels of the image, best score first.
    """
    scale = np.array([found.width / overview.width, found.height / overview.height], np.float32)
    texts, heights = overview.quads * scale, np.minimum(*quad_sizes(overview.quads))
    kept, taken = np.ones(len(found), bool), np.zeros(len(overview), bool)
    narrow = np.flatnonzero((heights >= _COLUMN_WIDTHS[0]) & (heights <= _COLUMN_WIDTHS[1]))
    for piece, columns in _lines_of_columns(found, texts[narrow], overview.scores[narrow]):
        kept[piece] = False
        taken[narrow[columns]] = True
    large = np.flatnonzero((heights >= max(LEAST_IN_OVERVIEW, _LARGE * min(overview.width, overview.height))) & ~taken)
    for group, pieces in _replaced_together(texts[large], overview.scores[large], found, kept):
        kept[pieces] = False
        taken[large[group]] = True
    for index in np.flatnonzero((heights >= _LEAST_ALONE) & ~taken):
        replaced = _replaced_by(texts[index], float(overview.scores[index]), found, kept)
        if replaced is not None and (heights[index] >= LEAST_IN_OVERVIEW or not len(replaced)):
            kept[replaced] = False
            taken[index] = True
    if not taken.any():
        return found
    scores = np.concatenate([found.scores[kept], overview.scores[taken]])
    order = np.argsort(-scores, kind="stable")
    polygons = None
    if found.polygons is not None and overview.polygons is not None:
        every = [found.polygons[index] for index in np.flatnonzero(kept)]
        every += [overview.polygons[index] * scale for index in np.flatnonzero(taken)]
        polygons = tuple(every[index] for index in order)
    quads = np.concatenate([found.quads[kept], texts[taken]])[order]
    return replace(found, quads=quads, scores=scores[order], polygons=polygons)


def _lines_of_columns(
    found: Detections, texts: NDArray[np.float32], scores: NDArray[np.float32]
) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Each piece that the overview's texts, (N, 4, 2), show to be columns side by side, and the indices of these."""
    every = _areas(texts)
    covered = intersection_areas(texts, found.quads) >= _COVERS * every[:, None]
    for piece in np.flatnonzero(covered.sum(axis=0) > 1):
        areas = every[columns := np.flatnonzero(covered[:, piece])]
        length, _, sides, across = _along(found.quads[piece], texts[columns])
        is_worse = np.average(scores[columns], weights=areas) < found.scores[piece] - _WORSE_IN_COLUMNS
        if sides.sum() >= _FILLED * length and _ACROSS * (areas @ across) >= areas @ sides and not is_worse:
            yield int(piece), columns


def _replaced_together(
    texts: NDArray[np.float32], scores: NDArray[np.float32], found: Detections, kept: NDArray[np.bool_]
) -> Iterator[tuple[list[int], NDArray[np.intp]]]:
    """Indices of large texts of the overview, (N, 4, 2), and of the pieces that they replace together."""
    areas, sizes, common = _areas(found.quads), _areas(texts), intersection_areas(texts, found.quads)
    is_large = np.minimum(*quad_sizes(found.quads)) >= _LARGE * min(found.width, found.height)
    touches = kept & is_large & (common > _TOUCHES * np.minimum(areas, sizes[:, None]))
    for group in _joined(len(texts), ((int(i), int(j)) for i, j in np.argwhere(touches @ touches.T))):
        touched, shared = touches[group].any(axis=0), np.minimum(common[group].sum(axis=0), areas)
        pieces = np.flatnonzero(kept & (touched | (shared >= _COVERS * areas)))
        part = shared[pieces] / areas[pieces]
        if touched.any() and part.min() >= _OF_EACH and np.average(part, weights=areas[pieces]) >= _COVERS:
            score = np.average(scores[group], weights=sizes[group])
            if score > np.average(found.scores[pieces], weights=areas[pieces]) + _BETTER:
                yield group, pieces


def _replaced_by(
    text: NDArray[np.float32], score: float, found: Detections, kept: NDArray[np.bool_]
) -> NDArray[np.intp] | None:
    """Indices of the pieces that a text of the overview, (4, 2), replaces; None: the text is not taken."""
    [common], areas = intersection_areas(text[None], found.quads), _areas(found.quads)
    covered = kept & (common >= _COVERS * areas)
    if (kept & ~covered & (common > _APART * np.minimum(areas, _areas(text[None])))).any():
        return None
    pieces, areas = np.flatnonzero(covered), areas[covered]
    length, height, sides, across = _along(text, found.quads[pieces])
    is_columns = sides.sum() < _FILLED * length or areas @ across > _ACROSS * (areas @ sides)
    if length >= _LONG * height and is_columns:
        return None
    if not len(pieces):
        return pieces
    is_worse = score < np.average(found.scores[pieces], weights=areas) - _WORSE
    return pieces if (sides < height).any() and not is_worse else None


def _areas(quads: NDArray[np.float32]) -> Float64:
    return np.maximum(quad_areas(quads), 1e-6)


def _along(line: NDArray[np.float32], quads: NDArray[np.float32]) -> tuple[float, float, Float64, Float64]:
    """Length and height of a line, (4, 2), and the extents of quads (N, 4, 2) along and across it, in pixels."""
    ends = line[[1, 2]] - line[[0, 1]]
    sides = np.linalg.norm(ends, axis=1)
    x, y = ends[sides.argmax()]
    along, across = np.ptp(turned(quads, float(np.arctan2(y, x))), axis=1).T
    return float(sides.max()), float(sides.min()), along, across


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Detections of all tiles in pixels of the image: quads (N, 4, 2), scores (N,), index of the tile (N,), bounds
    (N, 4) as left, top, right, bottom, and which sides of its tile cut it (N, 4) in the same order."""

    quads: NDArray[np.float32]
    scores: NDArray[np.float32]
    polygons: list[NDArray[np.float32]] | None
    tile: NDArray[np.intp]
    bounds: Float64
    margin: Float64
    cut: NDArray[np.bool_]

    @classmethod
    def gather(cls, boxes: Boxes, found: Sequence[Detections], width: int, height: int) -> "_Pieces":
        corner = boxes[:, :2].astype(np.float32)
        quads = np.concatenate([part.quads + offset for part, offset in zip(found, corner, strict=True)])
        polygons = None
        if any(part.polygons is not None for part in found):
            polygons = [polygon + corner[index] for index, part in enumerate(found) for polygon in part.polygons or ()]
        tile = np.repeat(np.arange(len(boxes)), [len(part) for part in found])
        bounds = np.concatenate([quads.min(axis=1), quads.max(axis=1)], axis=1).astype(np.float64)
        margin = np.maximum(_EDGE_PX, _EDGE_SHARE * np.minimum(*quad_sizes(quads)))[:, None]
        inner = boxes != (0, 0, width, height)
        cut = inner[tile] & ((boxes[tile] - bounds) * _OUTWARDS <= margin)
        scores = np.concatenate([part.scores for part in found])
        return cls(quads, scores, polygons, tile, bounds, margin, cut)

    def seen_whole_elsewhere(self, boxes: Boxes) -> NDArray[np.bool_]:
        """bool (N,): cut by its own tile, while another tile contains it clear of its edges."""
        whole = np.zeros(len(self.quads), bool)
        cut = np.flatnonzero(self.cut.any(axis=1))
        extent = (min(boxes[:, 0]), min(boxes[:, 1]), max(boxes[:, 2]), max(boxes[:, 3]))
        for index in cut:
            clear = (boxes - self.bounds[index]) * _OUTWARDS > self.margin[index]
            inside = (clear | (boxes == extent)).all(axis=1)
            inside[self.tile[index]] = False
            whole[index] = inside.any()
        return whole


def _links(pieces: _Pieces, boxes: Boxes, alive: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Pairs of pieces, of different tiles, that are the same text."""
    members = [np.flatnonzero(alive & (pieces.tile == index)) for index in range(len(boxes))]
    pairs = np.argwhere(np.triu(_overlapping(boxes, boxes), 1))
    for pair in pairs:
        strip = np.concatenate([boxes[pair, :2].max(axis=0), boxes[pair, 2:].min(axis=0)])
        near = [members[tile][_overlapping(pieces.bounds[members[tile]], strip[None])[:, 0]] for tile in pair]
        rows, columns = np.nonzero(_overlapping(pieces.bounds[near[0]], pieces.bounds[near[1]]))
        for i, j in zip(near[0][rows], near[1][columns], strict=True):
            if _one_text(pieces, int(i), int(j), strip):
                yield int(i), int(j)


def _one_text(pieces: _Pieces, i: int, j: int, strip: Boxes) -> bool:
    common = intersection_area(pieces.quads[i], pieces.quads[j])
    if common >= _SAME * quad_areas(pieces.quads[[i, j]]).min():
        return True
    return common > 0 and any(_continues(pieces, i, j, strip, axis) for axis in (0, 1))


def _continues(pieces: _Pieces, i: int, j: int, strip: Boxes, axis: int) -> bool:
    """Whether i and j are halves of a text cut by a seam whose normal is the x (0) or the y axis (1)."""
    cut = pieces.cut
    if not ((cut[i, axis + 2] and cut[j, axis]) or (cut[j, axis + 2] and cut[i, axis])):
        return False
    ends = pieces.bounds[[i, j]]
    if ends[:, axis + 2].min() - ends[:, axis].max() < _STRIP * (strip[axis + 2] - strip[axis]):
        return False
    pair = pieces.quads[[i, j]]
    angle = page_angle(pair)
    frame = turned(pair, angle)
    low, high = frame.min(axis=1), frame.max(axis=1)
    shared = (high.min(axis=0) - low.max(axis=0)) / np.maximum((high - low).min(axis=0), 1e-6)
    runs_across_the_seam = abs((np.cos(angle), np.sin(angle))[axis]) > np.sqrt(0.5)
    return bool(shared[1 if runs_across_the_seam else 0] >= _ALIGNED)


def _text(pieces: _Pieces, group: list[int]) -> tuple[NDArray[np.float32], float, NDArray[np.float32] | None]:
    """Quad, score and polygon of the text that consists of these pieces."""
    quads, scores, areas = pieces.quads[group], pieces.scores[group], quad_areas(pieces.quads[group])
    covering = [
        index
        for index in group
        if len(group) > 1
        and not pieces.cut[index].any()
        and all(
            intersection_area(pieces.quads[index], quad) >= _COVERS * area
            for quad, area in zip(quads, areas, strict=True)
        )
    ]
    if len(group) == 1 or covering:
        best = max(covering or group, key=lambda index: float(pieces.scores[index]))
        return pieces.quads[best], float(pieces.scores[best]), pieces.polygons[best] if pieces.polygons else None
    hull = None
    if pieces.polygons is not None:
        hull = convex_hull(np.concatenate([pieces.polygons[index] for index in group])).astype(np.float32)
    score = float(np.average(scores, weights=np.maximum(areas, 1e-6)))
    return smallest_rectangle(quads.reshape(-1, 2)), score, hull


def _overlapping(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.bool_]:
    """bool (N, M): which bounds (N, 4) and (M, 4) overlap."""
    a, b = first[:, None], second[None, :]
    overlap: NDArray[np.bool_] = (np.minimum(a[..., 2:], b[..., 2:]) > np.maximum(a[..., :2], b[..., :2])).all(axis=-1)
    return overlap


def _joined(count: int, links: Iterator[tuple[int, int]]) -> list[list[int]]:
    """Connected components of the indices 0 to `count` - 1."""
    parent = list(range(count))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for i, j in links:
        parent[root(i)] = root(j)
    groups: dict[int, list[int]] = {}
    for index in range(count):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())
