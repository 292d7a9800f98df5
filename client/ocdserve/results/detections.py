# SPDX-License-Identifier: Apache-2.0
"""The result of a detection; exchange formats and what needs Pillow are imported by the methods that use them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdserve.results import order
from ocdserve.results.quads import quad_sizes

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from typing_extensions import Self

    from ocdserve.results import Crops, Image


class Detection(NamedTuple):
    """One detection, as `Detections` are iterated.

    Attributes:
        quad: float32 (4, 2), corners (x, y) in source pixels, clockwise from the top left.
        score: Mean text probability inside the region, 0 to 1.
        polygon: float32 (M, 2) in source pixels; None unless requested.
    """

    quad: NDArray[np.float32]
    score: float
    polygon: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """Text found in one image, best score first; iterates over its `Detection`s.

    >>> quads = np.array([[[0, 0], [40, 0], [40, 10], [0, 10]]], np.float32)
    >>> found = Detections(quads, np.array([0.75], np.float32), 100, 50)
    >>> found
    Detections(1 in 100x50 pixels, scores 0.75 to 0.75)
    >>> [(detection.quad[0].tolist(), detection.score) for detection in found]
    [([0.0, 0.0], 0.75)]

    Attributes:
        quads: float32 (N, 4, 2), corners (x, y) in source pixels, clockwise from the top left: the first edge is the
            upper one, which of a column, up to 11 degrees from the vertical, is a short side.
        scores: float32 (N,), mean text probability inside each region, 0 to 1: in its rectangle or, if polygons were
            requested, inside its outline.
        width: Width of the source image in pixels, after EXIF orientation.
        height: Height of the source image in pixels, after EXIF orientation.
        polygons: One float32 (M, 2) array per detection, in source pixels; None unless requested.
        latency_ms: From the call to the result in milliseconds, retries included; None if not measured.
        request_id: Id of the request in server logs and traces; None without a server.
        page: Page of its file, from 1; None: none was chosen.
    """

    quads: NDArray[np.float32]
    scores: NDArray[np.float32]
    width: int
    height: int
    polygons: tuple[NDArray[np.float32], ...] | None = None
    latency_ms: float | None = None
    request_id: str | None = None
    page: int | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        polygons = self.polygons or (None,) * len(self)
        return map(Detection, self.quads, map(float, self.scores), polygons)

    def __repr__(self) -> str:
        scores = f", scores {self.scores.max():.2f} to {self.scores.min():.2f}" if len(self) else ""
        polygons = "" if self.polygons is None else ", with polygons"
        return f"{type(self).__name__}({len(self)} in {self.width}x{self.height} pixels{scores}{polygons})"

    @property
    def widths(self) -> NDArray[np.float64]:
        """float64 (N,): length along the text in pixels, the mean of top and bottom edge."""
        return quad_sizes(self.quads)[0]

    @property
    def heights(self) -> NDArray[np.float64]:
        """float64 (N,): length across the text in pixels, the mean of left and right edge."""
        return quad_sizes(self.quads)[1]

    def take(self, indices: Sequence[int] | NDArray[np.intp] | NDArray[np.bool_]) -> "Self":
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
    ) -> "Self":
        """The detections whose score (0 to 1), width and height (`widths`, `heights`, in pixels) are within the bounds.

        Bounds are inclusive. The server's own threshold is the request parameter `box_thresh`.
        """
        widths, heights = self.widths, self.heights
        wide = (widths >= min_width) & (widths <= max_width)
        return self.take((self.scores >= min_score) & wide & (heights >= min_height) & (heights <= max_height))

    def scaled(self, width: int, height: int) -> "Self":
        """The detections of the same image scaled to another size in pixels."""
        factors = np.array([width / self.width, height / self.height], np.float64)
        return replace(self.moved(lambda points: (points * factors).astype(np.float32)), width=width, height=height)

    def moved(self, move: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> "Self":
        """The detections with all their points (..., 2) moved."""
        return replace(self, quads=move(self.quads), polygons=self.polygons and tuple(map(move, self.polygons)))

    def joined(self, others: "Sequence[Self]") -> "Self":
        """These detections, and after them those of other parts of the same image, of the same kind."""
        parts = [self, *others]
        return replace(
            self,
            quads=np.concatenate([part.quads for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            polygons=None
            if self.polygons is None
            else tuple(outline for part in parts for outline in part.polygons or ()),
        )

    def reading_order(self, *, columns: order.Columns = False, angle_deg: float | None = None) -> "Self":
        """Sort from top to bottom and from left to right, along the lines of the (possibly rotated) page.

        Args:
            columns: Whether to read columns that are separated by a gutter one after the other. Otherwise rows are read
                across the whole page, as the items and prices of a receipt require. "right-to-left" begins with the
                rightmost column, for books in vertical Chinese, Japanese or Korean and for Arabic and Hebrew.
            angle_deg: Direction of the text, in degrees clockwise from the image's rows; None: estimated from the
                quads, which cannot detect an upside-down page. For right-to-left columns, direction of the page's
                upper edge.

        Raises:
            InvalidInputError: `columns` is none of these.
        """
        return self.take(order.reading_order(self.quads, columns=columns, angle_deg=angle_deg))

    def lines(self, *, angle_deg: float | None = None) -> tuple[NDArray[np.intp], ...]:
        """Group detections into lines; see `merged`.

        Args:
            angle_deg: Direction of the text, as in `reading_order`.

        Returns:
            One intp (M,) array per line, indices of its detections from left to right; lines from top to bottom.
        """
        return order.lines(self.quads, angle_deg=angle_deg)

    def paragraphs(self, *, angle_deg: float | None = None) -> tuple[NDArray[np.intp], ...]:
        """Group detections into paragraphs: lines close below each other that overlap and have a similar height.

        Args:
            angle_deg: Direction of the text, as in `reading_order`.

        Returns:
            One intp (M,) array per paragraph, indices of its detections in reading order; paragraphs in reading order.
        """
        return order.paragraphs(self.quads, angle_deg=angle_deg)

    def merged(self, groups: Sequence[NDArray[np.intp]]) -> "Self":
        """One detection per group: the rectangle around it, with the area-weighted mean score and without polygons.

        Args:
            groups: intp (M,) arrays of indices, at least one each; see `lines` and `paragraphs`.

        >>> found = Detections(
        ...     np.array([[[0, 0], [40, 0], [40, 10], [0, 10]], [[44, 0], [90, 0], [90, 10], [44, 10]]], np.float32),
        ...     np.array([0.9, 0.7], np.float32), 100, 50)
        >>> found.merged(found.lines()).quads.tolist()
        [[[0.0, 0.0], [90.0, 0.0], [90.0, 10.0], [0.0, 10.0]]]
        """
        quads, scores = order.merged_quads(self.quads, self.scores, groups)
        return replace(self, quads=quads, scores=scores, polygons=None)

    def crop(
        self, image: "Image", *, height: int | None = None, max_width: int | None = None, turn_tall: float | None = 1.5
    ) -> "Crops":
        """Crop and rectify every detection, as one padded batch for a recogniser; needs Pillow.

        Args:
            image: The image of the detections: encoded bytes, a path, uint8 (H, W, 3) RGB or a Pillow image.
            height: Height of every crop in pixels; None: each keeps its own.
            max_width: Wider crops are squeezed to this many pixels; None: no limit.
            turn_tall: A crop at least this many times as high as wide is rotated by 90 degrees counter-clockwise, so
                that vertical text becomes horizontal; None: never.

        Raises:
            InvalidInputError: The image is not valid, or its size is not that of the detections.
            UnavailableError: Pillow is not installed.
        """
        from ocdserve.results import crop

        return crop(image, self, height=height, max_width=max_width, turn_tall=turn_tall)

    def draw(self, image: "Image") -> "Picture":
        """The image with every quad (green) and polygon (orange) outlined, as a Pillow image; needs Pillow.

        Raises:
            InvalidInputError: The image is not valid, or its size is not that of the detections.
            UnavailableError: Pillow is not installed.
        """
        from ocdserve.results import draw

        return draw(image, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, ready for JSON: page?, width, height, detections [{quad, score, polygon?}].

        Numbers have as many digits as float32 needs: 0.1, not 0.10000000149011612.
        """
        from ocdserve.results.quads import shortest

        detections: list[dict[str, Any]] = [
            {"quad": quad, "score": score}
            for quad, score in zip(shortest(self.quads), shortest(self.scores), strict=True)
        ]
        for detection, polygon in zip(detections, self.polygons or (), strict=False):
            detection["polygon"] = shortest(polygon)
        page = {} if self.page is None else {"page": self.page}
        return {**page, "width": self.width, "height": self.height, "detections": detections}

    def to_json(self) -> str:
        """One line of JSON: `to_dict`, and latency_ms and request_id if known. See `from_json`."""
        from ocdserve.results import to_json

        return to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Detections":
        """Parse the output of `to_json` or `ocdserve detect --json`; float32 values are restored exactly.

        Raises:
            InvalidInputError: The text is not JSON, or not that of detections.
        """
        from ocdserve.results import from_json

        return from_json(text)

    def to_rows(self, image: str | None = None) -> list[dict[str, Any]]:
        """One flat row per detection, for `pyarrow.Table.from_pylist` and `pandas.DataFrame`.

        Columns: image (if named), width, height, index, score, x1, y1, ... x4, y4 (pixels).
        """
        from ocdserve.results import to_rows

        return to_rows(self, image)

    def to_coco(self, *, image_id: int = 1, category_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """COCO annotations with scores; `ocdserve.results.coco_dataset` makes a whole file for several images."""
        from ocdserve.results import to_coco

        return to_coco(self, image_id=image_id, category_id=category_id, first_id=first_id)

    def to_icdar(self, texts: Sequence[str] | None = None) -> str:
        """Lines of ICDAR 2015: x1,y1,...,x4,y4 in whole pixels, followed by `,text` if texts are given.

        Raises:
            InvalidInputError: There is not one text per detection, or a text contains a line break.
        """
        from ocdserve.results import to_icdar

        return to_icdar(self, texts)

    def to_labelme(self, image_path: str, *, label: str = "text") -> dict[str, Any]:
        """labelme's annotation file for an image: polygons if there are any, else quads."""
        from ocdserve.results import to_labelme

        return to_labelme(self, image_path, label=label)
