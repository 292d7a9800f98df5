# SPDX-License-Identifier: Apache-2.0
"""Detection in batches of a table, as an object that travels to the workers of any engine."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ocdserve.batch.sources import Source, found_in, images_of
from ocdserve.batch.storage import is_remote
from ocdserve.batch.tables import COLUMNS, pyarrow_for, schema_of
from ocdserve.contract import InvalidInputError, OcdserveError, RequestParameters, check_count, did_you_mean, is_url
from ocdserve.results.detections import Detections
from ocdserve.results.pdf import DEFAULT_DPI, check_dpi
from ocdserve.results.pictures import check_max_side

# The error of images that are named by a web URL.
NOT_FETCHED = "a batch fetches nothing from the web; copy the image to a folder or to storage"
# A row of the result; `ocdserve.batch.tables.schema_of` describes it.
Row = dict[str, Any]


@dataclass(frozen=True)
class DetectBatch:
    """Detects the text in the images of a batch; picklable, it loads its detector where and when it is first used.

    Call it with a pyarrow table, a pandas data frame, a dictionary of columns, or a list of names: it returns the same
    kind, with a row per image, and per page of files that have several. It suits Ray's
    `Dataset.map_batches(DetectBatch(), batch_format="pyarrow")` and `map` of a pool of processes; Spark's `mapInPandas`
    takes `frames`. An image that cannot be read is a row with an error. All calls in a process share one detector.

    Attributes:
        bundle: Folder of a bundle, or name of a built-in detector; None: the default one.
        runtime: Network runtime; None: the bundle's, else the fastest.
        threads: Cores for the network; None: all.
        gpu: Whether all stages run on a GPU.
        max_side: Longer side in pixels to which larger images are scaled down first; None: they are not.
        dpi: Resolution of PDF pages, in pixels per inch.
        concurrency: Images in progress at once: while the network computes one, others are read and decoded.
        parameters: Request parameters, such as `{"box_thresh": 0.6}`.
        image: Column with the images' names: paths, or URLs of storage.
        content: Column with the files themselves, which are then not read by their names.
        digest: Digest of the expected bundle (`Bundle.digest`); None: any.
    """

    bundle: str | None = None
    runtime: str | None = None
    threads: int | None = 1
    gpu: bool = False
    max_side: int | None = None
    dpi: float = DEFAULT_DPI
    concurrency: int = 2
    parameters: Mapping[str, Any] = field(default_factory=dict)
    image: str = "image"
    content: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        """Raise InvalidInputError for options that are not valid."""
        if "page" in RequestParameters.parse(self.parameters).given():
            raise InvalidInputError("parameters must not hold page, as a batch takes all pages; leave it out")
        check_max_side(self.max_side)
        check_dpi(self.dpi)
        check_count("concurrency", self.concurrency)

    def __call__(self, batch: Any) -> Any:
        """Detect in all images of a batch.

        Raises:
            InvalidInputError: The batch is of another kind or lacks a column, or the bundle is not valid.
            UnavailableError: The detector cannot be loaded, or fails.
            OSError: Storage fails in another way than that a file is not there or not readable.
        """
        if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
            return list(self.rows((str(name), None) for name in batch))
        if isinstance(batch, Mapping):
            rows = self.rows(self._inputs(batch, list))
            return _columns(rows)
        if hasattr(batch, "to_pylist"):
            table = pyarrow_for("a table").Table
            return table.from_pylist(
                list(self.rows(self._inputs(batch, lambda column: column.to_pylist()))), schema_of()
            )
        if hasattr(batch, "columns"):
            return type(batch)(_columns(self.rows(self._inputs(batch, list))))
        raise InvalidInputError(
            "a batch must be a pyarrow table, a pandas data frame, a dictionary of columns or a list of names; got "
            f"{type(batch).__name__}"
        )

    def frames(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Detect in data frames one after the other: the function that Spark's `mapInPandas` takes."""
        return map(self, batches)

    def rows(self, inputs: Iterable[tuple[str, bytes | None]]) -> Iterator[Row]:
        """The rows of images, in their order, as they are detected.

        Args:
            inputs: Name and content of each image; None: it is read by its name.

        Raises:
            UnavailableError: The detector cannot be loaded, or fails.
            OSError: See `__call__`.
        """
        detector = self.load()
        many = partial(
            detector.detect_many, concurrency=self.concurrency, max_side=self.max_side, **dict(self.parameters)
        )
        sources = (_source(name, content) for name, content in inputs)
        for (source, _), found in found_in(images_of(sources, ahead=self.concurrency, page=None, dpi=self.dpi), many):
            if isinstance(found, OcdserveError) and not isinstance(found, InvalidInputError):
                raise found
            yield _row(source, found)

    def load(self) -> Any:
        """The detector of this process, which is loaded by the first call.

        Raises:
            InvalidInputError: The bundle is not valid, or another one than expected.
            UnavailableError: The runtime is not installed, or there is no GPU.
        """
        return _detector(self.bundle, self.runtime, self.threads, self.gpu, self.digest)

    def _inputs(self, batch: Any, values: Any) -> Iterator[tuple[str, bytes | None]]:
        known = list(batch.column_names if hasattr(batch, "column_names") else batch)
        for name in filter(None, (self.image, self.content)):
            if name not in known:
                raise InvalidInputError(
                    f"the batch has no column {name!r}, but {', '.join(known)}{did_you_mean(name, known)}; name the "
                    "columns with DetectBatch(image=..., content=...)"
                )
        names = values(batch[self.image])
        contents = [None] * len(names) if self.content is None else values(batch[self.content])
        return zip(map(str, names), contents, strict=True)


@cache
def _detector(bundle: str | None, runtime: str | None, threads: int | None, gpu: bool, digest: str | None) -> Any:
    from ocdserve.backend import Bundle

    if digest is not None and (found := Bundle.load(bundle).digest()) != digest:
        raise InvalidInputError(
            f"the bundle {bundle or 'default'!r} of this machine has the digest {found}, and the job was begun with "
            f"{digest}; give all machines the same bundle"
        )
    if gpu:
        from ocdserve.backend.gpu.detector import GpuDetector

        return GpuDetector.load(bundle, runtime)
    from ocdserve.backend import Detector

    return Detector.load(bundle, runtime, threads)


def _source(name: str, content: bytes | None) -> Source:
    if content is not None:
        return Source(name, None, content=bytes(content))
    if is_url(name):
        return Source(name, None, NOT_FETCHED)
    return Source(name, None if is_remote(name) else Path(name))


def _row(source: Source, found: Detections | OcdserveError) -> Row:
    # A name that is not UTF-8 came with surrogates.
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"image": source.name.encode(errors="backslashreplace").decode(), "page": source.page}
    if isinstance(found, OcdserveError):
        return row | {"error": " ".join(str(found).split())}
    polygons = found.polygons
    return row | {
        "width": found.width,
        "height": found.height,
        "quads": found.quads.reshape(-1, 8).tolist(),
        "scores": found.scores.tolist(),
        "polygons": None if polygons is None else [np.ravel(one).tolist() for one in polygons],
    }


def _columns(rows: Iterable[Row]) -> dict[str, Any]:
    """Rows as columns, arrays of Python objects: lists of different lengths are no array."""
    listed = list(rows)
    columns = {}
    for name in COLUMNS:
        column = np.empty(len(listed), object)
        for index, row in enumerate(listed):
            column[index] = row[name]
        columns[name] = column
    return columns
