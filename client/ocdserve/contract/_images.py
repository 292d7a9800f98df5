# SPDX-License-Identifier: Apache-2.0
"""Which files and addresses are images."""

from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def is_image(path: Path) -> bool:
    """Whether the file name has the suffix of an image, in upper or lower case."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_url(text: str) -> bool:
    """Whether the text names an image by URL, and not a file."""
    return text[:8].lower().startswith(("http://", "https://"))
