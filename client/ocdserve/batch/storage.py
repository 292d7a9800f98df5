# SPDX-License-Identifier: Apache-2.0
"""Files in folders and in object storage: s3://, and whatever else fsspec has a file system for."""

import errno
import glob
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocdserve.contract import InvalidInputError, UnavailableError, install_command, is_url

__all__ = ["Folder", "find", "is_remote", "read"]

# In these an object appears whole or not at all, and mode="create" refuses one that exists.
_CONDITIONAL = ("s3", "s3a", "gs", "gcs")
# Errors of file systems that have no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)
_DRAFT = ".draft-"


def is_remote(text: str) -> bool:
    """Whether the text names a file in storage by URL, such as s3://bucket/name, and neither a file nor a web page."""
    return re.match(r"[a-z][a-z0-9+.-]+://", text) is not None and not is_url(text)


def read(url: str) -> bytes:
    """A file in storage.

    Raises:
        InvalidInputError: It is not there, or may not be read.
        UnavailableError: A package is not installed.
        OSError: Storage fails; another attempt may succeed.
    """
    system, path = _opened(url)
    try:
        with _as_os_errors():
            return bytes(system.cat_file(path))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InvalidInputError(f"cannot read the file: {error.strerror or type(error).__name__}") from error


def find(url: str, recursive: bool = True) -> list[str]:
    """URLs of the files at a place: a file, those below a folder, or those that match a pattern.

    Raises:
        UnavailableError: A package is not installed.
        OSError: Storage fails.
    """
    system, path = _opened(url)
    with _as_os_errors():
        if glob.has_magic(path) and not system.exists(path):
            found = system.glob(path)
        elif system.isdir(path):
            found = system.find(path, maxdepth=None if recursive else 1)
        else:
            found = [path]
    return [str(system.unstrip_protocol(one)) for one in found]


@dataclass(frozen=True)
class Folder:
    """A folder of files that are whole or not there, and that never change: who writes a file first has written it.

    Locally a file is written beside, and linked to its name. In S3 and Google's storage it is put on the condition that
    there is none; in other storage it is written beside and renamed, where two that write a file at the same time must
    write the same.

    Attributes:
        url: A path, or a URL of storage.
    """

    url: str

    def names(self) -> set[str]:
        """Names of the files; none of a folder that is not there."""
        try:
            if not is_remote(self.url):
                return set(os.listdir(self.url))
            system, path = _opened(self.url)
            system.invalidate_cache(path)
            with _as_os_errors():
                return {str(name).rstrip("/").rpartition("/")[2] for name in system.ls(path, detail=False)}
        except FileNotFoundError:
            return set()
        except NotADirectoryError as error:
            raise InvalidInputError(f"{self.url!r} is a file; name a folder for the results") from error

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return read(f"{self.url}/{name}") if is_remote(self.url) else Path(self.url, name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        """Write a file, unless it is there.

        Raises:
            OSError: It cannot be written.
        """
        draft = f"{_DRAFT}{name}-{secrets.token_hex(4)}"
        if not is_remote(self.url):
            _link_new(Path(self.url, draft), Path(self.url, name), data)
            return
        system, path = _opened(self.url)
        with _as_os_errors():
            if self.url.partition(":")[0] in _CONDITIONAL:
                with suppress(FileExistsError):
                    system.pipe_file(f"{path}/{name}", data, mode="create")
                return
            system.makedirs(path, exist_ok=True)
            system.pipe_file(f"{path}/{draft}", data)
            system.mv(f"{path}/{draft}", f"{path}/{name}")

    def tidy(self) -> None:
        """Remove the drafts that interrupted processes have left, when all is done."""
        for name in filter(lambda name: name.startswith(_DRAFT), self.names()):
            if is_remote(self.url):
                system, path = _opened(self.url)
                system.rm_file(f"{path}/{name}")
            else:
                Path(self.url, name).unlink(missing_ok=True)


def _link_new(draft: Path, file: Path, data: bytes) -> None:
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(draft, "xb") as opened:
            opened.write(data)
            opened.flush()
            # Otherwise a power failure could leave the name, and not the content.
            os.fsync(opened.fileno())
        try:
            os.link(draft, file)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Around calls of fsspec's packages, some of which raise types of their own."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _opened(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises:
        UnavailableError: fsspec, or its package for this storage, is not installed.
        InvalidInputError: There is no such storage.
    """
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{url!r} needs fsspec: {install_command('ocdserve[batch]')}") from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UnavailableError(f"{url!r} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise InvalidInputError(
            f"{url!r} is in no known kind of storage ({error}); name one that fsspec has"
        ) from error
    return system, str(path)
