# SPDX-License-Identifier: Apache-2.0
"""Limits of what one request may cost, checked before the work: declared once, for clients, processes and servers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ocdserve.contract._errors import InvalidInputError, exceeded, shown
from ocdserve.contract._images import MAX_PIXELS

# Pillow itself rejects images above twice its own limit.
MOST_PIXELS = 178_956_970


def _limit(default: int, most: int, meaning: str) -> Any:
    return field(default=default, metadata={"most": most, "meaning": meaning})


@dataclass(frozen=True)
class Limits:
    """Largest values that are accepted; each is a whole number from 1.

    Raises:
        InvalidInputError: A limit is out of its range.
    """

    max_pixels: int = _limit(MAX_PIXELS, MOST_PIXELS, "width times height of an image")
    max_pixels_in_flight: int = _limit(
        MAX_PIXELS, 2**40, "pixels of all images above 4 megapixels that a server decodes at the same time"
    )
    max_side: int = _limit(65_535, 2**31 - 1, "width or height of an image, in pixels")
    max_bytes: int = _limit(64 * 2**20, 2**31 - 1, "bytes of an encoded image")
    max_scans: int = _limit(100, 1_000_000, "scans of a JPEG file")
    max_work: int = _limit(20 * MAX_PIXELS, 2**40, "pixels times scans of a JPEG file")
    max_parts: int = _limit(20_000, 10_000_000, "markers, chunks, blocks, boxes or tags of an image file")
    max_strips: int = _limit(100_000, 10_000_000, "strips or tiles of a TIFF image")
    max_lines: int = _limit(4_000, 1_000_000, "lines of text that a request has read, those of all its images")
    max_parameters: int = _limit(64, 100_000, "parameters of a request")
    max_parameter_bytes: int = _limit(16_384, 2**31 - 1, "bytes of a request's parameters as JSON")

    def __post_init__(self) -> None:
        for item in fields(self):
            value, most = getattr(self, item.name), item.metadata["most"]
            if type(value) is not int or not 1 <= value <= most:
                raise InvalidInputError(
                    f"{item.name} ({item.metadata['meaning']}) must be a whole number from 1 to {most}; "
                    f"got {shown(value)}"
                )

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> "Limits":
        """Limits from text, as in a model's configuration; other names are ignored, and absent ones are the default.

        Raises:
            InvalidInputError: A value is no whole number, or out of its range.
        """
        given: dict[str, Any] = {item.name: text for item in fields(cls) if (text := values.get(item.name))}
        for name, text in given.items():
            if text.isascii() and text.isdigit() and len(text) < 20:
                given[name] = int(text)
        return cls(**given)

    def check_lines(self, count: int) -> None:
        """Raise InvalidInputError for more lines of text than are read."""
        if count > self.max_lines:
            raise exceeded(
                "max_lines",
                f"the request has {count} lines of text; at most {self.max_lines} are read (max_lines). Send its "
                "images one by one, or ask for fewer with max_candidates.",
            )

    def check(self, width: int, height: int) -> None:
        """Raise InvalidInputError for an image of too many pixels, or of too long a side."""
        if width * height > self.max_pixels:
            raise exceeded(
                "max_pixels",
                f"the image has {width} x {height} = {width * height} pixels; at most {self.max_pixels} are served. "
                "Scale it down or send it in tiles.",
                width * height,
            )
        if max(width, height) > self.max_side:
            raise exceeded(
                "max_side",
                f"the image of {width} x {height} pixels has a side of {max(width, height)} pixels; at most "
                f"{self.max_side} are served. Scale it down or send it in tiles.",
            )
