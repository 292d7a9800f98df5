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
import tempfile
from pathlib import Path

from ocdserve.backend.serve.process.guard import SHARED_MEMORY
from ocdserve.backend.serve.process.processes import ProcessStat

_NAME = re.compile(r"ocdserve-(?P<namespace>\d+)-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}-")


def new_prefix() -> str:
    """A unique prefix that belongs to this process."""
    stat = ProcessStat.read(os.getpid())
    start = stat.start_time if stat else 0
    return f"ocdserve-{_pid_namespace()}-{os.getpid()}-{start}-{secrets.token_hex(4)}-"


def is_stale(name: str) -> bool:
    """Whether a name is of a launcher of this pid namespace that no longer runs."""
    match = _NAME.match(name)
    if match is None or int(match["namespace"]) != _pid_namespace():
        return False
    stat = ProcessStat.read(int(match["pid"]))
    return stat is None or not stat.alive or stat.start_time != int(match["start"])


def private_directory(prefix: str | None = None) -> Path:
    """Make a directory that only this user may enter; a later launcher removes it if this one is killed."""
    return Path(tempfile.mkdtemp(prefix=prefix or new_prefix()))


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
