# SPDX-License-Identifier: Apache-2.0
"""A flat sheet with text, and how it is put on a page."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ocdserve.builder.train.data.drawing.fonts import Face

Colour = tuple[int, int, int]

# Annotators leave a margin around the ink: of the 2158 lines of 40 scanned receipts 0.1 of the box's height above, 0.06
# below, 0.13 to the left and 0.1 to the right, in the median. In em.
_MARGIN = 0.09
# Nobody marks small text more closely, in pixels.
_LEAST_MARGIN = 1.5


class Sheet:
    """A sheet being written on.

    Attributes:
        colour: What it had at first.
        image: RGB, what is seen.
        alpha: Its opacity.
        quads: float64 (4, 2) per text, in pixels of the sheet: the ink with a margin, clockwise from the top left.
        ems: Font size of each text in pixels.
    """

    def __init__(self, width: int, height: int, colour: Colour, *, transparent: bool = False) -> None:
        """A sheet in one colour; of a transparent one only what is written is seen, in inks near the colour."""
        self.colour = colour
        self.image = Image.new("RGB", (width, height), colour)
        self.alpha = Image.new("L", (width, height), 0 if transparent else 255)
        self.quads: list[NDArray[np.float64]] = []
        self.ems: list[int] = []
        self._drawing, self._opacity = ImageDraw.Draw(self.image), ImageDraw.Draw(self.alpha)
        self._transparent = transparent

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size

    def write(
        self, text: str, at: tuple[float, float], face: Face, em: int, ink: Colour, anchor: str = "ls", outline: int = 0
    ) -> tuple[float, float, float, float]:
        """Write a text that becomes one quad, and return the box of its ink.

        Args:
            text: Any characters that the font has.
            at: Point (x, y) of the anchor.
            face: Its font.
            em: Font size in pixels.
            ink: Its colour.
            anchor: Pillow's: `l`, `m` or `r`, then `a` (top of the line) or `s` (baseline).
            outline: Pixels in the sheet's colour around each stroke, on a transparent sheet.
        """
        font = face.at(em)
        place = (round(at[0]), round(at[1]))
        # Pillow's boxes of texts hold the space around the first and the last character as well.
        mask, offset = font.getmask2(text, "L", anchor=anchor)
        ink_box = np.array(mask.getbbox()) + np.tile(place, 2) + np.tile(offset, 2)
        left, top, right, bottom = (float(side) for side in ink_box)
        if outline:
            self._drawing.text(place, text, ink, font, anchor, stroke_width=outline, stroke_fill=self.colour)
        else:
            self._drawing.text(place, text, ink, font, anchor)
        if self._transparent:
            self._opacity.text(place, text, 255, font, anchor, stroke_width=outline)
        margin = max(_LEAST_MARGIN, _MARGIN * em)
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
        self.quads.append(corners + margin * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]))
        self.ems.append(em)
        return left, top, right, bottom

    def line(self, points: Sequence[tuple[float, float]], ink: Colour, width: int = 1) -> None:
        """Draw a line."""
        self._drawing.line(points, ink, width)

    def rectangle(
        self, box: tuple[float, float, float, float], fill: Colour | None, outline: Colour | None = None
    ) -> None:
        """Draw a rectangle (left, top, right, bottom); nothing where it ends before it begins."""
        if box[0] <= box[2] and box[1] <= box[3]:
            self._drawing.rectangle(box, fill, outline)

    def ellipse(self, box: tuple[float, float, float, float], fill: Colour) -> None:
        """Draw an ellipse inside of a box (left, top, right, bottom)."""
        self._drawing.ellipse(box, fill)


def put(
    page: NDArray[np.uint8], sheet: Sheet, homography: NDArray[np.float64] | None = None
) -> list[NDArray[np.float64]]:
    """Put a sheet on a page, uint8 RGB (H, W, 3), in place.

    Args:
        page: What it is put on.
        sheet: Not larger than the page where there is no homography.
        homography: float64 (3, 3) from pixels of the sheet to the page's; None leaves the sheet in the page's corner.

    Returns:
        The quads of its texts in pixels of the page, float64 (4, 2) each.
    """
    width, height = sheet.size
    image, alpha = np.asarray(sheet.image), np.asarray(sheet.alpha)
    if homography is None:
        _blend(page[:height, :width], image, alpha)
        return list(sheet.quads)
    corners = mapped(homography, np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64))
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 2, page.shape[1::-1])
    if left < right and top < bottom:
        # OpenCV's pixel centres are whole numbers, those of the quads' pixels end in a half.
        centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], np.float64)
        shift = np.array([[1, 0, -left - 0.5], [0, 1, -top - 0.5], [0, 0, 1]], np.float64)
        warp, inside = shift @ homography @ centre, (int(right - left), int(bottom - top))
        seen = cv2.warpPerspective(image, warp, inside, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        opacity = cv2.warpPerspective(alpha, warp, inside, flags=cv2.INTER_LINEAR)
        _blend(page[top:bottom, left:right], np.asarray(seen, np.uint8), np.asarray(opacity, np.uint8))
    return [mapped(homography, quad) for quad in sheet.quads]


def mapped(homography: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (N, 2) through a homography (3, 3), float64."""
    return np.asarray(cv2.perspectiveTransform(points.reshape(1, -1, 2), homography)[0], np.float64)


def homography_between(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The homography (3, 3) that maps four points (4, 2) to four others."""
    return np.asarray(cv2.getPerspectiveTransform(source.astype(np.float32), target.astype(np.float32)), np.float64)


def _blend(target: NDArray[np.uint8], image: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> None:
    if alpha.min() == 255:
        target[:] = image
        return
    share = alpha[..., None].astype(np.uint16)
    target[:] = (image * share + target * (255 - share) + 127) // 255
