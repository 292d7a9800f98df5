# SPDX-License-Identifier: Apache-2.0
"""Lines, paragraphs and reading order of quads.

Computed in the page's own frame, u along the text and v across it, so a rotated page is read like an upright one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError
from ocdserve.results.quads import page_angle, quad_areas, quad_sizes, rectangle_around, turned

__all__ = ["lines", "merged_quads", "paragraphs", "reading_order"]

Indices = NDArray[np.intp]
Float64 = NDArray[np.float64]
Columns: TypeAlias = bool | Literal["right-to-left"]

# Two quads are in one line if the bands that they fill share this part of the lower one.
_SHARED_BAND = 0.5
# Widest space between words of a line, and narrowest gutter between columns, in text heights.
_WORD_SPACE = 1.5
_GUTTER = 1.5
# Lines of a paragraph: gap between them and overhang into each other, in heights; ratio of their heights; overlap of
# their widths as a share of the shorter one.
_LINE_GAP = 0.9
_LINE_OVERHANG = 0.5
_LIKE_HEIGHT = 1.5
_LIKE_WIDTH = 0.3


@dataclass(frozen=True, eq=False)
class _Frame:
    """Quads in the page's frame; every array (N,), in pixels."""

    left: Float64
    right: Float64
    left_v: Float64
    right_v: Float64
    height: Float64

    @classmethod
    def of(cls, quads: NDArray[Any], angle_deg: float | None) -> "_Frame":
        corners = turned(quads, page_angle(quads) if angle_deg is None else float(np.deg2rad(angle_deg)))
        # A given angle may turn the text upside down, so left and right do not follow from the corners' order.
        sides = np.stack([corners[:, [0, 3]].mean(axis=1), corners[:, [1, 2]].mean(axis=1)], axis=1)
        tops = np.stack([corners[:, :2].mean(axis=1), corners[:, 2:].mean(axis=1)], axis=1)
        across = np.abs(np.diff(sides[..., 1], axis=1)) > np.abs(np.diff(sides[..., 0], axis=1))
        ends = np.where(across[..., None], tops, sides)  # text that runs across the frame's lines
        ends = np.take_along_axis(ends, np.argsort(ends[..., 0], axis=1, kind="stable")[..., None], axis=1)
        widths, heights = quad_sizes(quads)
        height = np.maximum(np.where(across[:, 0], widths, heights), 1e-6)
        return cls(ends[:, 0, 0], ends[:, 1, 0], ends[:, 0, 1], ends[:, 1, 1], height)

    @classmethod
    def from_the_right(cls, quads: NDArray[Any], angle_deg: float | None) -> "_Frame":
        """The frame in which a page that begins at its right is read like one that begins at its left."""
        angle = page_angle(quads) if angle_deg is None else float(np.deg2rad(angle_deg))
        along, down = np.ptp(turned(quads, angle), axis=1).sum(axis=0)
        if down > along:  # lines that run down, the next one to the left: rows of a page rotated by 90 degrees
            return cls.of(quads, float(np.rad2deg(angle)) + 90)
        frame = cls.of(quads, float(np.rad2deg(angle)))
        return cls(-frame.right, -frame.left, frame.right_v, frame.left_v, frame.height)


def reading_order(quads: NDArray[Any], *, columns: Columns = False, angle_deg: float | None = None) -> Indices:
    """Indices of quads from top to bottom and left to right.

    Args:
        quads: (N, 4, 2), clockwise from the top left.
        columns: Whether columns separated by a gutter are read one after the other. "right-to-left": from the right
            one on, their lines from the right as well; where most text is vertical, a column of text is a line.
        angle_deg: Direction of the text in degrees clockwise, of right-to-left columns that of the page's upper edge;
            None: estimated from the quads.

    Returns:
        intp (N,), a permutation.

    Raises:
        InvalidInputError: `columns` is none of these.
    """
    return np.concatenate([np.empty(0, np.intp), *rows(quads, columns=columns, angle_deg=angle_deg)])


def rows(quads: NDArray[Any], *, columns: Columns = False, angle_deg: float | None = None) -> tuple[Indices, ...]:
    """The rows of `reading_order`, one intp (M,) array of indices each; arguments and errors are the same."""
    if columns not in (False, True, "right-to-left"):
        raise InvalidInputError(f"columns must be True, False or 'right-to-left'; got {columns!r}")
    frame = (_Frame.from_the_right if columns == "right-to-left" else _Frame.of)(quads, angle_deg)
    return tuple(np.array(row, np.intp) for row in _read(frame, np.arange(len(quads)), bool(columns)))


def lines(
    quads: NDArray[Any], *, max_space: float = _WORD_SPACE, angle_deg: float | None = None
) -> tuple[Indices, ...]:
    """Group quads into lines.

    Args:
        quads: (N, 4, 2), clockwise from the top left.
        max_space: Widest space between two members, in heights of the lower one.
        angle_deg: Direction of the text in degrees clockwise; None: estimated from the quads.

    Returns:
        One intp (M,) array of indices per line, from left to right; lines from top to bottom.
    """
    frame = _Frame.of(quads, angle_deg)
    return tuple(np.array(row, np.intp) for row in _rows(frame, np.arange(len(quads)), max_space))


def paragraphs(quads: NDArray[Any], *, angle_deg: float | None = None) -> tuple[Indices, ...]:
    """Group quads into paragraphs: lines close below each other that overlap and have a similar height.

    Args:
        quads: (N, 4, 2), clockwise from the top left.
        angle_deg: Direction of the text in degrees clockwise; None: estimated from the quads.

    Returns:
        One intp (M,) array of indices per paragraph, in reading order; paragraphs in reading order (column by column).
    """
    if not len(quads):
        return ()
    angle = page_angle(quads) if angle_deg is None else float(np.deg2rad(angle_deg))
    angle_deg = float(np.rad2deg(angle))
    found = lines(quads, angle_deg=angle_deg)
    heights = _Frame.of(quads, angle_deg).height
    height = np.array([np.median(heights[row]) for row in found])
    boxes = np.stack([turned(rectangle_around(quads[row].reshape(-1, 2), angle), angle) for row in found])
    left, right = boxes[:, 0, 0], boxes[:, 1, 0]
    middle = (boxes[:, 0, 1] + boxes[:, 2, 1]) / 2

    by_middle = np.argsort(middle, kind="stable")

    def below(line: int) -> tuple[Indices, Float64]:
        """Lines that may follow in the paragraph, and their distance below."""
        # No following line is farther away, because it is at most _LIKE_HEIGHT times as high.
        reach = height[line] * ((1 + _LIKE_HEIGHT) / 2 + _LINE_GAP)
        first, last = np.searchsorted(middle[by_middle], [middle[line], middle[line] + reach], side="right")
        near = by_middle[first:last]
        smaller = np.minimum(height[line], height[near])
        gap = middle[near] - middle[line] - (height[line] + height[near]) / 2
        shared = np.minimum(right[line], right[near]) - np.maximum(left[line], left[near])
        linked = (
            (gap <= _LINE_GAP * smaller)
            & (gap >= -_LINE_OVERHANG * smaller)
            & (np.maximum(height[line], height[near]) <= _LIKE_HEIGHT * smaller)
            & (shared >= _LIKE_WIDTH * np.minimum(right[line] - left[line], (right - left)[near]))
        )
        return near[linked], gap[linked]

    groups = [np.concatenate([found[line] for line in chain]) for chain in _chains(len(found), below)]
    merged, _ = merged_quads(quads, np.ones(len(quads)), groups, angle_deg=angle_deg)
    return tuple(groups[index] for index in reading_order(merged, columns=True, angle_deg=angle_deg))


def merged_quads(
    quads: NDArray[Any], scores: NDArray[Any], groups: Sequence[Indices], *, angle_deg: float | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The rectangle around each group, along the page's direction, and its area-weighted mean score.

    Args:
        quads: (N, 4, 2).
        scores: (N,).
        groups: intp (M,) arrays of indices, at least one each; a group of one keeps its quad.
        angle_deg: Direction of the rectangles in degrees clockwise; None: that of most quads.

    Returns:
        float32 (G, 4, 2) and float32 (G,).
    """
    angle = page_angle(quads) if angle_deg is None else float(np.deg2rad(angle_deg))
    weights = np.maximum(quad_areas(quads), 1e-6)
    merged = np.empty((len(groups), 4, 2), np.float32)
    means = np.empty(len(groups), np.float32)
    for row, group in enumerate(groups):
        merged[row] = quads[group[0]] if len(group) == 1 else rectangle_around(quads[group].reshape(-1, 2), angle)
        means[row] = np.average(scores[group], weights=weights[group])
    return merged, means


def _read(frame: _Frame, members: Indices, columns: bool) -> list[list[int]]:
    rows = _rows(frame, members, None)
    if not columns:
        return rows
    order: list[list[int]] = []
    for block in _blocks(frame, rows):
        parts = _parts(frame, [index for row in block for index in row])
        if len(parts) == 1 or len(block) == 1:
            order += block
        else:
            for part in parts:
                order += _read(frame, np.array(sorted(part), np.intp), columns)
    return order


def _rows(frame: _Frame, members: Indices, max_space: float | None) -> list[list[int]]:
    """Rows of `members`, each from left to right, from top to bottom; split at spaces above `max_space` heights."""
    if not len(members):
        return []
    left, right, left_v, right_v, height = (
        values[members] for values in (frame.left, frame.right, frame.left_v, frame.right_v, frame.height)
    )
    by_v = np.argsort(left_v, kind="stable")
    highest = float(height.max())

    def followers(i: int) -> tuple[Indices, Float64]:
        """Members that may follow in the row, and the space before them."""
        reach = (height[i] + highest) / 2
        first, last = np.searchsorted(left_v[by_v], [right_v[i] - reach, right_v[i] + reach])
        near = by_v[first:last]
        smaller = np.minimum(height[i], height[near])
        # Bands are compared where the two face each other, so a drifting line stays one line.
        shared = np.minimum((height[i] + height[near]) / 2 - np.abs(right_v[i] - left_v[near]), smaller)
        space = left[near] - right[i]
        linked = (shared >= _SHARED_BAND * smaller) & ((left + right)[near] > left[i] + right[i])
        linked &= space >= -0.5 * np.minimum(right[i] - left[i], (right - left)[near])
        if max_space is not None:
            linked &= space <= max_space * smaller
        return near[linked], space[linked]

    rows = [[int(members[index]) for index in chain] for chain in _chains(len(members), followers)]
    middle_v = (frame.left_v + frame.right_v) / 2
    return sorted(rows, key=lambda row: float(np.mean(middle_v[row])))


def _chains(count: int, candidates: Callable[[int], tuple[Indices, Float64]]) -> list[list[int]]:
    """Chains of mutual nearest neighbours: each index is followed by its nearest, if that has no nearer predecessor.

    Args:
        count: Number of indices.
        candidates: Returns the indices that may follow one, and their distances; must be free of cycles.
    """
    follower = np.full(count, -1)
    predecessor, distance = np.full(count, -1), np.full(count, np.inf)
    for index in range(count):
        near, apart = candidates(index)
        if len(near):
            follower[index] = near[np.argmin(apart)]
        closer = apart < distance[near]
        predecessor[near[closer]], distance[near[closer]] = index, apart[closer]
    chained = [later >= 0 and predecessor[later] == index for index, later in enumerate(follower)]
    starts = sorted(set(range(count)) - set(follower[chained].tolist()))
    chains = []
    for start in starts:
        chain = [start]
        while chained[chain[-1]]:
            chain.append(int(follower[chain[-1]]))
        chains.append(chain)
    return chains


def _blocks(frame: _Frame, rows: list[list[int]]) -> list[list[list[int]]]:
    """Runs of rows that a common gutter splits into columns, or that nothing splits."""
    blocks: list[list[list[int]]] = []
    for row in rows:
        if blocks:
            block = [index for other in blocks[-1] for index in other]
            split_alone = len(_parts(frame, block)) > 1 or len(_parts(frame, row)) > 1
            if not split_alone or len(_parts(frame, block + row)) > 1:
                blocks[-1].append(row)
                continue
        blocks.append([row])
    return blocks


def _parts(frame: _Frame, members: list[int]) -> list[list[int]]:
    """Members split at the gutters between them, from left to right."""
    gutter = _GUTTER * float(np.median(frame.height[members]))
    ordered = sorted(members, key=lambda index: float(frame.left[index]))
    parts = [[ordered[0]]]
    reach = frame.right[ordered[0]]
    for index in ordered[1:]:
        if frame.left[index] - reach >= gutter:
            parts.append([])
        parts[-1].append(index)
        reach = max(reach, frame.right[index])
    return parts
