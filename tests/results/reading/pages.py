# SPDX-License-Identifier: Apache-2.0
"""Readings for the tests of documents."""

from collections.abc import Sequence

import numpy as np

from ocdserve.results.reading import Reading, Word

Corners = Sequence[Sequence[float]]


def reading(
    lines: Sequence[tuple[str, Corners]],
    size: tuple[int, int] = (400, 300),
    words: Sequence[Sequence[tuple[str, Corners]]] | None = None,
    page: int | None = None,
) -> Reading:
    """A page of lines (text and quad), which were all read with a score of 0.75, their words with one of 0.5."""
    scores = np.full(len(lines), 0.75, np.float32)
    placed = words and tuple(
        tuple(Word(text, 0.5, np.array(quad, np.float32)) for text, quad in line) for line in words
    )
    return Reading(
        np.array([quad for _, quad in lines], np.float32).reshape(-1, 4, 2), scores, *size,
        page=page, texts=tuple(text for text, _ in lines), text_scores=scores, words=placed or None,
    )  # fmt: skip


def box(left: float, top: float, right: float, bottom: float) -> Corners:
    """An upright quad."""
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def turned(quad: Corners, degrees: float, centre: tuple[float, float] = (200, 150)) -> Corners:
    """A quad rotated clockwise around a point."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    points = (np.array(quad) - centre) @ np.array([[cosine, sine], [-sine, cosine]]) + centre
    rotated: Corners = points.tolist()
    return rotated


RECEIPT = (
    ("TOTAL", box(20, 20, 120, 40)),
    ("4.20 €", box(300, 20, 390, 40)),
    ("Thank you <&>", box(20, 80, 280, 100)),
    ("谢谢 再见", box(20, 104, 200, 126)),
)
