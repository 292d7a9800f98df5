# SPDX-License-Identifier: Apache-2.0
"""Formats of `ocdserve read`: plain text as it comes, and documents with all pages of an input."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, cast

from ocdserve.batch.sources import Source
from ocdserve.cli import one_line, printable
from ocdserve.cli.formats import Outputs
from ocdserve.cli.formats.files import STDOUT, Chunks, Format, Target, Writer
from ocdserve.cli.formats.writers import Folder, JsonLines
from ocdserve.contract import InvalidInputError, UsageError
from ocdserve.results.detections import Detections

if TYPE_CHECKING:
    from ocdserve.results.reading import Reading

_Maker = Callable[[Target, Mapping[str, str], ExitStack], Writer]

# Before the name of a further input.
_GAP = "\n"


class Text:
    """The text of all inputs, each below a line with its name where there are several; form feeds separate pages."""

    def __init__(self, target: Target, stems: Mapping[str, str], stack: ExitStack) -> None:
        self._chunks = Chunks(target, stack)
        self._columns = target.columns
        self._has_names = len(stems) > 1
        self._last: Source | None = None

    def begin(self) -> None:
        self._chunks.begin()

    def found(self, source: Source, found: Detections, ms: float | None) -> None:
        if _is_next_page(source, self._last):
            self._chunks.write("\f")
        elif self._has_names:
            self._chunks.write(f"{'' if self._last is None else _GAP}==> {printable(source.name)} <==\n")
        self._last = source
        text = cast("Reading", found).to_text(columns=self._columns)
        self._chunks.write(f"{text}\n" if text else "")

    def failed(self, source: Source, message: str) -> None:
        pass


class Documents:
    """A document per input, of all its pages that could be read: a file, or one in a folder for each.

    It appears when its input is complete, so that none is there of an input in which Ctrl-C came.
    """

    def __init__(self, target: Target, stems: Mapping[str, str], stack: ExitStack) -> None:
        """Open the file or folder; `stack` completes it.

        Raises:
            UsageError: There are several inputs, and only one file; or a terminal would get a PDF.
            InvalidInputError: A file exists, or cannot be written.
            UnavailableError: The format needs a package that is not installed.
        """
        self._format, self._columns = target.format.name, target.columns
        self._source: Source | None = None
        self._pages: list[Reading] = []
        self._failed = 0
        if self._format == "pdf":
            _check_pdf(target)
        if target.is_folder:
            self._folder: Folder | None = Folder(target, stems)
        elif len(stems) > 1:
            raise UsageError(
                f"{self._format} is a document per input, and there are {len(stems)}; name a folder with "
                f"{target.option}, a path that ends in /"
            )
        else:
            self._folder, self._chunks = None, Chunks(target, stack, is_draft=True)
        stack.push(self._end)

    def begin(self) -> None:
        pass

    def found(self, source: Source, found: Detections, ms: float | None) -> None:
        if not _is_next_page(source, self._source):
            self._complete()
        self._source = source
        self._pages.append(cast("Reading", found))

    def failed(self, source: Source, message: str) -> None:
        pass

    def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._complete()
            if self._failed:
                raise InvalidInputError(f"there is no {self._format} of {self._failed} of the inputs, see above")

    def _complete(self) -> None:
        if self._source is None:
            return
        source, pages, self._source, self._pages = self._source, self._pages, None, []
        try:
            content = document(self._format, source, pages, columns=self._columns)
        except InvalidInputError as error:
            if self._folder is None:
                raise
            print(f"ocdserve read: {printable(source.name)}: {one_line(error)}", file=sys.stderr, flush=True)
            self._failed += 1
            return
        if self._folder is not None:
            self._folder.write(self._folder.path(source.name), content)
        else:
            self._chunks.begin()
            self._chunks.write(content)


def _is_next_page(source: Source, before: Source | None) -> bool:
    """Whether both are of one input: one that is named twice begins again."""
    return before is not None and source.name == before.name and (source.page or 0) > (before.page or 0)


def _text_or_documents(target: Target, stems: Mapping[str, str], stack: ExitStack) -> Writer:
    """The writer of plain text."""
    return Documents(target, stems, stack) if target.is_folder else Text(target, stems, stack)


def document(form: str, source: Source, pages: "Sequence[Reading]", *, columns: bool = False) -> bytes:
    """A document of pages of an input, in a format of `READINGS`; `columns` is for plain text.

    Raises:
        InvalidInputError: There is no such format.
        UnavailableError: A package that it needs is not installed.
    """
    if form == "pdf":
        from ocdserve.results.reading.searchable_pdf import to_searchable_pdf

        return to_searchable_pdf(pages, source.read())
    from ocdserve.results.reading.documents import to_markdown, to_text, to_tsv
    from ocdserve.results.reading.markup import to_alto, to_hocr

    # A name that is no UTF-8 came with surrogates.
    name = source.name.encode(errors="backslashreplace").decode()
    makers: dict[str, Callable[[Sequence[Reading]], str]] = {
        "text": partial(to_text, columns=columns),
        "hocr": partial(to_hocr, image=name),
        "alto": partial(to_alto, image=name),
        "tsv": to_tsv,
        "md": to_markdown,
    }
    if form not in makers:
        raise InvalidInputError(f"format must be one of {', '.join((*makers, 'pdf'))}; got {form!r}")
    return makers[form](pages).encode()


def _check_pdf(target: Target) -> None:
    """Raise an error, before anything is read, if no PDF can be written."""
    from ocdserve.results.reading.searchable_pdf import require_pikepdf

    require_pikepdf()
    if target.path == STDOUT and sys.stdout.isatty():
        raise UsageError(f"a terminal does not show PDF; name a file with {target.option}, or redirect the output")


def _document(name: str, meaning: str, *suffixes: str, writer: _Maker = Documents, has_words: bool = True) -> Format:
    return Format(
        name,
        meaning,
        writer,
        suffixes,
        naming=f"{{}}{suffixes[0]}",
        is_document=True,
        has_polygons=False,
        parameters={"words": True} if has_words else {},
    )


READINGS = Outputs(
    "read",
    (
        _document("text", "the text alone", ".txt", writer=_text_or_documents, has_words=False),
        Format("json", "JSON Lines, an object per image or page", JsonLines, (".jsonl", ".ndjson")),
        _document("hocr", "HTML with boxes", ".hocr", ".html"),
        _document("alto", "XML of libraries and archives", ".xml"),
        _document("tsv", "a row per word, as Tesseract's", ".tsv"),
        _document("pdf", "the pages with text to search and copy", ".pdf"),
        _document("md", "Markdown, column by column", ".md", has_words=False),
    ),
    default="text",
)
