# SPDX-License-Identifier: Apache-2.0
"""The engine Ray: actors that do whole shards, on this machine or on a cluster.

An actor reads its inputs, detects and writes its file itself, so nothing but progress travels through Ray. It reserves
the CPUs of its network and of its readers: an engine whose readers are tasks of their own waits without end where the
actors have taken all CPUs.
"""

import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ocdserve.batch.job import Shard
from ocdserve.batch.work import MOST_TRIES, Step, Work
from ocdserve.contract import InvalidInputError, OcdserveError, UnavailableError, check_count, install_command

__all__ = ["RayOptions", "on_ray"]

# Longest call of Ray in seconds: Ctrl-C takes effect after it.
_WAIT_S = 1.0


@dataclass(frozen=True)
class RayOptions:
    """Where and with how much Ray does a job.

    Attributes:
        address: Cluster, such as `auto` or `ray://HOST:10001`; None: what RAY_ADDRESS names, else this machine.
        workers: Actors; None: as many as the CPUs, and with GPUs these, of the cluster hold.
        gpus: GPUs of an actor, 0.25 for four actors on one; 0: they use none.
        stall_s: Seconds without any progress that end the job.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float = 0.0
    stall_s: float = 600.0

    def __post_init__(self) -> None:
        """Raise InvalidInputError for options that are not valid."""
        if self.workers is not None:
            check_count("workers", self.workers)
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise InvalidInputError(f"gpus must be a fraction of one GPU or a whole number; got {self.gpus!r}")
        if not self.stall_s > 0:
            raise InvalidInputError(f"stall_s must be above 0 seconds; got {self.stall_s!r}")


class _Worker:
    """The actor."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def load(self) -> None:
        self._work.detect.load()

    def do(self, shard: Shard) -> Iterator[Step]:
        yield from self._work.do(shard)


def on_ray(work: Work, shards: Sequence[Shard], options: RayOptions) -> Generator[Step, None, None]:
    """Do the shards in actors; one whose worker has died, or whose storage failed, is done again by another.

    Raises:
        OcdserveError: The detector cannot be loaded, or fails.
        UnavailableError: Ray is not installed or not reachable, has no room for an actor, or makes no progress.
    """
    try:
        import ray
    except ImportError as error:
        raise UnavailableError(f"--engine ray needs Ray: {install_command('ocdserve[ray]')} ({error})") from error
    with _connected(ray, options.address):
        cpus = float(work.detect.threads or 1)
        count = _count_of(ray, cpus, options, len(shards))
        pool = _Pool(ray, work, list(shards), cpus, options)
        for _ in range(count):
            pool.start()
        yield from pool.steps()


class _Pool:
    """The actors of a job, and what each of them does."""

    def __init__(self, ray: Any, work: Work, shards: list[Shard], cpus: float, options: RayOptions) -> None:
        self._ray = ray
        self._left = shards[::-1]
        self._actor = ray.remote(_Worker).options(num_cpus=cpus, num_gpus=options.gpus, max_restarts=0)
        self._work = ray.put(work)
        self._cpus, self._options = cpus, options
        self._tries: dict[Shard | None, int] = {}
        # By what Ray is waited for with: the actor, and its shard; None while it loads the detector.
        self._busy: dict[Any, tuple[Any, Shard | None]] = {}

    def start(self) -> None:
        actor = self._actor.remote(self._work)
        self._busy[actor.load.remote()] = (actor, None)

    def steps(self) -> Iterator[Step]:
        last = time.monotonic()
        while self._left or any(shard for _, shard in self._busy.values()):
            ready, _ = self._ray.wait(list(self._busy), timeout=_WAIT_S)
            if ready:
                last = time.monotonic()
                if step := self._take(ready[0]):
                    yield step
            elif time.monotonic() - last > self._options.stall_s:
                raise UnavailableError(self._stalled())

    def _take(self, reference: Any) -> Step | None:
        """The next step of what is ready; an actor that has nothing to do gets the next shard."""
        actor, shard = self._busy[reference]
        errors = self._ray.exceptions
        step: Step | None = None
        try:
            if shard is None:
                self._ray.get(reference)
            else:
                step = self._ray.get(next(reference))
                if not step.is_done:
                    return step
        except errors.RayActorError as error:
            del self._busy[reference]
            self.start()
            return self._again(shard, f"its worker died: {' '.join(str(error).split())}")
        except errors.RayTaskError as error:
            cause = error.cause
            if not isinstance(cause, OSError):
                raise (cause if isinstance(cause, OcdserveError) else error) from None
            step = self._again(shard, f"{type(cause).__name__}: {cause}")
        del self._busy[reference]
        if self._left:
            following = self._left.pop()
            self._busy[actor.do.options(num_returns="streaming").remote(following)] = (actor, following)
        return step

    def _again(self, shard: Shard | None, why: str) -> Step | None:
        tries = self._tries[shard] = self._tries.get(shard, 0) + 1
        if shard is None and tries > MOST_TRIES * max(1, len(self._busy)):
            raise UnavailableError(f"workers die before they have loaded the detector; the last one: {why}")
        if shard is None or tries < MOST_TRIES:
            self._left += [] if shard is None else [shard]
            return None
        return Step(shard, failure=why)

    def _stalled(self) -> str:
        total, free = self._ray.cluster_resources(), self._ray.available_resources()
        loading = sum(shard is None for _, shard in self._busy.values())
        has = ", ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s free" for name in ("CPU", "GPU"))
        return (
            f"no progress for {self._options.stall_s:g} s: of {len(self._busy)} workers of {self._cpus:g} CPUs and "
            f"{self._options.gpus:g} GPUs each, {loading} wait for these or load the detector; the cluster has {has}. "
            "Ask for fewer (--workers, --threads), or wait longer with --stall-s"
        )


def _count_of(ray: Any, cpus: float, options: RayOptions, shards: int) -> int:
    """How many actors to start.

    Raises:
        UnavailableError: Not one fits into the cluster.
    """
    total = ray.cluster_resources()
    needs = {"CPU": cpus, "GPU": options.gpus}
    fits = min(int(total.get(name, 0) / need + 1e-9) for name, need in needs.items() if need)
    if not fits and not options.workers:
        has = ", ".join(f"{total.get(name, 0):g} {name}s" for name in needs)
        raise UnavailableError(
            f"a worker needs {cpus:g} CPUs and {options.gpus:g} GPUs, and the cluster has {has}; ask for fewer "
            "(--threads), or name --workers where the cluster grows on demand"
        )
    return min(options.workers or fits, max(1, shards))


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to a cluster, or one of this machine's own; one that the caller has opened is used, and stays.

    Raises:
        UnavailableError: The cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"include_dashboard": False}
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise UnavailableError(
            f"Ray cannot be reached at {address or 'this machine'!r} ({' '.join(str(error).split())}); start it, or "
            "correct --address"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
