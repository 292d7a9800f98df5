# SPDX-License-Identifier: Apache-2.0
"""The result of a detection. Its methods are one call each into `ocdserve.results`, imported when they are called."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from ocdserve.results import Crops, Image


@dataclass(frozen=True, eq=False)
class Detections:
    """Text found in one image, best score first.

    Attributes:
        quads: float32 (N, 4, 2), corners (x, y) in source pixels, clockwise from the top left.
        scores: float32 (N,), mean text probability inside each region, 0 to 1.
        width: Width of the source image in pixels, after EXIF orientation.
        height: Height of the source image in pixels, after EXIF orientation.
        polygons: One float32 (M, 2) array a detection, in source pixels; None unless asked for.
        latency_ms: From the call to the answer in milliseconds, retries included; None where nobody measured it.
        request_id: What server logs and traces call the request; None without a server.
    """

    quads: NDArray[np.float32]
    scores: NDArray[np.float32]
    width: int
    height: int
    polygons: tuple[NDArray[np.float32], ...] | None = None
    latency_ms: float | None = None
    request_id: str | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def widths(self) -> NDArray[np.float64]:
        """float64 (N,): length along the text in pixels, the mean of top and bottom edge."""
        from ocdserve.results import quad_sizes

        return quad_sizes(self.quads)[0]

    @property
    def heights(self) -> NDArray[np.float64]:
        """float64 (N,): length across the text in pixels, the mean of left and right edge."""
        from ocdserve.results import quad_sizes

        return quad_sizes(self.quads)[1]

    def take(self, indices: Sequence[int] | NDArray[np.intp] | NDArray[np.bool_]) -> "Detections":
        """The detections at these indices, in their order; or those where a boolean mask (N,) is true."""
        chosen = np.arange(len(self))[np.asarray(indices, None if len(indices) else np.intp)]
        polygons = None if self.polygons is None else tuple(self.polygons[index] for index in chosen)
        return replace(self, quads=self.quads[chosen], scores=self.scores[chosen], polygons=polygons)

    def filter(
        self,
        *,
        min_score: float = 0.0,
        min_width: float = 0.0,
        min_height: float = 0.0,
        max_width: float = float("inf"),
        max_height: float = float("inf"),
    ) -> "Detections":
        """Those whose score (0 to 1), width and height (`widths`, `heights`, in pixels) lie within the bounds.

        The bounds are inclusive. The server's own threshold is the request parameter `box_thresh`.
        """
        widths, heights = self.widths, self.heights
        wide = (widths >= min_width) & (widths <= max_width)
        return self.take((self.scores >= min_score) & wide & (heights >= min_height) & (heights <= max_height))

    def reading_order(self, *, columns: bool = False, angle_deg: float | None = None) -> "Detections":
        """Sort from top to bottom and from left to right, as lines of the (also rotated) page run.

        Args:
            columns: Whether to read each column down before the next, where a gutter parts them. Without it a
                row is read across everything, as a receipt's items and prices want it.
            angle_deg: Direction in which the text runs, in degrees clockwise from the picture's rows; None: seen
                from the quads, which cannot tell a page upside down.
        """
        from ocdserve.results import reading_order

        return self.take(reading_order(self.quads, columns=columns, angle_deg=angle_deg))

    def lines(self, *, angle_deg: float | None = None) -> tuple[NDArray[np.intp], ...]:
        """Indices of the detections that stand side by side in one line, a word's space apart; see `merged`."""
        from ocdserve.results import lines

        return lines(self.quads, angle_deg=angle_deg)

    def paragraphs(self, *, angle_deg: float | None = None) -> tuple[NDArray[np.intp], ...]:
        """Indices of the detections of each paragraph, both in reading order; see `merged`.

        Lines belong together when they lie close below each other, overlap and are of one size.
        """
        from ocdserve.results import paragraphs

        return paragraphs(self.quads, angle_deg=angle_deg)

    def merged(self, groups: Sequence[NDArray[np.intp]]) -> "Detections":
        """One detection a group (see `lines` and `paragraphs`): the rectangle around it, with no polygons.

        The score is the mean of the members' by their area.

        >>> found = Detections(
        ...     np.array([[[0, 0], [40, 0], [40, 10], [0, 10]], [[44, 0], [90, 0], [90, 10], [44, 10]]], np.float32),
        ...     np.array([0.9, 0.7], np.float32), 100, 50)
        >>> found.merged(found.lines()).quads.tolist()
        [[[0.0, 0.0], [90.0, 0.0], [90.0, 10.0], [0.0, 10.0]]]
        """
        from ocdserve.results import merged_quads

        quads, scores = merged_quads(self.quads, self.scores, groups)
        return replace(self, quads=quads, scores=scores, polygons=None)

    def crop(
        self, image: "Image", *, height: int | None = None, max_width: int | None = None, turn_tall: float | None = 1.5
    ) -> "Crops":
        """Cut every detection out, rectified, as one padded batch for a recogniser; needs Pillow.

        Args:
            image: What was detected in: encoded bytes, a path, uint8 (H, W, 3) RGB or a Pillow image.
            height: Height of every crop in pixels; None: each keeps its own.
            max_width: Wider crops are squeezed to this many pixels; None: there is no limit.
            turn_tall: A crop at least this many times as high as wide is turned by 90 degrees counter-clockwise, so
                that vertical text lies down; None: none is.

        Raises:
            InvalidInputError: The image is not valid, or not of the size that was detected in.
            UnavailableError: Pillow is not installed.
        """
        from ocdserve.results import crop

        return crop(image, self, height=height, max_width=max_width, turn_tall=turn_tall)

    def draw(self, image: "Image") -> "Picture":
        """The image with every quad (green) and polygon (orange) outlined, as a Pillow image; needs Pillow.

        Raises:
            InvalidInputError: The image is not valid, or not of the size that was detected in.
            UnavailableError: Pillow is not installed.
        """
        from ocdserve.results import draw

        return draw(image, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, ready for JSON: width, height, detections [{quad, score, polygon?}]."""
        detections: list[dict[str, Any]] = [
            {"quad": quad.tolist(), "score": float(score)} for quad, score in zip(self.quads, self.scores, strict=True)
        ]
        for detection, polygon in zip(detections, self.polygons or (), strict=False):
            detection["polygon"] = polygon.tolist()
        return {"width": self.width, "height": self.height, "detections": detections}

    def to_json(self) -> str:
        """One line of JSON: `to_dict`, and latency_ms and request_id where they are known. See `from_json`."""
        from ocdserve.results import to_json

        return to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Detections":
        """Read what `to_json` or `ocdserve detect --json` wrote; float32 values come back to the last bit.

        Raises:
            InvalidInputError: The text is no JSON, or not that of detections.
        """
        from ocdserve.results import from_json

        return from_json(text)

    def to_rows(self, image: str | None = None) -> list[dict[str, Any]]:
        """One flat row a detection, as `pyarrow.Table.from_pylist` and `pandas.DataFrame` take them.

        Columns: image (if named), width, height, index, score, x1, y1, ... x4, y4 (pixels).
        """
        from ocdserve.results import to_rows

        return to_rows(self, image)

    def to_coco(self, *, image_id: int = 1, category_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """COCO annotations with scores; `ocdserve.results.coco_dataset` makes a whole file of several images."""
        from ocdserve.results import to_coco

        return to_coco(self, image_id=image_id, category_id=category_id, first_id=first_id)

    def to_icdar(self, texts: Sequence[str] | None = None) -> str:
        """Lines of ICDAR 2015: x1,y1,...,x4,y4 in whole pixels, with `,text` behind where texts are given.

        Raises:
            InvalidInputError: There is not one text a detection, or one of them holds a line break.
        """
        from ocdserve.results import to_icdar

        return to_icdar(self, texts)

    def to_labelme(self, image_path: str, *, label: str = "text") -> dict[str, Any]:
        """The annotation file of labelme beside an image: polygons where there are any, else quads."""
        from ocdserve.results import to_labelme

        return to_labelme(self, image_path, label=label)
