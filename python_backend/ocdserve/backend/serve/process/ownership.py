# SPDX-License-Identifier: Apache-2.0
"""Names that identify the launcher that owns a shared memory segment or a temporary directory.

`ocdserve-<pid namespace>-<pid>-<start time>-<random>-`: a name whose launcher no longer runs may be removed
by any later launcher of the same pid namespace. The start time (clock ticks since boot) distinguishes a reused
pid; the namespace keeps containers that share /dev/shm from removing each other's segments.
"""

import os
import re
import secrets
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ocdserve.backend.serve.process.guard import SHARED_MEMORY
from ocdserve.backend.serve.process.processes import ProcessStat
from ocdserve.contract import UnavailableError

_NAME = re.compile(r"ocdserve-(?P<namespace>\d+)-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}-")


def new_prefix() -> str:
    """A unique prefix that belongs to this process."""
    own = ProcessStat.read(os.getpid())
    start = own.start_time if own else 0
    return f"ocdserve-{_pid_namespace()}-{os.getpid()}-{start}-{secrets.token_hex(4)}-"


def is_stale(name: str) -> bool:
    """Whether a name is of a launcher of this pid namespace that no longer runs."""
    match = _NAME.match(name)
    return match is not None and int(match["namespace"]) == _pid_namespace() and launcher_of(name) is None


def launcher_of(name: str) -> int | None:
    """Process id of the launcher that a name belongs to; None if it does not run, or not in this pid namespace."""
    match = _NAME.match(name)
    if match is None or int(match["namespace"]) != _pid_namespace():
        return None
    owner = ProcessStat.read(int(match["pid"]))
    return owner.pid if owner is not None and owner.alive and owner.start_time == int(match["start"]) else None


def private_directory(prefix: str | None = None) -> Path:
    """Make a directory that only this user may enter; a later launcher removes it if this one is killed.

    Raises:
        UnavailableError: There is no directory of temporary files, or no room in it.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=prefix or new_prefix()))
    except OSError as error:
        # Python's own message lists where it has tried to write a file.
        raise UnavailableError(
            f"no temporary directory can be made ({error.strerror}): free some space, or set TMPDIR to a folder that "
            "you may write to"
        ) from error


def shared_directory(parent: int) -> Path | None:
    """A directory that all children of a process make for themselves, and only this user may enter.

    `remove_stale` removes it when that process no longer runs. None: it cannot be made, or is another's.
    """
    found = ProcessStat.read(parent)
    if found is None:
        return None
    name = f"ocdserve-{_pid_namespace()}-{parent}-{found.start_time}-{0:08x}-steps"
    directory = Path(tempfile.gettempdir()) / name
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        status = directory.lstat()
    except OSError:
        return None
    is_private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    return directory if is_private and status.st_uid == os.getuid() else None


def remove_stale(segments: Path = SHARED_MEMORY, directories: Path | None = None) -> list[str]:
    """Remove what killed launchers of this user have left behind; returns the names."""
    removed = []
    for parent in (segments, directories or Path(tempfile.gettempdir())):
        for entry in sorted(parent.glob("ocdserve-*")):
            if is_stale(entry.name) and entry.lstat().st_uid == os.getuid():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
                removed.append(entry.name)
    return removed


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def write_secret(path: Path, secret: str, purpose: str) -> None:
    """Write a secret to a file that only this user can read.

    Raises:
        UnavailableError: It cannot be written; the message names the purpose.
    """
    try:
        # A new file in place of an old one: of that, another user may be the owner.
        descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secret)
        os.replace(draft, path)
    except OSError as error:
        raise UnavailableError(
            f"cannot write {purpose} to {str(path)!r}: {error.strerror}. Name a file in a folder that exists and that "
            "you may write to."
        ) from error
