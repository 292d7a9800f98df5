# SPDX-License-Identifier: Apache-2.0
"""HTTP responses, of a server or of a download, that cannot last or grow without end."""

import http.client
import io
import socket
import time
from collections.abc import Callable
from typing import Any


class LimitedResponse(http.client.HTTPResponse):
    """A response that is read until a deadline, header lines included, and up to a number of bytes.

    Args:
        deadline: By the monotonic clock, in seconds; later reads raise TimeoutError.
        most: Largest number of bytes, header lines included.
        too_large: Makes the error for more.
    """

    def __init__(
        self,
        sock: socket.socket,
        *arguments: Any,
        deadline: float,
        most: int,
        too_large: Callable[[], Exception],
        **named: Any,
    ) -> None:
        super().__init__(sock, *arguments, **named)
        self.fp = io.BufferedReader(_LimitedReader(self.fp.detach(), sock, deadline, most, too_large))


class _LimitedReader(io.RawIOBase):
    def __init__(
        self, raw: io.RawIOBase, sock: socket.socket, deadline: float, most: int, too_large: Callable[[], Exception]
    ) -> None:
        self._raw, self._sock, self._deadline, self._left, self._too_large = raw, sock, deadline, most, too_large

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        limit_time(self._sock, self._deadline)
        count = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise self._too_large()
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def limit_time(sock: socket.socket, deadline: float) -> None:
    """Set the socket's timeout to the time left until the deadline; raises TimeoutError if there is none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no time left")
    sock.settimeout(left)
