# SPDX-License-Identifier: Apache-2.0
"""The front line: subjects that no other beats, where both time and accuracy were measured."""

from collections.abc import Iterator, Mapping, Sequence

from ocdserve.perf.series.estimates import median
from ocdserve.perf.series.measurement import PAINTED_OVER, TEXTS, Measurement

# Rows with the same value are compared: the group, and whether the texts were painted over and the like.
_Pages = tuple[str, tuple[tuple[str, str | int | float], ...]]


def front(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Names of the points (time, accuracy), by time, to which none is both at least as fast and at least as accurate.

    Of equal points all are named.
    """
    return tuple(
        name
        for name, (time, accuracy) in sorted(points.items(), key=lambda item: item[1])
        if not any(other[0] <= time and other[1] >= accuracy and other != (time, accuracy) for other in points.values())
    )


def judged(rows: Sequence[Measurement]) -> Iterator[tuple[str, tuple[Measurement, ...], tuple[str, ...]]]:
    """What whole subjects were timed on, their series from the fastest on, and the subjects of the front.

    There is one of each group of images and factors, in the order of the rows.
    """
    by_pages: dict[_Pages, list[Measurement]] = {}
    for row in rows:
        if row.unit == "ms" and "hmean" in row.facts and "stage" not in row.factors:
            by_pages.setdefault((row.group, tuple(sorted(row.factors.items()))), []).append(row)
    for (group, _), found in by_pages.items():
        points = {row.subject: (median(row).value, float(row.facts["hmean"])) for row in found}
        found.sort(key=lambda row: points[row.subject])
        painted_over = found[0].factors.get(TEXTS) == PAINTED_OVER
        yield f"{group} without texts" if painted_over else group, tuple(found), front(points)
