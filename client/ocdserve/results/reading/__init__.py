# SPDX-License-Identifier: Apache-2.0
"""`Reading`: detections with their texts, and documents that are made of one or several, a page each.

NumPy only; searchable PDF files need pikepdf (`pip install 'ocdserve[pdf]'`).
"""

from ocdserve.results.reading.documents import to_markdown, to_text, to_tsv
from ocdserve.results.reading.markup import to_alto, to_hocr
from ocdserve.results.reading.outcome import ReadOutcome
from ocdserve.results.reading.reading import Line, Reading, Word
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
