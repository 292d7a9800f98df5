# SPDX-License-Identifier: Apache-2.0
"""Sans-I/O request state machine: attempts, pauses, the choice of the server, shared memory and events.

Methods of `RequestMachine` are generators: they yield a `Step`, receive its result or its `OcdserveError`, and return
the result of the call. `SyncClient` and `AsyncClient` perform the steps, with or without `await`.
"""

import math
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from numpy.typing import NDArray

from ocdserve.client._errors import AccessError, DeadlineError
from ocdserve.client._health import Capabilities, ServerHealth, capabilities_from
from ocdserve.client._sansio.balancer import Balancer
from ocdserve.client._sansio.hooks import ErrorEvent, RequestEvent, ResponseEvent
from ocdserve.client._sansio.settings import Settings
from ocdserve.client._sansio.steps import Describe, Pause, Probe, Register, Send, Steps, Unregister
from ocdserve.client._wire.codec import InferRequest, SharedRegion
from ocdserve.client._wire.regions import Region, RegionPool
from ocdserve.contract import InvalidInputError, OcdserveError, UnavailableError

Tensors: TypeAlias = Mapping[str, NDArray[Any]]

# A working server answers a probe or a registration at once.
_CONTROL_S = 5.0
# Shortest time limit, because no library accepts 0.
_SHORTEST_S = 0.001
# Triton's message for an unknown region (after a restart), and for one that is registered already.
_UNKNOWN_REGION = "Unable to find shared memory region"
_KNOWN_REGION = "already in manager"
# Triton's message for a model that it does not have; while one is reloaded, it says another.
_UNKNOWN_MODEL = "' is not found"


class RequestMachine:
    """Decides the steps of every call of one client. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Start with all servers in use.

        Args:
            settings: The client's settings.
            clock: Monotonic seconds.
            chance: Random numbers from 0 to 1.
        """
        self.settings = settings
        self.balancer = Balancer(len(settings.endpoints))
        self._clock = clock
        self._chance = chance
        memory = settings.shared_memory
        self._pools = [RegionPool(memory) for _ in settings.endpoints] if memory else None

    def infer(self, request: InferRequest, remedy: str = "") -> Steps[Tensors]:
        """One request, with as many attempts as the settings and the time limit allow.

        Args:
            request: The request.
            remedy: For a server that does not have the model; "": there is none.

        Returns:
            Output tensors by name.

        Raises:
            OcdserveError: The error of the last attempt.
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
            if failure.retryable and (retry.attempts is None or attempt < retry.attempts):
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
                raise _with_remedy(failure, request.model, remedy)
            if pause > 0:
                yield Pause(pause)

    def release(self) -> Steps[None]:
        """Release all shared memory, whether or not the servers still answer."""
        drained = [(server, region) for server, pool in enumerate(self._pools or ()) for region in pool.drain()]
        try:
            while drained:
                yield from self._discard(*drained.pop())
        finally:
            # If closing is cancelled, regions stay registered with the servers, but no memory is leaked.
            for _, region in drained:
                region.memory.destroy()

    def capabilities(self, models: Iterable[str]) -> Steps[Capabilities]:
        """Metadata of the first server that answers, and of those of `models` that it has loaded.

        Raises:
            UnavailableError: No server answers.
        """
        failure: OcdserveError | None = None
        for server, endpoint in enumerate(self.settings.endpoints):
            try:
                metadata = yield Describe(server, None, self.settings.control_s)
                described = []
                for model in models:
                    try:
                        described.append((yield Describe(server, model, self.settings.control_s)))
                    except OcdserveError:
                        # It is not loaded.
                        continue
                return capabilities_from(endpoint.url, metadata, described)
            except UnavailableError as error:
                failure = error
        raise failure or UnavailableError("no server")

    def health(self, model: str, remedy: str = "") -> list[Steps[ServerHealth]]:
        """The readiness of a model, one call per server; a server that does not answer is reported, not raised.

        Args:
            model: The model.
            remedy: For a server that is up without it; "": there is none.
        """
        return [self._health(server, model, remedy) for server in range(len(self.settings.endpoints))]

    def _health(self, server: int, model: str, remedy: str) -> Steps[ServerHealth]:
        left_out, under_way = server in self.balancer.left_out(), self.balancer.under_way()[server]
        try:
            ready = yield Probe(server, model, self.settings.control_s)
            hint = f"; if it is not served, {remedy}" if remedy else ""
            reason = None if ready else f"model {model!r} is not ready{hint}"
        except OcdserveError as error:
            ready, reason = False, str(error)
        return ServerHealth(self.settings.endpoints[server].url, ready, left_out, under_way, reason)

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
        """The request, with its time limit cut to what is left."""
        return replace(request, timeout_s=min(request.timeout_s, self._left(deadline)))

    def _left(self, deadline: float) -> float:
        """Seconds until the deadline, as a time limit: never 0."""
        return max(deadline - self._clock(), _SHORTEST_S)

    def _register(self, server: int, region: Region, deadline: float) -> Steps[None]:
        if region.registered:
            return
        url = self.settings.endpoints[server].url
        try:
            yield Register(server, region, min(_CONTROL_S, self._left(deadline)))
        except UnavailableError:
            raise
        except AccessError as error:
            raise AccessError(
                f"{url} refuses this client's shared memory. Start it with `ocdserve serve --shared-memory FILE`, and "
                "pass SharedMemory(token=Path(FILE)); else leave out `shared_memory`."
            ) from error
        except OcdserveError as error:
            if _KNOWN_REGION not in str(error):
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
            # A server that is gone has lost the registration as well.
            pass
        finally:
            region.memory.destroy()

    def _probe_due(self, model: str, deadline: float) -> Steps[None]:
        """Probe one server that was left out, if its pause is over."""
        server = self.balancer.due(self._clock())
        if server is None:
            return
        healthy = False
        try:
            # At most half of the time: the call itself still needs a working server.
            limit = min(_CONTROL_S, self.settings.timeout.connect, self._left(deadline) / 2)
            healthy = yield Probe(server, model, limit)
        except OcdserveError:
            pass
        finally:
            self.balancer.probed(server, healthy, self._clock())

    def _others(self, tried: set[int]) -> bool:
        """Whether a server that is not left out has not been tried yet."""
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
    """A random request id of 16 hex digits."""
    return secrets.token_hex(8)


def _with_remedy(error: OcdserveError, model: str, remedy: str) -> OcdserveError:
    """The error; one about a model that the server does not have says what to do."""
    if not remedy or _UNKNOWN_MODEL not in str(error):
        return error
    lacking = UnavailableError(f"{error.url} does not read text, because it serves no model {model!r}: {remedy}")
    lacking.url, lacking.status, lacking.request_id = error.url, error.status, error.request_id
    lacking.__cause__ = error
    return lacking


def _blames_server(error: OcdserveError | None) -> bool:
    return error is not None and (isinstance(error, UnavailableError) or error.retryable)
