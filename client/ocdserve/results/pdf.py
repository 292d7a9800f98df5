# SPDX-License-Identifier: Apache-2.0
"""Pages of PDF files as images, by pypdfium2."""

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import FORMATS, InvalidInputError, UnavailableError, install_command

__all__ = ["DEFAULT_DPI", "Pdf", "check_dpi", "is_pdf"]

DEFAULT_DPI = 200.0
_LEAST_DPI, _MOST_DPI = 1, 2400
# PDF's unit of length is 1/72 inch.
_POINTS_PER_INCH = 72
# Readers accept other bytes before the header, as far as this.
_HEADER_WITHIN = 1024
# PDFium's error code for a document that asks for a password.
_ENCRYPTED = 4
# PDFium may not be called from two threads at a time, whatever the documents. A generator may be closed, by the garbage
# collector, in a thread that holds it.
_lock = threading.RLock()


def is_pdf(data: bytes) -> bool:
    """Whether the file is a PDF, by its header."""
    return b"%PDF-" in data[:_HEADER_WITHIN] and not any(form.begins(data) for form in FORMATS)


def check_dpi(dpi: float) -> None:
    """Raise InvalidInputError for a resolution out of range."""
    if type(dpi) not in (int, float) or not _LEAST_DPI <= dpi <= _MOST_DPI:
        raise InvalidInputError(
            f"dpi must be a number from {_LEAST_DPI} to {_MOST_DPI} (pixels per inch of PDF pages); got {dpi!r}"
        )


class Pdf:
    """An open PDF document, a context manager; thread-safe.

    Attributes:
        count: Number of pages.
    """

    def __init__(self, data: bytes) -> None:
        """Read the structure of a document.

        Raises:
            InvalidInputError: It is encrypted or damaged, or has no page.
            UnavailableError: pypdfium2 is not installed.
        """
        try:
            import pypdfium2
        except ModuleNotFoundError as error:
            raise UnavailableError(
                "PDF files need pypdfium2, which is not installed: " + install_command("ocdserve[pdf]")
            ) from error
        self._error: type[Exception] = pypdfium2.PdfiumError
        with _lock:
            try:
                self._document: Any = pypdfium2.PdfDocument(data)
            except pypdfium2.PdfiumError as error:
                if getattr(error, "err_code", None) == _ENCRYPTED or "assword" in str(error):
                    raise InvalidInputError("the PDF is encrypted. Remove its password first.") from error
                raise InvalidInputError(
                    f"the PDF of {len(data)} bytes cannot be read, it is truncated or damaged ({error}). Send it whole."
                ) from error
            self.count = len(self._document)
            # Otherwise the text in the fields of forms is not drawn.
            self._document.init_forms()
        if not self.count:
            self.close()
            raise InvalidInputError("the PDF has no pages. Send one with pages.")

    def render(self, page: int, dpi: float, max_pixels: int) -> NDArray[np.uint8]:
        """One page on white, upright as the document says.

        Args:
            page: From 1 to `count`.
            dpi: Pixels per inch.
            max_pixels: Largest width times height, checked before anything is drawn.

        Returns:
            uint8 (H, W, 3) RGB.

        Raises:
            InvalidInputError: The resolution is out of range, or the page is damaged or too large.
        """
        check_dpi(dpi)
        with _lock:
            try:
                sheet = self._document[page - 1]
            except self._error as error:
                raise InvalidInputError(f"page {page} of {self.count} of the PDF is damaged ({error})") from error
            try:
                width, height = (math.ceil(side * dpi / _POINTS_PER_INCH) for side in sheet.get_size())
                if min(width, height) < 1:
                    raise InvalidInputError(
                        f"page {page} of {self.count} of the PDF is damaged (its crop box lies outside its media box)"
                    )
                if width * height > max_pixels:
                    fits = math.floor(dpi * math.sqrt(max_pixels / (width * height))) - 1
                    raise InvalidInputError(
                        f"page {page} of {self.count} of the PDF has {width} x {height} = {width * height} pixels at "
                        f"dpi={dpi:g}; at most {max_pixels} are served. Use dpi={max(fits, 1)} or less."
                    )
                bitmap = sheet.render(scale=dpi / _POINTS_PER_INCH, rev_byteorder=True)
                pixels: NDArray[np.uint8] = bitmap.to_numpy()[..., :3].copy()
                bitmap.close()
            finally:
                sheet.close()
        return pixels

    def close(self) -> None:
        """Release the document."""
        with _lock:
            self._document.close()

    def __enter__(self) -> "Pdf":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
