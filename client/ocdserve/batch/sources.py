# SPDX-License-Identifier: Apache-2.0
"""Images named on a command line: files, folders, patterns, URLs, lists, storage; their pages, and what is in them."""

import glob
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from ocdserve.batch import storage
from ocdserve.contract import IMAGE_SUFFIXES, PDF_SUFFIX, InvalidInputError, OcdserveError, is_image, is_url
from ocdserve.results.detections import Detections
from ocdserve.results.many import Outcome
from ocdserve.results.pages import count_pages, pages_of

STDIN = "-"

# An image with its source, or why there is none.
Part = tuple["Source", bytes | NDArray[np.uint8] | OcdserveError]

# Longest name of a drawn picture without its ending; file systems allow 255 bytes.
_LONGEST_STEM = 60

# A request by gRPC cannot be larger.
_LARGEST_FILE = 2**31 - 1

# Name of the result files of a page, see `Source.page_suffix`, and of the file that it is in.
_OF_PAGE = re.compile(r"(.+)\.page-\d+")

_LOOKED_FOR = ", ".join(sorted([*IMAGE_SUFFIXES, PDF_SUFFIX]))


@dataclass(frozen=True)
class Source:
    """One input image, or an argument that names none.

    Attributes:
        name: As given by the user.
        path: The file; None for standard input, URLs and what is in storage.
        problem: Why there is no image, such as a folder without one; None: there may be one.
        page: Page of a file of several, from 1; None: the whole file.
        content: The file where it has been read; None: `read` reads it.
    """

    name: str
    path: Path | None
    problem: str | None = None
    page: int | None = None
    content: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The name with the page."""
        return self.name if self.page is None else f"{self.name}#page={self.page}"

    @property
    def page_suffix(self) -> str:
        """Of the names of result files."""
        return "" if self.page is None else f".page-{self.page}"

    @property
    def is_url(self) -> bool:
        """Whether the image is named by a URL, of the web or of storage."""
        return self.path is None and self.name != STDIN

    @property
    def stem(self) -> str:
        """Base name of result files."""
        if self.is_url:
            address = urlsplit(self.name)
            return Path(unquote(address.path)).stem or address.hostname or "url"
        return self.path.stem if self.path else "stdin"

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            InvalidInputError: The file cannot be read, the URL is refused, or the argument names no image.
            UnavailableError: The URL's server cannot be reached.
            OSError: Storage fails in another way than that the file is not there or not readable.
        """
        if self.content is not None:
            return self.content
        if self.problem is not None:
            raise InvalidInputError(self.problem)
        if storage.is_remote(self.name):
            return storage.read(self.name)
        if self.is_url:
            from ocdserve.client import Downloads
            from ocdserve.results.download import download

            # Who names the URL here could fetch it as well.
            return download(self.name, Downloads(private=True))
        if self.path is None:
            return sys.stdin.buffer.read()
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise InvalidInputError(f"cannot read the file: {error.strerror}") from error


def sources_of(
    arguments: Iterable[str],
    *,
    recursive: bool = True,
    allow_urls: bool = False,
    left_out: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[Source]:
    """The images named by the arguments.

    An argument is a file, a folder (its images in natural order), a pattern (*, ?, [...], and ** for any folders), one
    of these in storage (s3://bucket/scans), an http or https URL, or "-" for standard input. An existing file whose
    name looks like a pattern is that file. Hidden files and folders are skipped unless they are named. A folder or a
    pattern without an image, and a folder that cannot be read, is a source with a `problem`.

    Args:
        arguments: What the user named.
        recursive: Whether the folders in a folder are searched too.
        allow_urls: Whether images are fetched from URLs; otherwise a URL is a source with a `problem`.
        left_out: A folder that is not searched, such as that of the results.
        note: Receives what a user might not expect: folders searched, hidden files skipped.
    """
    for argument in arguments:
        path = Path(argument)
        if argument == STDIN:
            yield Source(STDIN, None)
        elif is_url(argument):
            yield Source(argument, None, None if allow_urls else "a URL is fetched only with --allow-urls")
        elif storage.is_remote(argument):
            found = sorted((name for name in storage.find(argument, recursive) if _is_read(Path(name))), key=_natural)
            yield from (Source(name, None) for name in found)
            if not found:
                yield Source(argument, None, f"no image at {argument!r}; looked for {_LOOKED_FOR}")
        elif path.is_dir():
            yield from _in_folder(path, recursive, left_out, note)
        elif glob.has_magic(argument) and not path.exists():
            files = _images(Path(name) for name in glob.iglob(argument, recursive=True))
            yield from (_file(str(file), file) for file in files)
            if not files:
                yield Source(argument, path, f"no image matches {argument!r}; looked for {_LOOKED_FOR}")
        else:
            yield _file(argument, path)


def in_list(file: str) -> list[str]:
    """The names in a list of images: a text file, or one in storage, with a name per line; empty lines do not count.

    Raises:
        InvalidInputError: It cannot be read, or is not UTF-8.
    """
    content = Source(file, None if storage.is_remote(file) else Path(file)).read()
    try:
        return [line.strip() for line in content.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"the list {file!r} is not UTF-8 text: {error}; write a name per line") from error


def stems_of(sources: list[Source]) -> dict[str, str]:
    """By source, the name of its result files: the file's, or its whole path where several files share that name."""
    shared = Counter(stem for stem, _ in {(source.stem.lower(), source.path) for source in sources})
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for source in {source.name: source for source in sources}.values():
        whole = re.sub(r"^[./]+|[/:]+", "_", source.name).strip("_")
        stem = first = source.stem if shared[source.stem.lower()] == 1 else whole[-_LONGEST_STEM:]
        number = 1
        while stem.lower() in taken or ((whole_file := _OF_PAGE.fullmatch(stem.lower())) and whole_file[1] in shared):
            number += 1
            stem = f"{first}-{number}"
        stems[source.name] = stem
        taken.add(stem.lower())
    return stems


def images_of(
    sources: Iterable[Source],
    *,
    ahead: int,
    page: int | None,
    dpi: float,
    done: Collection[tuple[str, int | None]] = (),
    expect: Callable[[int], None] = lambda _: None,
) -> Iterator[Part]:
    """The images of the sources, one per page of files that have several; or why there is none.

    The sources that it returns hold the file's content.

    Args:
        sources: The sources.
        ahead: Sources that are read at the same time, and ahead.
        page: The only page wanted, from 1; None: all.
        dpi: Resolution of PDF pages.
        done: Names and pages to be skipped.
        expect: Called with the number of images that a file has besides its first.
    """
    for source, reading in _read_ahead(sources, ahead):
        try:
            encoded = reading.result()
            source = replace(source, content=encoded)
            count = count_pages(encoded)
        except OcdserveError as error:
            yield source, error
            continue
        wanted = range(1, count + 1) if page is None else [page]
        left = [number for number in wanted if (source.name, number) not in done]
        expect(len(left) - 1)
        while left:
            part = source if count == 1 else replace(source, page=left[0])
            try:
                for found in pages_of(encoded, tuple(left), dpi):
                    yield part, found.image
                    left.pop(0)
                    part = replace(source, page=left[0]) if left else source
            except OcdserveError as error:  # the pages after it may be read
                yield part, error
                left.pop(0)


def found_in(
    parts: Iterable[Part], detect_many: Callable[[Iterator[Any]], Iterable[Outcome[Any]]]
) -> Iterator[tuple[Part, Detections | OcdserveError]]:
    """What is found in the images of `images_of`, in their order.

    Args:
        parts: The images.
        detect_many: Gives the outcomes of images in order; may read further images before.
    """
    waiting: deque[Part] = deque()

    def images() -> Iterator[Any]:
        for part in parts:
            waiting.append(part)
            if not isinstance(part[1], OcdserveError):
                yield part[1]

    def failed() -> Iterator[tuple[Part, OcdserveError]]:
        while waiting and isinstance(error := waiting[0][1], OcdserveError):
            yield waiting.popleft(), error

    for outcome in detect_many(images()):
        yield from failed()
        source, image = waiting.popleft()
        found = outcome.error or replace(outcome.result(), page=source.page)
        yield (source, image), found
    yield from failed()


def _read_ahead(sources: Iterable[Source], ahead: int) -> Iterator[tuple[Source, Future[bytes]]]:
    waiting: deque[tuple[Source, Future[bytes]]] = deque()
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="ocdserve-read")
    try:
        for source in sources:
            waiting.append((source, pool.submit(source.read)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _in_folder(folder: Path, recursive: bool, left_out: Path | None, note: Callable[[str], None]) -> Iterator[Source]:
    found: list[Path] = []
    unread: list[OSError] = []
    hidden = unsearched = 0
    seen = {os.path.realpath(left_out)} if left_out else set()
    for place, folders, files in os.walk(folder, onerror=unread.append, followlinks=True):
        real = os.path.realpath(place)
        visible = [name for name in folders if not name.startswith(".")]
        if real in seen and Path(place) != folder:  # a symbolic link into what has been searched, or the results
            folders.clear()
            continue
        seen.add(real)
        images = [path for name in files if _is_read(path := Path(place, name))]
        found += [path for path in images if not path.name.startswith(".")]
        hidden += sum(path.name.startswith(".") for path in images) + len(folders) - len(visible)
        unsearched += 0 if recursive else len(visible)
        folders[:] = sorted(visible) if recursive else []
    yield from (_file(str(path), path) for path in _images(found))
    for error in unread:
        yield Source(str(error.filename), folder, f"cannot read the folder {error.filename!r}: {error.strerror}")
    if not found and not unread:
        yield Source(str(folder), folder, f"no image in the folder {str(folder)!r}; looked for {_LOOKED_FOR}")
    deeper = sum(path.parent != folder for path in found)
    facts = [
        f"{deeper} of {len(found)} images are in its sub-folders (--no-recursive leaves them out)" if deeper else "",
        f"{hidden} hidden files or folders skipped; name them to include them" if hidden else "",
        f"{unsearched} sub-folders not searched" if unsearched else "",
    ]
    if any(facts):
        note(f"{folder}: {'; '.join(filter(None, facts))}")


def _file(name: str, path: Path) -> Source:
    """The image in a file; too large a file is not read at all."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError):  # reading it says why
        size = 0
    if size <= _LARGEST_FILE:
        return Source(name, path)
    return Source(name, path, f"the file has {size / 2**30:.1f} GiB; at most 2 GiB are read. Scale the image down.")


def _images(files: Iterable[Path]) -> list[Path]:
    return sorted(filter(_is_read, files), key=_natural)


def _is_read(path: Path) -> bool:
    return is_image(path) or path.suffix.lower() == PDF_SUFFIX


def _natural(path: Path | str) -> list[tuple[int, str]]:
    """Sort key in which img_2 comes before img_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path).lower())]
