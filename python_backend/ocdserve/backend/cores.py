# SPDX-License-Identifier: Apache-2.0
"""How many cores this process may use: by its affinity, and by the CPU time that its control groups grant.

A container with a quota sees all cores of its machine. More threads than the quota are stopped for the rest of each
period (100 ms), all at once.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def core_count() -> int:
    """Cores that this process may use, at least 1; a part of a core counts as one."""
    count, quota = len(os.sched_getaffinity(0)), cpu_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def cpu_quota(groups: Path = _GROUPS, mount: Path = _MOUNT) -> float | None:
    """CPU time that the control groups grant, in cores; None for no limit.

    Args:
        groups: File that names the groups of this process.
        mount: Where their files are: of version 2, or of version 1 in a folder per controller.
    """
    found = [limit for folder in _folders(groups, mount) if (limit := _limit(folder)) is not None]
    return min(found, default=None)


def _folders(groups: Path, mount: Path) -> Iterator[Path]:
    """The folders of the groups, and of those above them, whose limits hold too."""
    with suppress(OSError):
        for line in groups.read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                roots = [mount]
            elif "cpu" in controllers.split(","):
                roots = [mount / name for name in ("cpu", controllers)]
            else:
                continue
            # In a container the path may be the host's, while only the container's own group is mounted, as the root.
            group = PurePosixPath(path.lstrip("/"))
            for root in roots:
                yield from (root / folder for folder in (group, *group.parents))


def _limit(folder: Path) -> float | None:
    """The limit of one group, in cores: its `cpu.max`, or `cpu.cfs_quota_us` and `cpu.cfs_period_us`."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        if (both := folder / "cpu.max").exists():
            quota, period = both.read_text("ascii").split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period"))
        # "max" and -1 mean no limit.
        return int(quota) / int(period) if int(quota) > 0 else None
    return None
