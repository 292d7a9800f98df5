# SPDX-License-Identifier: Apache-2.0
"""The course of a call, without doing anything: which steps follow from which answers.

`Calls` is shared by `TextDetector` and `AsyncTextDetector`. Its methods are generators: they yield a `Step`, the facade
performs it, with or without `await`, and sends the answer back or throws the `OcdserveError` in. What they return is
the result of the call. Attempts, pauses, the choice of the server, shared memory and events are all decided here.
"""

import math
import random
import secrets
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

from numpy.typing import NDArray

from ocdserve.client._endpoint import Endpoint
from ocdserve.client._errors import DeadlineError
from ocdserve.client._options import Compression, Retry, SharedMemory, Timeout, Tls
from ocdserve.client._sansio.balancer import Balancer
from ocdserve.client._sansio.hooks import ErrorEvent, Hooks, RequestEvent, ResponseEvent
from ocdserve.client._wire.codec import InferRequest, SharedRegion
from ocdserve.client._wire.regions import Region, RegionPool
from ocdserve.contract import InvalidInputError, OcdserveError, UnavailableError

__all__ = ["Calls", "Pause", "Probe", "Register", "Send", "Settings", "Step", "Steps", "Unregister", "new_request_id"]

T = TypeVar("T")
Tensors: TypeAlias = Mapping[str, NDArray[Any]]

# A probe or a registration is answered at once by a server that works.
_CONTROL_S = 5.0
# What is asked too late has so much time, for no library takes 0.
_SHORTEST_S = 0.001
# Triton's words for a region that it does not know (it was started again), and for one that it knows already.
_UNKNOWN_REGION = "Unable to find shared memory region"
_KNOWN_REGION = "already in manager"


@dataclass(frozen=True)
class Settings:
    """What a detector was made with.

    Attributes:
        endpoints: The servers.
        timeout: Limits of time.
        retry: When attempts are repeated.
        tls: Certificates.
        headers: Sent with every request, names in lower case.
        compression: Of requests and answers; None: none.
        shared_memory: How raw pixels travel; None: through the connection.
        hooks: Who is told of attempts.
    """

    endpoints: tuple[Endpoint, ...]
    timeout: Timeout = field(default_factory=Timeout)
    retry: Retry = field(default_factory=Retry)
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    compression: Compression | None = None
    shared_memory: SharedMemory | None = None
    hooks: Hooks = field(default_factory=Hooks)


@dataclass(frozen=True)
class Send:
    """Send a request to a server; answered by its output tensors."""

    server: int
    request: InferRequest


@dataclass(frozen=True)
class Probe:
    """Ask a server whether a model is ready; answered by yes or no."""

    server: int
    model: str
    timeout_s: float


@dataclass(frozen=True)
class Register:
    """Tell a server of shared memory."""

    server: int
    region: Region
    timeout_s: float


@dataclass(frozen=True)
class Unregister:
    """Have a server forget shared memory."""

    server: int
    region: Region
    timeout_s: float


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


Step: TypeAlias = Send | Probe | Register | Unregister | Pause
Steps: TypeAlias = Generator[Step, Any, T]


class Calls:
    """Decides the steps of every call of one detector. Safe to use from several threads."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Start with all servers in use.

        Args:
            settings: What the detector was made with.
            clock: Monotonic seconds.
            chance: Random numbers from 0 to 1.
        """
        self.settings = settings
        self.balancer = Balancer(len(settings.endpoints))
        self._clock = clock
        self._chance = chance
        memory = settings.shared_memory
        self._pools = [RegionPool(memory) for _ in settings.endpoints] if memory else None

    def infer(self, request: InferRequest) -> Steps[Tensors]:
        """One request, with as many attempts as the settings and the limit of time allow.

        Raises:
            OcdserveError: What the last attempt failed of.
        """
        retry, hooks = self.settings.retry, self.settings.hooks
        deadline = self._clock() + self.settings.timeout.total
        tried: set[int] = set()
        rounds, attempt = 1, 0
        while True:
            attempt += 1
            yield from self._probe_due(request.model, deadline)
            left = deadline - self._clock()
            if left <= 0:
                raise self._too_late(request)
            server = self.balancer.pick(self._clock(), tried)
            sent = replace(request, timeout_s=min(left, self.settings.timeout.read or left))
            event: Any = None
            failure: OcdserveError | None = None
            settled = False
            try:
                event = self._announce(sent, server, attempt)
                begin = self._clock()
                try:
                    tensors = yield from self._send(server, sent, deadline)
                except OcdserveError as error:
                    failure = error
                settled = True
            finally:
                if settled:
                    self.balancer.finished(server, not _blames_server(failure), self._clock())
                else:
                    self.balancer.abandoned(server)
            ms = (self._clock() - begin) * 1000
            if failure is None:
                if hooks.on_response:
                    hooks.on_response(ResponseEvent(event, ms))
                return tensors
            failure.request_id = request.request_id or None
            tried.add(server)
            pause = None
            if failure.retryable and attempt < retry.attempts:
                pause = 0.0
                if not self._others(tried):
                    pause = retry.pause_s(rounds, self._chance())
                    rounds += 1
                    tried.clear()
                if self._clock() + pause >= deadline:
                    pause = None
            if hooks.on_error:
                hooks.on_error(ErrorEvent(event, ms, failure, pause))
            if pause is None:
                raise failure
            if pause > 0:
                yield Pause(pause)

    def release(self) -> Steps[None]:
        """Give all shared memory back, whether or not the servers still answer."""
        drained = [(server, region) for server, pool in enumerate(self._pools or ()) for region in pool.drain()]
        try:
            while drained:
                yield from self._discard(*drained.pop())
        finally:
            # Where closing is cut short, as by cancellation, the servers are not told, but no memory is left.
            for _, region in drained:
                region.memory.destroy()

    def _send(self, server: int, request: InferRequest, deadline: float) -> Steps[Tensors]:
        if self._pools is None or request.datatype == "BYTES":
            tensors: Tensors = yield Send(server, request)
            return tensors
        return (yield from self._send_shared(server, request, self._pools[server], deadline))

    def _send_shared(self, server: int, request: InferRequest, pool: RegionPool, deadline: float) -> Steps[Tensors]:
        tensors: Tensors
        region, retired = pool.lease(request.nbytes)
        try:
            if retired is not None:
                yield from self._discard(server, retired, deadline)
            if region is None:
                tensors = yield Send(server, request)
                return tensors
            region.memory.write(request.array)
            shared = replace(request, region=SharedRegion(region.name, request.nbytes))
            yield from self._register(server, region, deadline)
            try:
                tensors = yield Send(server, self._shortened(shared, deadline))
                return tensors
            except OcdserveError as error:
                if _UNKNOWN_REGION not in str(error):
                    raise
            pool.forget_registrations()
            yield from self._register(server, region, deadline)
            tensors = yield Send(server, self._shortened(shared, deadline))
            return tensors
        finally:
            if region is not None:
                pool.give_back(region)

    def _shortened(self, request: InferRequest, deadline: float) -> InferRequest:
        """The request with no more time than is left."""
        return replace(request, timeout_s=min(request.timeout_s, self._left(deadline)))

    def _left(self, deadline: float) -> float:
        """Seconds until the deadline, as a limit of time: never 0."""
        return max(deadline - self._clock(), _SHORTEST_S)

    def _register(self, server: int, region: Region, deadline: float) -> Steps[None]:
        if region.registered:
            return
        try:
            yield Register(server, region, min(_CONTROL_S, self._left(deadline)))
        except UnavailableError:
            raise
        except OcdserveError as error:
            if _KNOWN_REGION not in str(error):
                url = self.settings.endpoints[server].url
                raise InvalidInputError(
                    f"{url} cannot open this client's shared memory: {error}. It must run on this machine and see the "
                    "same /dev/shm (or GPU); else leave out `shared_memory`."
                ) from error
        region.registered = True

    def _discard(self, server: int, region: Region, deadline: float = math.inf) -> Steps[None]:
        try:
            if region.registered:
                yield Unregister(server, region, min(_CONTROL_S, self._left(deadline)))
        except OcdserveError:
            # A server that is gone has forgotten the region with everything else.
            pass
        finally:
            region.memory.destroy()

    def _probe_due(self, model: str, deadline: float) -> Steps[None]:
        """Ask one server that was left out, if its time has come, whether it is back."""
        server = self.balancer.due(self._clock())
        if server is None:
            return
        healthy = False
        try:
            # Half of the time at most: the call itself goes to a server that works.
            limit = min(_CONTROL_S, self.settings.timeout.connect, self._left(deadline) / 2)
            healthy = yield Probe(server, model, limit)
        except OcdserveError:
            pass
        finally:
            self.balancer.probed(server, healthy, self._clock())

    def _others(self, tried: set[int]) -> bool:
        """Whether a server in use has not been tried yet."""
        out = self.balancer.left_out()
        return any(one not in tried and one not in out for one in range(len(self.settings.endpoints)))

    def _announce(self, request: InferRequest, server: int, attempt: int) -> Any:
        hooks = self.settings.hooks
        if not (hooks.on_request or hooks.on_response or hooks.on_error):
            return None
        event = RequestEvent(
            request.request_id,
            self.settings.endpoints[server].url,
            request.model,
            len(request),
            request.nbytes,
            attempt,
        )
        if hooks.on_request:
            hooks.on_request(event)
        return event

    def _too_late(self, request: InferRequest) -> DeadlineError:
        error = DeadlineError(
            f"no server answered within {self.settings.timeout.total:g} s. Try again later, or allow more time with "
            "timeout_s."
        )
        error.request_id = request.request_id or None
        return error


def new_request_id() -> str:
    """A random name for a request: 16 hex digits."""
    return secrets.token_hex(8)


def _blames_server(error: OcdserveError | None) -> bool:
    return error is not None and (isinstance(error, UnavailableError) or error.retryable)
