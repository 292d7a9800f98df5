# SPDX-License-Identifier: Apache-2.0
"""A second look at pictures in which nothing was found: sparse text on a large page, or a huge word.

Detection networks weigh their features by means over the whole picture, so that a line on a large blank page is seen
but scored too low, and huge letters are seen as their strokes. What was seen is shown again in a small window.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdserve.results.detections import Detections
from ocdserve.results.pictures import Image, picture_of
from ocdserve.results.quads import intersection_area, quad_areas, quad_sizes

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["second_look"]

Found = TypeVar("Found", bound=Detections)

# Side of a window in pixels: the default detector scales smaller pictures up.
_WINDOW = 736
# In its window a text is at most so high, in pixels, and takes at most this share of the width.
_HEIGHT, _SHARE = 96, 0.9
# What a first look must have seen to be looked at again, and the number of windows.
_SEEN, _MOST = 0.1, 4
# Pillow's filter `BILINEAR`, which averages when it shrinks.
_BILINEAR = 2
# Two quads that share this part of the smaller are the same text.
_SAME = 0.5


def second_look(detect: Callable[..., Found], image: Image, **overrides: Any) -> Found:
    """Detect or read text, and where there is none, look again at the largest of what was rejected.

    A picture with text costs nothing more, and its answer is unchanged. One without costs a second call, and up to four
    calls for windows of 736 x 736 pixels.

    Args:
        detect: `TextDetector.detect` or `TextReader.read` of the client, `Detector.detect` or `Reader.read` in process.
        image: As for `detect`.
        **overrides: Request parameters, for every call.

    Returns:
        What `detect` returns, in source pixels, best score first.

    Raises:
        InvalidInputError: As `detect`, or the image cannot be read.
        UnavailableError: As `detect`, or Pillow is not installed.
        OcdserveError: As `detect`.

    >>> second_look(Detector.load().detect, "large_page.png").quads  # doctest: +SKIP
    """
    from ocdserve.results.reading import Reading

    found = detect(image, **overrides)
    if len(found):
        return found
    everything = {"box_thresh": _SEEN, "polygons": False} | (
        {"min_text_score": 0} if isinstance(found, Reading) else {}
    )
    seen = detect(image, **{**overrides, **everything})
    if not len(seen):
        return found
    # The windows are pixels, which have no pages.
    picture = picture_of(image, overrides.pop("page", None))
    parts: list[Found] = []
    quads: list[NDArray[np.float32]] = []
    for quad in _largest(seen):
        window = _Window.around(quad, picture)
        answer = detect(window.pixels, **overrides).moved(window.to_source)
        new = []
        for index, box in enumerate(answer.quads):
            if intersection_area(box, quad) > 0 and not any(_same(box, other) for other in quads):
                quads.append(box)
                new.append(index)
        parts.append(answer.take(new))
    whole = found.joined(parts)
    return replace(whole.take(np.argsort(-whole.scores, kind="stable")), request_id=None)


def _largest(seen: Detections) -> NDArray[np.float32]:
    """The quads to look at, (N, 4, 2): the largest, without those that lie in another."""
    chosen: list[NDArray[np.float32]] = []
    for index in np.argsort(-quad_areas(seen.quads), kind="stable"):
        if len(chosen) < _MOST and not any(_same(seen.quads[index], quad) for quad in chosen):
            chosen.append(seen.quads[index])
    return np.array(chosen, np.float32).reshape(-1, 4, 2)


def _same(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    smaller = quad_areas(np.stack([first, second])).min()
    return bool(intersection_area(first, second) >= _SAME * smaller)


@dataclass(frozen=True, eq=False)
class _Window:
    """The surroundings of a text, at the picture's scale or, for large text, a smaller one.

    Attributes:
        pixels: uint8 (736, 736, 3) RGB; beyond the picture's border its last row or column is repeated.
        origin: float64 (2,), x and y of the picture's part in the window's pixels.
        corner: float64 (2,), x and y of that part in source pixels.
        scale: float64 (2,), the window's pixels per source pixel along x and y.
        limits: Width and height of the picture.
    """

    pixels: NDArray[np.uint8]
    origin: NDArray[np.float64]
    corner: NDArray[np.float64]
    scale: NDArray[np.float64]
    limits: tuple[int, int]

    @classmethod
    def around(cls, quad: NDArray[np.float32], picture: "Picture") -> "_Window":
        """The window around a quad (4, 2) in source pixels."""
        thickness = min(float(side[0]) for side in quad_sizes(quad[None]))
        extent = float(np.ptp(quad, axis=0).max())
        scale = min(1.0, _HEIGHT / max(thickness, 1.0), _SHARE * _WINDOW / max(extent, 1.0))
        centre = (quad.min(axis=0) + quad.max(axis=0)) / 2
        side = round(_WINDOW / scale)
        # Repeated borders would lengthen text that touches them: a window lies in the picture where it fits.
        room = np.array(picture.size) - side
        start = np.round(centre - side / 2).astype(np.int64)
        start = np.where(room < 0, start, np.clip(start, 0, np.maximum(room, 0)))
        low, high = np.maximum(start, 0), np.minimum(start + side, picture.size)
        origin = np.minimum(np.round((low - start) * scale).astype(np.int64), _WINDOW - 1)
        size = np.clip(np.round((high - low) * scale).astype(np.int64), 1, _WINDOW - origin)
        part = picture.crop((*low.tolist(), *high.tolist()))
        if scale < 1:
            part = part.resize((int(size[0]), int(size[1])), _BILINEAR)
        around = [
            (first, _WINDOW - first - length) for first, length in zip(origin.tolist(), size.tolist(), strict=True)
        ]
        pixels = np.pad(np.asarray(part, np.uint8), (*around[::-1], (0, 0)), mode="edge")
        return cls(pixels, origin.astype(np.float64), low.astype(np.float64), size / (high - low), picture.size)

    def to_source(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points (..., 2) of the window in source pixels, inside the picture."""
        points = (points - self.origin) / self.scale + self.corner
        return np.clip(points, 0, self.limits).astype(np.float32)
