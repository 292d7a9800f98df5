# SPDX-License-Identifier: Apache-2.0
"""The settings of a client, which its transports share."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ocdserve.client._endpoint import Endpoint
from ocdserve.client._options import MAX_RESPONSE_BYTES, Compression, Retry, SharedMemory, Timeout, Tls
from ocdserve.client._sansio.hooks import Hooks
from ocdserve.contract import SHARED_MEMORY_HEADER, InvalidInputError, check_count


@dataclass(frozen=True)
class Settings:
    """Settings of one client.

    Attributes:
        endpoints: The servers.
        timeout: Time limits.
        retry: When attempts are repeated.
        tls: Certificates.
        headers: Sent with every request, names in lower case.
        compression: Of requests and responses; None: none.
        shared_memory: How raw pixels are sent; None: through the connection.
        hooks: Called for every attempt.
        max_response_bytes: Largest response that is read, in bytes, also after decompression.

    Raises:
        InvalidInputError: A header or the compression is not valid.
    """

    endpoints: tuple[Endpoint, ...]
    timeout: Timeout = field(default_factory=Timeout)
    retry: Retry = field(default_factory=Retry)
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    compression: Compression | None = None
    shared_memory: SharedMemory | None = None
    hooks: Hooks = field(default_factory=Hooks)
    max_response_bytes: int = MAX_RESPONSE_BYTES

    def __post_init__(self) -> None:
        check_count("max_response_bytes", self.max_response_bytes)
        for name, value in self.headers.items():
            if not (re.fullmatch(r"[0-9a-z_.-]+", name) and value.isprintable()):
                # The value may be a secret.
                raise InvalidInputError(
                    f"header {name!r} must have a name of letters, digits, `_`, `.` and `-`, and a printable text as "
                    "value"
                )
        if self.compression not in (None, "gzip", "deflate"):
            raise InvalidInputError(f'compression must be "gzip", "deflate" or None; got {self.compression!r}')

    def region_headers(self, prefix: str = "") -> dict[str, str]:
        """Headers of a registration of shared memory; `prefix` is what the protocol puts before the token's."""
        memory = self.shared_memory
        token = {} if memory is None or memory.token is None else {prefix + SHARED_MEMORY_HEADER: str(memory.token)}
        return {**self.headers, **token}

    @property
    def control_s(self) -> float:
        """Time limit of a question that a server answers at once, in seconds."""
        return min(self.timeout.total, self.timeout.connect)
