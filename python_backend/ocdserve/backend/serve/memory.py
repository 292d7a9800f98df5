# SPDX-License-Identifier: Apache-2.0
"""Whether a second detector fits into memory next to the one that is served."""

import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from ocdserve.backend.serve.process.processes import PROC, Stub
from ocdserve.contract import UnavailableError

_CGROUP = Path("/sys/fs/cgroup")
_NVIDIA_SMI = ("nvidia-smi", "--format=csv,noheader,nounits")
_NVIDIA_SMI_TIMEOUT_S = 10.0


def check_memory(stubs: Iterable[Stub], gpus: bool) -> None:
    """Raise UnavailableError unless as much memory is free as the processes of a detector use, on GPUs too."""
    pids = [stub.pid for stub in stubs if stub.alive()]
    needed, free = sum(map(used_bytes, pids)), free_bytes()
    if needed > free:
        raise _no_room("memory", needed, free)
    for index, (needed, free) in enumerate(_gpu_bytes(pids) if gpus else ()):
        if needed > free:
            raise _no_room(f"memory of GPU {index}", needed, free)


def used_bytes(pid: int, proc: Path = PROC) -> int:
    """Memory of a process that another one like it would need too: all but mapped files; 0 if it has ended."""
    try:
        text = (proc / str(pid) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * sum(int(kib) for kib in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", text, re.MULTILINE))


def free_bytes(proc: Path = PROC, cgroup: Path = _CGROUP) -> int:
    """Memory that processes here may still use: what the machine has, and what the control group of a container has."""
    available = re.search(r"^MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE)
    free = [1024 * int(available[1])] if available else []
    own = re.search(r"^0::/(.*)$", (proc / "self" / "cgroup").read_text(), re.MULTILINE)
    group = cgroup / (own[1] if own else "")
    try:
        limit, current = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        cache = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        limit = "max"
    if limit != "max":
        free.append(int(limit) - int(current) + (int(cache[1]) if cache else 0))
    return min(free)


def _gpu_bytes(pids: Sequence[int]) -> list[tuple[int, int]]:
    """For each GPU what the processes use of it, and what is free; empty where nvidia-smi does not say it."""
    try:
        gpus = _table("--query-gpu=uuid,memory.used,memory.free")
        applications = _table("--query-compute-apps=gpu_uuid,pid,used_memory")
        # In a container the process ids are those of the host: then all that is used counts.
        known = {(uuid, int(mib)) for uuid, pid, mib in applications if int(pid) in pids}
        return [
            (2**20 * (sum(mib for owner, mib in known if owner == uuid) or int(used)), 2**20 * int(free))
            for uuid, used, free in gpus
        ]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _table(query: str) -> list[list[str]]:
    command = [*_NVIDIA_SMI, query]
    result = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=True)
    return [line.split(", ") for line in result.stdout.splitlines()]


def _no_room(what: str, needed: int, free: int) -> UnavailableError:
    return UnavailableError(
        f"a second detector needs {needed >> 20} MiB of {what} while the first one serves, and {free >> 20} MiB are "
        "free. Free some, or stop the server and start it with the new detector."
    )
