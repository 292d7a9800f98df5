# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder are images."""

from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def is_image(path: Path) -> bool:
    """Whether the file name has the suffix of an image, in upper or lower case."""
    return path.suffix.lower() in IMAGE_SUFFIXES
