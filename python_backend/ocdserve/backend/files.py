# SPDX-License-Identifier: Apache-2.0
"""Atomic writing of files and folders, room for them, and the folder of caches."""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ocdserve.contract import UnavailableError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file in one step: an interruption leaves either the old file or the new one.

    A link stays, and the file that it names is replaced. What is not a regular file, such as a pipe, is written to
    directly; so is /dev/stdout, which is a link to whatever the shell has opened.
    """
    if path.exists() and (not path.is_file() or path.absolute().parts[1] in ("dev", "proc")):
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    draft = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        # Not tempfile, whose files are readable by their owner only.
        with open(draft, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        error.filename, error.filename2 = str(path), None
        raise
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def draft_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, removed at the end unless `install_folder` has moved it."""
    parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def install_folder(draft: Path, target: Path) -> None:
    """Rename a draft to its final name in one step, after its files have reached the disk."""
    for path in draft.iterdir():
        # Otherwise a power failure could leave the folder's new name, but not its content.
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    draft.chmod(0o755)
    os.rename(draft, target)


def link_or_copy(source: str, target: str) -> str:
    """Give a file a second name, for `shutil.copytree`; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def check_space(folder: Path, needed: int, purpose: str, remedy: str) -> None:
    """Raise UnavailableError unless the file system of a folder has so many bytes left; what cannot be asked has."""
    with suppress(OSError):
        usage = shutil.disk_usage(folder)
        # A tmpfs without a limit has the size 0.
        if usage.total and usage.free < needed:
            raise UnavailableError(
                f"{folder} has {usage.free:,} bytes free, too few for {purpose} ({needed:,}): free some, or {remedy}"
            )


def cache_folder(name: str = "", variable: str = "") -> Path:
    """A folder for cached files: what an environment variable names, else `ocdserve/<name>` in the user's cache."""
    named = os.environ.get(variable)
    if named:
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "ocdserve" / name
    except RuntimeError:  # a container's user without an entry in /etc/passwd has no home
        return _own_temporary_folder() / name


def _own_temporary_folder() -> Path:
    """A folder of this user in the directory of temporary files, which anybody may have made under the expected name.

    Raises:
        UnavailableError: Another user made it, or may write to it.
    """
    folder = Path(tempfile.gettempdir()) / f"ocdserve-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700)
    try:
        found = folder.lstat()
    except OSError:  # it cannot be made, nor can what it would hold
        return folder
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UnavailableError(
            f"the cache folder {str(folder)!r} is not this user's alone, so its files cannot be trusted. Remove it, or "
            "set XDG_CACHE_HOME."
        )
    return folder
