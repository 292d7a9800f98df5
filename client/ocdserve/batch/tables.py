# SPDX-License-Identifier: Apache-2.0
"""Parquet: what all of ocdserve's files share, and the table of a batch, a row per image."""

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ocdserve.contract import InvalidInputError, UnavailableError, install_command

__all__ = ["COLUMNS", "NUMBERS", "list_file", "parquet_of", "pyarrow_for", "read_list", "schema_of"]

# Columns of whole numbers, in files with a row per detection too; None for a page where there is but one.
NUMBERS = ("page", "width", "height", "index")
# Columns of a batch; `schema_of` describes them.
COLUMNS = ("image", *NUMBERS[:3], "quads", "scores", "polygons", "error")
# Key of the metadata of a file's schema.
_METADATA = b"ocdserve"


def pyarrow_for(purpose: str) -> Any:
    """The package pyarrow with its module for Parquet.

    Raises:
        UnavailableError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        text = " ".join(str(error).split())
        raise UnavailableError(f"{purpose} needs pyarrow: {install_command('ocdserve[tables]')} ({text})") from error
    return pyarrow


def schema_of(provenance: Mapping[str, Any] | None = None) -> Any:
    """pyarrow's schema of a batch, with where it comes from as metadata.

    A row is an image, or a page of a file of several: image, its name; page, from 1, null for a file of one; width and
    height in pixels; quads, a list of 8 coordinates x1, y1, ... x4, y4 each, clockwise in source pixels; their scores,
    0 to 1; polygons, lists of x, y, ..., null unless asked for; error, null for an image that could be read, of which
    all others but image and page are null otherwise.
    """
    arrow = pyarrow_for("a batch")
    scores = arrow.list_(arrow.float32())
    text, number, corners = arrow.string(), arrow.int32(), arrow.list_(scores)
    types = (text, number, number, number, corners, scores, corners, text)
    return arrow.schema(
        zip(COLUMNS, types, strict=True),
        None if provenance is None else {_METADATA: json.dumps(provenance, sort_keys=True)},
    )


def parquet_of(rows: Iterable[Mapping[str, Any]], schema: Any) -> bytes:
    """A Parquet file of these rows."""
    arrow = pyarrow_for("a batch")
    file = io.BytesIO()
    arrow.parquet.write_table(arrow.Table.from_pylist(list(rows), schema), file, compression="zstd")
    return file.getvalue()


def list_file(inputs: Sequence[str], provenance: Mapping[str, Any]) -> bytes:
    """A Parquet file with the inputs of a job and where it comes from."""
    arrow = pyarrow_for("a batch")
    # Bytes: a file name need not be UTF-8.
    schema = arrow.schema([("image", arrow.binary())], {_METADATA: json.dumps(provenance, sort_keys=True)})
    return parquet_of([{"image": os.fsencode(name)} for name in inputs], schema)


def read_list(content: bytes, name: str) -> tuple[list[str], dict[str, Any]]:
    """The inputs of a job and where it comes from.

    Raises:
        InvalidInputError: The file was not made by `list_file`.
    """
    arrow = pyarrow_for("a batch")
    try:
        table = arrow.parquet.read_table(io.BytesIO(content))
        return [os.fsdecode(name) for name in table.column("image").to_pylist()], json.loads(
            table.schema.metadata[_METADATA]
        )
    except (arrow.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{name} is not the job file of `ocdserve batch` ({error}); name another folder"
        ) from error
