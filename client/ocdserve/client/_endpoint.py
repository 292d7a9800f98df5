# SPDX-License-Identifier: Apache-2.0
"""The address of a server."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from ocdserve.contract import InvalidInputError

_WANTED = "grpc://HOST:PORT or http://HOST:PORT (grpcs:// and https:// for TLS)"
_SCHEMES = ("grpc", "grpcs", "http", "https")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Endpoint:
    """One server.

    Attributes:
        scheme: grpc, grpcs, http or https.
        host: Name or address, IPv6 without brackets.
        port: TCP port.
        path: Prefix of `/v2` over HTTP, without a trailing slash.
    """

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> "Endpoint":
        """Read a URL.

        Raises:
            InvalidInputError: The URL is not one of the accepted forms.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidInputError(f"url must be {_WANTED}; got {url!r} ({error})") from None
        if parts.scheme not in _SCHEMES or not parts.hostname or not port:
            raise InvalidInputError(f"url must be {_WANTED}; got {url!r}")
        if parts.username is not None or parts.query or parts.fragment:
            raise InvalidInputError(
                f"url must not hold a user name, query or fragment; got {_without_secret(url)!r}. "
                "Credentials are given by `token` or `headers`."
            )
        path = parts.path.rstrip("/")
        if parts.scheme in ("grpc", "grpcs") and path:
            raise InvalidInputError(f"a {parts.scheme}:// url must not hold a path; got {url!r}")
        return cls(parts.scheme, parts.hostname, port, path)

    @property
    def address(self) -> str:
        """HOST:PORT, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The address with its scheme, for messages."""
        return f"{self.scheme}://{self.address}{self.path}"

    @property
    def is_grpc(self) -> bool:
        """Whether the protocol is gRPC, not HTTP."""
        return self.scheme.startswith("grpc")

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection is TLS."""
        return self.scheme.endswith("s")

    @property
    def is_loopback(self) -> bool:
        """Whether the host is the loopback interface."""
        return self.host in _LOOPBACK


def _without_secret(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return scheme + separator + "***@" + rest.rpartition("@")[2] if "@" in rest else url
