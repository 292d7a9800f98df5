# SPDX-License-Identifier: Apache-2.0
"""The formats of encoded images, declared once; which files and addresses are images, and how these are fetched."""

import re
from dataclasses import dataclass
from pathlib import Path

from ocdserve.contract._checks import check_count, check_seconds


@dataclass(frozen=True)
class ImageFormat:
    """One format.

    Attributes:
        name: As Pillow calls it.
        label: For messages.
        suffixes: Of its files, in lower case.
        media_type: For browsers.
        beginning: Regular expression for the first bytes of a file.
        feature: Optional part of Pillow that decodes it; "": every Pillow does.
    """

    name: str
    label: str
    suffixes: tuple[str, ...]
    media_type: str
    beginning: bytes
    feature: str = ""

    def begins(self, data: bytes) -> bool:
        """Whether a file begins as those of this format."""
        return re.match(self.beginning, data, re.DOTALL) is not None


# A TIFF file may have several pages; GIF, WebP, PNG and AVIF files may be animations; the others hold one image.
FORMATS = (
    ImageFormat("JPEG", "JPEG", (".jpg", ".jpeg"), "image/jpeg", rb"\xff\xd8\xff"),
    ImageFormat("PNG", "PNG", (".png",), "image/png", rb"\x89PNG"),
    ImageFormat("WEBP", "WebP", (".webp",), "image/webp", rb"RIFF", "webp"),
    ImageFormat("BMP", "BMP", (".bmp",), "image/bmp", rb"BM"),
    ImageFormat("TIFF", "TIFF", (".tif", ".tiff"), "image/tiff", rb"II[*+]\0|MM\0[*+]"),
    ImageFormat("GIF", "GIF", (".gif",), "image/gif", rb"GIF8[79]a"),
    ImageFormat(
        "JPEG2000", "JPEG 2000", (".jp2", ".j2k", ".jpx"), "image/jp2", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "jpg_2000"
    ),
    ImageFormat("AVIF", "AVIF", (".avif",), "image/avif", rb".{4}ftyp(avif|avis|mif1|msf1)", "avif"),
)
IMAGE_SUFFIXES = tuple(suffix for form in FORMATS for suffix in form.suffixes)
# Split into images on the client's side.
PDF_SUFFIX = ".pdf"

# Largest width times height of an image by default, and most pages of a TIFF file.
MAX_PIXELS, MAX_PAGES = 80_000_000, 10_000


def is_image(path: Path) -> bool:
    """Whether the file name has the suffix of an image, in upper or lower case."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_url(text: str) -> bool:
    """Whether the text names an image by URL, and not a file."""
    return text[:8].lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class Downloads:
    """How images given as http:// or https:// URLs are fetched; without these options, they are refused.

    Redirects are followed to http and https only, so that no URL can reach a file of this machine.

    Attributes:
        private: Whether URLs and redirects may lead to loopback, private and link-local addresses too. Otherwise
            addresses are checked when connecting, and the environment's proxies are not used, which would connect
            unchecked.
        max_bytes: Largest image, in bytes.
        timeout_s: Time limit of one download, in seconds.
        redirects: Maximum redirects of one download.

    Raises:
        InvalidInputError: A value is out of range.
    """

    private: bool = False
    max_bytes: int = 64 * 2**20
    timeout_s: float = 30.0
    redirects: int = 5

    def __post_init__(self) -> None:
        check_count("Downloads.max_bytes", self.max_bytes)
        check_seconds("Downloads.timeout_s", self.timeout_s)
        check_count("Downloads.redirects", self.redirects, least=0)
