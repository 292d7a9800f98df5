# SPDX-License-Identifier: Apache-2.0
"""Load balancing over several servers. Pure state: time is passed in, nothing is sent."""

import threading
from collections.abc import Collection

# A server is left out after this many consecutive failures, and probed after the first pause, which doubles.
_FAILURES = 3
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0


class Balancer:
    """Fewest attempts in flight first, round-robin among equals; failing servers are left out for a while.

    A server that was left out is probed before it gets attempts again: `due` returns it once its pause is over, to one
    caller at a time. Thread-safe.
    """

    def __init__(self, servers: int) -> None:
        """Start with all servers in use.

        Args:
            servers: Number of servers; they are identified by index, from 0.
        """
        self._servers = [_Server() for _ in range(servers)]
        self._turn = 0
        self._lock = threading.Lock()

    def pick(self, now: float, avoid: Collection[int] = ()) -> int:
        """The server for the next attempt, which counts as in flight until `finished`.

        Args:
            now: Seconds on a monotonic clock.
            avoid: Servers that failed in this call; chosen only if no other is left.
        """
        with self._lock:
            numbers = range(len(self._servers))
            healthy = [number for number in numbers if self._servers[number].out_until is None]
            # If all are left out, try one that may be back: there is nothing to lose.
            choice = (
                [number for number in healthy if number not in avoid]
                or [number for number in numbers if number not in avoid]
                or healthy
                or list(numbers)
            )
            number = min(
                choice, key=lambda one: (self._servers[one].under_way, (one - self._turn) % len(self._servers))
            )
            self._turn = number + 1
            self._servers[number].under_way += 1
            return number

    def due(self, now: float) -> int | None:
        """A server whose pause is over and that nobody is probing; the caller probes it and reports to `probed`."""
        with self._lock:
            for number, server in enumerate(self._servers):
                if server.out_until is not None and now >= server.out_until and not server.probing:
                    server.probing = True
                    return number
            return None

    def probed(self, number: int, healthy: bool, now: float) -> None:
        """Report the result of a probe."""
        with self._lock:
            server = self._servers[number]
            server.probing = False
            if healthy:
                server.recover()
            else:
                server.leave_out(now)

    def finished(self, number: int, succeeded: bool, now: float) -> None:
        """Report the result of an attempt.

        Args:
            number: The server.
            succeeded: Whether the server works; also true of a response that refuses bad input.
            now: Seconds on the clock of `pick`.
        """
        with self._lock:
            server = self._servers[number]
            server.under_way -= 1
            if succeeded:
                server.recover()
                return
            server.failures += 1
            if server.failures >= _FAILURES and server.out_until is None and len(self._servers) > 1:
                server.leave_out(now)

    def abandoned(self, number: int) -> None:
        """Report that an attempt ended without a result, as by cancellation."""
        with self._lock:
            self._servers[number].under_way -= 1

    def left_out(self) -> tuple[int, ...]:
        """Servers that currently get no attempts."""
        with self._lock:
            return tuple(number for number, server in enumerate(self._servers) if server.out_until is not None)

    def under_way(self) -> tuple[int, ...]:
        """Attempts in flight, per server."""
        with self._lock:
            return tuple(server.under_way for server in self._servers)


class _Server:
    def __init__(self) -> None:
        self.under_way = 0
        self.failures = 0
        self.out_until: float | None = None
        self.probing = False
        self._pause_s = _FIRST_PAUSE_S

    def recover(self) -> None:
        self.failures = 0
        self.out_until = None
        self._pause_s = _FIRST_PAUSE_S

    def leave_out(self, now: float) -> None:
        self.out_until = now + self._pause_s
        self._pause_s = min(_LONGEST_PAUSE_S, self._pause_s * 2)
