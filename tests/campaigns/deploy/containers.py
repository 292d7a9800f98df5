# SPDX-License-Identifier: Apache-2.0
"""Containers under runc with the limits of docker/compose.yaml: read-only, without capabilities, of a numeric user."""

import json
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ocdserve.contract import UnavailableError
from tests.campaigns.clients import Target
from tests.campaigns.deploy.images import output

# runc, because crun needs a host with cgroups of version 2 alone.
PODMAN = ("podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs")
SERVE = ("serve", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
# Podman's defaults are above what a machine without CAP_SYS_RESOURCE allows.
ULIMITS = ("nofile=20000:20000", "nproc=2000:2000")
_CONTAINED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
_READY = re.compile(r"^ocdserve: ready: http://(\S+)\s+grpc://(\S+)\s+http://(\S+)/metrics", re.MULTILINE)
_START_S = 180.0
# Where the files of version 1 and of version 2 lie, and their names.
_CGROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
_MOST_BYTES = ("memory.max_usage_in_bytes", "memory.peak")


@dataclass(frozen=True)
class Size:
    """What a container may use, in the units of podman's options."""

    memory: str = "4g"
    shm: str = "1g"
    tmp: str = "256m"
    pids: int = 4096
    cpus: str = ""


class Container:
    """A container that runs.

    Attributes:
        name: Name of the container.
    """

    def __init__(self, name: str) -> None:
        """Take the name of a container that was started."""
        self.name = name

    def logs(self) -> str:
        """What it has written to both streams."""
        done = subprocess.run([*PODMAN, "logs", self.name], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def wait_ready(self) -> Target:
        """Wait until its server is ready; returns the addresses.

        Raises:
            UnavailableError: It ended, or is not ready in time.
        """
        deadline = time.monotonic() + _START_S
        while not (ready := _READY.search(self.logs())):
            if not self.running or time.monotonic() > deadline:
                raise UnavailableError(f"{self.name} is not ready:\n{self.logs()[-2000:]}")
            time.sleep(0.2)
        return Target(ready[1], ready[2])

    def exec(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command within it."""
        return subprocess.run([*PODMAN, "exec", self.name, *command], capture_output=True, text=True, check=False)

    @property
    def running(self) -> bool:
        """Whether its first process runs."""
        return bool(self._state()["Running"])

    def wait(self, timeout_s: float = 60.0) -> int:
        """Exit code, once it has ended by itself."""
        deadline = time.monotonic() + timeout_s
        while self.running:
            if time.monotonic() > deadline:
                raise UnavailableError(f"{self.name} has not ended in {timeout_s:.0f} s:\n{self.logs()[-2000:]}")
            time.sleep(0.2)
        return int(self._state()["ExitCode"])

    def stop(self, timeout_s: int = 30) -> tuple[float, int]:
        """Stop it with SIGTERM; returns the seconds that took, and the exit code (137: killed at the time limit)."""
        began = time.monotonic()
        output(*PODMAN, "stop", "--time", str(timeout_s), self.name)
        return time.monotonic() - began, int(self._state()["ExitCode"])

    def most_memory(self) -> int:
        """Bytes that it has used at most, shared memory and tmpfs included, as its control group counts."""
        path = self._state()["CgroupPath"].lstrip("/")
        for folder, name in zip(_CGROUPS, _MOST_BYTES, strict=True):
            if (file := folder / path / name).is_file():
                return int(file.read_text())
        raise UnavailableError(f"no control group of {self.name} counts memory: {path}")

    def was_killed_for_memory(self) -> bool:
        """Whether the kernel has ended a process of it at the memory limit."""
        path = self._state()["CgroupPath"].lstrip("/")
        for folder, name in zip(_CGROUPS, ("memory.oom_control", "memory.events"), strict=True):
            if (file := folder / path / name).is_file():
                return not re.search(r"^oom_kill 0$", file.read_text(), re.MULTILINE)
        raise UnavailableError(f"no control group of {self.name} counts memory: {path}")

    def _state(self) -> dict[str, object]:
        state: dict[str, object] = json.loads(output(*PODMAN, "container", "inspect", self.name))[0]["State"]
        return state


@contextmanager
def container(
    image: str, command: Sequence[str] = SERVE, size: Size | None = None, options: Sequence[str] = ()
) -> Iterator[Container]:
    """Run a command of an image on the host's network, contained, until the end of the block.

    Args:
        image: Name of the image.
        command: After the image's entry point.
        size: Limits; None: those of docker/compose.yaml.
        options: More options of `podman run`.
    """
    size = size or Size()
    limits = [f"--memory={size.memory}", f"--memory-swap={size.memory}", f"--pids-limit={size.pids}"]
    limits += [f"--cpus={size.cpus}"] if size.cpus else []
    mounts = [f"--shm-size={size.shm}", f"--tmpfs=/tmp:rw,size={size.tmp},mode=1777"]
    limits += [f"--ulimit={limit}" for limit in ULIMITS]
    run = ["run", "--detach", "--network=host", *_CONTAINED, *limits, *mounts, *options, image, *command]
    name = output(*PODMAN, *run).strip()
    try:
        yield Container(name)
    finally:
        output(*PODMAN, "rm", "--force", "--volumes", name)
