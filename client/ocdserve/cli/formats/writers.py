# SPDX-License-Identifier: Apache-2.0
"""Result files of `ocdserve detect`, one class per kind of file."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ocdserve.batch.sources import Source
from ocdserve.batch.tables import NUMBERS, pyarrow_for
from ocdserve.cli.formats.files import Chunks, Target, draft_of, write_whole
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections
from ocdserve.results.exchange import COLUMNS, coco_dataset

# Approximate rows per row group of a Parquet file.
_ROW_GROUP = 50_000


class JsonLines:
    """One JSON object per image, also for one that failed; the file can be continued."""

    def __init__(self, target: Target, stems: Mapping[str, str], stack: ExitStack) -> None:
        self._chunks = Chunks(target, stack)
        self._is_continued = target.resumed

    def begin(self) -> None:
        self._chunks.begin()

    def found(self, source: Source, found: Detections, ms: float | None) -> None:
        if ms is not None:
            self._write({"image": source.name, **found.to_dict(), "ms": round(ms, 3)})

    def failed(self, source: Source, message: str) -> None:
        page = {} if source.page is None else {"page": source.page}
        self._write({"image": source.name, **page, "error": message})

    def _write(self, result: dict[str, Any]) -> None:
        self._chunks.write(f"{json.dumps(result, ensure_ascii=False)}\n")


class Csv:
    """One row per detection (`Detections.to_rows`) below a header; an image without text has none."""

    def __init__(self, target: Target, stems: Mapping[str, str], stack: ExitStack) -> None:
        self._chunks = Chunks(target, stack, is_draft=target.resumed)

    def begin(self) -> None:
        self._chunks.begin()
        self._chunks.write(f"{','.join(COLUMNS)}\n")

    def found(self, source: Source, found: Detections, ms: float | None) -> None:
        rows = io.StringIO()
        csv.DictWriter(rows, COLUMNS, lineterminator="\n").writerows(found.to_rows(source.name))
        self._chunks.write(rows.getvalue())

    def failed(self, source: Source, message: str) -> None:
        pass


class Coco:
    """One COCO file for all images that were processed; it appears when it is complete, after Ctrl-C too."""

    def __init__(self, target: Target, stems: Mapping[str, str], stack: ExitStack) -> None:
        self._chunks = Chunks(target, stack, is_draft=True)
        self._stack = stack
        self._images: list[str] = []
        self._annotations = 0

    def begin(self) -> None:
        self._chunks.begin()
        categories = json.dumps(coco_dataset({})["categories"])
        self._chunks.write(f'{{"categories": {categories},\n"annotations": [')
        self._stack.callback(self._finish)

    def found(self, source: Source, found: Detections, ms: float | None) -> None:
        image_id = len(self._images) + 1
        [image] = coco_dataset({source.label: found})["images"]
        annotations = found.to_coco(image_id=image_id, first_id=self._annotations + 1)
        texts = [json.dumps(annotation) for annotation in annotations]
        self._chunks.write("".join(f"{',' if self._annotations + i else ''}\n{text}" for i, text in enumerate(texts)))
        self._images.append(json.dumps(image | {"id": image_id}, ensure_ascii=False))
        self._annotations += len(texts)

    def failed(self, source: Source, message: str) -> None:
        pass

    def _finish(self) -> None:
        images = ",\n".join(self._images)
        self._chunks.write(f'\n],\n"images": [\n{images}\n]}}\n')


class Folder:
    """A folder with a file for each image, or for each input with all its pages, named after it."""

    def __init__(self, target: Target, stems: Mapping[str, str]) -> None:
        """Make the folder.

        Raises:
            InvalidInputError: It cannot be made, or has files that would be replaced.
        """
        self._folder = Path(target.path)
        self._stems = stems
        self._form = target.format
        taken = sorted(self.path(name, page) for name, page in self.written())
        if taken and not target.resumed and not target.overwrite:
            raise InvalidInputError(
                f"{len(taken)} of the files to write exist in the folder {target.path!r} of {target.option}, such as "
                f"{taken[0].name}; continue with --resume, replace them with --overwrite, or name another folder"
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"cannot make the folder {target.path!r}: {error.strerror}") from error

    def path(self, name: str, page: int | None = None) -> Path:
        """The file of an image, or of a page."""
        stem = f"{self._stems[name]}{Source(name, None, page=page).page_suffix}"
        return self._folder / self._form.naming.format(stem)

    def written(self) -> list[tuple[str, int | None]]:
        """Names and pages of the images that have a file."""
        start, end = self._form.naming.split("{}")
        names = {stem: name for name, stem in self._stems.items()}
        found: list[tuple[str, int | None]] = []
        for file in self._folder.glob(f"{start}*{end}"):
            stem = file.name[len(start) : -len(end)]
            base, _, page = stem.rpartition(".page-")
            if stem in names:
                found.append((names[stem], None))
            elif base in names and page.isdecimal() and not self._form.is_document:
                found.append((names[base], int(page)))
        return found

    def write(self, path: Path, content: bytes) -> None:
        """Write a file, whole.

        Raises:
            InvalidInputError: It cannot be written.
        """
        try:
            write_whole(path, content)
        except OSError as error:
            raise InvalidInputError(f"cannot write the file {str(path)!r}: {error.strerror or error}") from error


class Files:
    """A folder with a text file for each image."""

    def __init__(self, target: Target, stems: Mapping[str, str], stack: ExitStack) -> None:
        self._folder = Folder(target, stems)
        self._content = _PER_IMAGE[target.format.name]

    def begin(self) -> None:
        pass

    def found(self, source: Source, found: Detections, ms: float | None) -> None:
        path = self._folder.path(source.name, source.page)
        self._folder.write(path, self._content(source, found, path).encode(errors="backslashreplace"))

    def failed(self, source: Source, message: str) -> None:
        pass


class Parquet:
    """A Parquet file with one row per detection (`Detections.to_rows`), and none for an image without text.

    The file appears when it is complete, under a hidden name until then.
    """

    def __init__(self, target: Target, stems: Mapping[str, str], stack: ExitStack) -> None:
        """Open the file; `stack` finishes and closes it.

        Raises:
            UnavailableError: pyarrow is not installed.
            InvalidInputError: The file exists, or cannot be written.
        """
        file = Path(target.path)
        if not target.resumed:
            target.refuse_existing(file)
        pyarrow = pyarrow_for(target.option)
        kinds = {"image": pyarrow.string(), **dict.fromkeys(NUMBERS, pyarrow.int32())}
        self._arrow: Any = pyarrow
        self._schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float32())) for name in COLUMNS])
        self._rows: list[dict[str, Any]] = []
        self._is_whole = False
        self._target = target
        self._file = file
        self._draft = draft_of(file)
        try:
            self._writer = pyarrow.parquet.ParquetWriter(str(self._draft), self._schema)
        except OSError as error:
            raise target.failure(error) from error
        stack.callback(self._close)

    def begin(self) -> None:
        self._is_whole = True

    def found(self, source: Source, found: Detections, ms: float | None) -> None:
        # A name that is no UTF-8 came with surrogates.
        self._rows += found.to_rows(source.name.encode(errors="backslashreplace").decode())
        if len(self._rows) >= _ROW_GROUP:
            self._flush()

    def failed(self, source: Source, message: str) -> None:
        pass

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            try:
                self._writer.write_table(self._arrow.Table.from_pylist(rows, self._schema))
            except OSError as error:
                self._is_whole = False
                raise self._target.failure(error) from error

    def _close(self) -> None:
        try:
            self._flush()
            self._writer.close()
            if self._is_whole and self._draft != self._file:
                os.replace(self._draft, self._file)
        except OSError as error:
            raise self._target.failure(error) from error
        finally:
            if self._draft != self._file:
                self._draft.unlink(missing_ok=True)


def _icdar(source: Source, found: Detections, file: Path) -> str:
    return found.to_icdar()


def _labelme(source: Source, found: Detections, file: Path) -> str:
    assert source.path is not None
    content = found.to_labelme(os.path.relpath(source.path, file.parent))
    return f"{json.dumps(content, ensure_ascii=False, indent=2)}\n"


# What is in the files of `Files`.
_PER_IMAGE: dict[str, Callable[[Source, Detections, Path], str]] = {"icdar": _icdar, "labelme": _labelme}
