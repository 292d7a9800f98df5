# SPDX-License-Identifier: Apache-2.0
"""`Reading`: detections with their texts, and documents that are made of one or several, a page each.

NumPy only; searchable PDF files need pikepdf (`pip install 'ocdserve[pdf]'`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ocdserve.results.reading.outcome import ReadOutcome
from ocdserve.results.reading.reading import Line, Reading, Word

if TYPE_CHECKING:
    from ocdserve.results.reading.documents import to_markdown, to_text, to_tsv
    from ocdserve.results.reading.markup import to_alto, to_hocr
    from ocdserve.results.reading.searchable_pdf import to_searchable_pdf

__all__ = [
    "Line",
    "ReadOutcome",
    "Reading",
    "Word",
    "to_alto",
    "to_hocr",
    "to_markdown",
    "to_searchable_pdf",
    "to_text",
    "to_tsv",
]

if not TYPE_CHECKING:
    _MODULES = {
        "to_alto": "markup",
        "to_hocr": "markup",
        "to_markdown": "documents",
        "to_searchable_pdf": "searchable_pdf",
        "to_text": "documents",
        "to_tsv": "documents",
    }

    def __getattr__(name: str) -> Any:
        """Import a writer when it is used: who reads text need not write documents."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})
