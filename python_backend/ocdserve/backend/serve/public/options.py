# SPDX-License-Identifier: Apache-2.0
"""What the front door lets in."""

import ipaddress
import re
import ssl
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ocdserve.backend.serve.options import ipv4_host
from ocdserve.contract import InvalidInputError

_SHORTEST_TOKEN = 16
_TOKEN = re.compile(r"[!-~]+")


def _limit(default: int, least: int, most: int, meaning: str) -> Any:
    return field(default=default, metadata={"least": least, "most": most, "meaning": meaning})


@dataclass(frozen=True)
class PublicOptions:
    """Options of the front door.

    Each limit is the option of `ocdserve serve` of the same name, and holds its description.

    Attributes:
        host: IPv4 address to bind.
        port: Port of both protocols; 0 picks a free one.
        tls_cert: Certificate chain, a PEM file; it and the next two are read again when they change.
        tls_key: Private key of `tls_cert`.
        tokens: File of the tokens that clients may send, one per line, `#` begins a comment; None: no token is needed.
        no_uploads: Do not serve `POST /detect` and `POST /read`, for which an image file is all of the request; they
            take a process.
        no_tls: Serve without TLS on an address that other machines reach, such as behind a load balancer.

    Raises:
        InvalidInputError: A value is not valid; the message names the field.
    """

    host: str = "127.0.0.1"
    port: int = 8443
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tokens: Path | None = None
    no_uploads: bool = False
    no_tls: bool = False
    rate: int = _limit(100, 0, 10**6, "requests per second from one address, 0: no limit")
    max_connections: int = _limit(1000, 1, 10**6, "connections at a time")
    max_body_bytes: int = _limit(64 << 20, 1 << 10, 1 << 30, "bytes of a request")
    max_json_bytes: int = _limit(32 << 10, 1 << 10, 1 << 20, "bytes of the JSON of an HTTP request")
    max_proxy_bytes: int = _limit(1 << 30, 1 << 26, 1 << 40, "memory of the proxy, which holds requests until complete")
    header_timeout: int = _limit(10, 1, 3600, "seconds for the TLS handshake, and for the headers of a request")
    upload_timeout: int = _limit(60, 1, 3600, "seconds for a whole request")
    answer_timeout: int = _limit(60, 1, 3600, "seconds for the answer to a whole request")
    idle_timeout: int = _limit(60, 1, 3600, "seconds until an idle connection is closed")

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", ipv4_host(self.host, "host"))
        for item in fields(self):
            value, rule = getattr(self, item.name), item.metadata
            if rule and (type(value) is not int or not rule["least"] <= value <= rule["most"]):
                raise InvalidInputError(
                    f"{item.name} must be a whole number from {rule['least']} to {rule['most']}; got {value!r}"
                )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidInputError("tls_cert: it belongs together with tls_key; give both or none")
        if self.tls_cert is None and not self.no_tls and not ipaddress.IPv4Address(self.host).is_loopback:
            raise InvalidInputError(
                f"tls_cert: none is given, so tokens and images would be readable on the way to {self.host}; give "
                "--tls-cert and --tls-key, or --no-tls where something else encrypts"
            )
        self.certificate()
        self.read_tokens()

    def certificate(self) -> tuple[str, str] | None:
        """Certificate chain and private key in PEM; None without TLS.

        Raises:
            InvalidInputError: They cannot be read, or do not belong together.
        """
        if self.tls_cert is None or self.tls_key is None:
            return None
        try:
            # An empty password, because OpenSSL would ask for one on the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.tls_cert, self.tls_key, lambda: "")
            return self.tls_cert.read_text("ascii"), self.tls_key.read_text("ascii")
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"tls_cert: {str(self.tls_cert)!r} and {str(self.tls_key)!r} are no certificate with its private key, "
                f"as PEM files without a password ({getattr(error, 'strerror', None) or error})"
            ) from error

    def read_tokens(self) -> tuple[str, ...] | None:
        """The tokens; None if none are needed.

        Raises:
            InvalidInputError: The file cannot be read, holds none, or one that is too short or not printable.
        """
        if self.tokens is None:
            return None
        try:
            lines = [line.partition("#")[0].strip() for line in self.tokens.read_text("utf-8").splitlines()]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8"
            raise InvalidInputError(f"tokens: cannot read {str(self.tokens)!r}: {reason}") from error
        for number, line in enumerate(lines, 1):
            # The line is a secret.
            if line and (len(line) < _SHORTEST_TOKEN or not _TOKEN.fullmatch(line)):
                raise InvalidInputError(
                    f"tokens: line {number} of {str(self.tokens)!r} must be at least {_SHORTEST_TOKEN} printable ASCII "
                    "characters without blanks, such as `openssl rand -hex 24` prints"
                )
        found = tuple(dict.fromkeys(filter(None, lines)))
        if not found:
            raise InvalidInputError(f"tokens: {str(self.tokens)!r} holds no token; write one per line")
        return found
