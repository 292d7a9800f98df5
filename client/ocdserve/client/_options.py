# SPDX-License-Identifier: Apache-2.0
"""Options of the client: small frozen dataclasses, validated on construction."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from ocdserve.contract import InvalidInputError, check_count, check_seconds, is_number

MAX_RESPONSE_BYTES = 256 * 2**20

Compression: TypeAlias = Literal["gzip", "deflate"]


@dataclass(frozen=True)
class Timeout:
    """Time limits, in seconds.

    Attributes:
        total: Limit of one call with all its attempts and the pauses between them.
        connect: Limit of opening a connection.
        read: Limit of waiting for the response to one attempt; None: only `total` applies.

    Raises:
        InvalidInputError: A limit is not a finite number above 0.
    """

    total: float = 60.0
    connect: float = 5.0
    read: float | None = None

    def __post_init__(self) -> None:
        check_seconds("Timeout.total", self.total)
        check_seconds("Timeout.connect", self.connect)
        if self.read is not None:
            check_seconds("Timeout.read", self.read)


@dataclass(frozen=True)
class Retry:
    """When and how often a failed attempt is repeated. `Retry(attempts=1)` never repeats one.

    Only attempts are repeated that found no server or an overloaded one (UNAVAILABLE, HTTP 429, 502 and 503), lost
    their connection, met a dead model process (INTERNAL, `Stub process ... is not healthy`) or a model that is being
    reloaded (NOT_FOUND, `no available versions`). Bad input and timeouts are never retried.

    Attributes:
        attempts: Maximum attempts of a call, the first one included; None: as many as `Timeout.total` allows, since a
            restart of a server takes longer than a few attempts.
        backoff_s: Pause before the second attempt, in seconds; it doubles with each further one.
        longest_s: Longest pause, in seconds.
        jitter: Random share of a pause, 0 to 1, so that clients do not retry in lockstep.

    Raises:
        InvalidInputError: A value is out of range.
    """

    attempts: int | None = None
    backoff_s: float = 0.2
    longest_s: float = 5.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if self.attempts is not None:
            check_count("Retry.attempts", self.attempts)
        check_seconds("Retry.backoff_s", self.backoff_s)
        check_seconds("Retry.longest_s", self.longest_s)
        if not is_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise InvalidInputError(f"Retry.jitter must be a number from 0 to 1; got {self.jitter!r}")

    def pause_s(self, attempt: int, chance: float) -> float:
        """Seconds to wait after a failed attempt.

        Args:
            attempt: Number of the attempt that failed, from 1.
            chance: A random number from 0 to 1.
        """
        # The exponent is bounded, because 2.0 ** 1024 is an error.
        full = min(self.longest_s, self.backoff_s * 2.0 ** min(attempt - 1, 64))
        return full * (1 - self.jitter * chance)


@dataclass(frozen=True)
class Tls:
    """Certificates for grpcs:// and https://, as PEM files.

    Attributes:
        ca: Certificates to trust; None: those of the system (HTTP) or of the gRPC library.
        cert: This client's certificate chain, for servers that require one (mutual TLS).
        key: The private key of `cert`.

    Raises:
        InvalidInputError: Only one of `cert` and `key` is given, or a file cannot be read.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            missing = "cert" if self.cert is None else "key"
            raise InvalidInputError(f"Tls.cert and Tls.key belong together; Tls.{missing} is missing")
        for name in ("ca", "cert", "key"):
            self.pem(name)

    def pem(self, name: str) -> bytes | None:
        """Content of a field's file; None if the field is not set."""
        path = getattr(self, name)
        if path is None:
            return None
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise InvalidInputError(f"Tls.{name}: cannot read {str(path)!r}: {error.strerror}") from error


@dataclass(frozen=True)
class SharedMemory:
    """Send raw pixels through memory shared with the server; encoded images are sent as usual.

    Only for a server on this machine that sees the same /dev/shm (or GPU). A region is registered once with each
    server, reused, and released by `close`.

    Any client of the server may name a registered region in a request, so the names are random; whoever holds the
    token can read and write all of them.

    Attributes:
        token: The token of the server's shared memory, or the file that `ocdserve serve --shared-memory FILE` wrote;
            None for a server that asks for none.
        kind: "system", or "cuda" for GPU memory.
        regions: Maximum regions per server; calls beyond them send their pixels through the connection.
        device: Index of the GPU, for "cuda".

    Raises:
        InvalidInputError: A value is out of range.
    """

    kind: Literal["system", "cuda"] = "system"
    regions: int = 4
    device: int = 0
    token: str | Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in ("system", "cuda"):
            raise InvalidInputError(f'SharedMemory.kind must be "system" or "cuda"; got {self.kind!r}')
        check_count("SharedMemory.regions", self.regions)
        check_count("SharedMemory.device", self.device, least=0)
        if isinstance(self.token, Path):
            try:
                object.__setattr__(self, "token", self.token.read_text("ascii").strip())
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "it holds no token"
                raise InvalidInputError(
                    f"SharedMemory.token: cannot read {str(self.token)!r}: {reason}. Start the server with `ocdserve "
                    "serve --shared-memory FILE`, and name that file."
                ) from error
        if self.token is not None and not (isinstance(self.token, str) and re.fullmatch(r"[!-~]+", self.token)):
            # The value is a secret.
            raise InvalidInputError("SharedMemory.token must be printable ASCII text without blanks, or a Path")
