# SPDX-License-Identifier: Apache-2.0
"""What to serve and where."""

import ipaddress
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ocdserve.contract import InvalidInputError, shown

_LARGEST = 2**31 - 1
# The longest drain, and the longest wait for requests in flight.
LONGEST_STOP_S = 3600
LONGEST_LOAD_S = 86_400


def _setting(meaning: str, minimum: int = 1, is_flag: bool = False) -> Any:
    """A field of `GrpcConnections`."""
    return field(default=None, metadata={"meaning": meaning, "minimum": minimum, "is_flag": is_flag})


@dataclass(frozen=True)
class GrpcConnections:
    """When Triton pings and closes gRPC connections; a field that is None leaves its default.

    Each field is the option of tritonserver and of `ocdserve serve` of the same name, and holds its description.

    Raises:
        InvalidInputError: A value is not valid; the message names the field.
    """

    grpc_keepalive_time: int | None = _setting("milliseconds between keepalive pings (default: 7200000)")
    grpc_keepalive_timeout: int | None = _setting("milliseconds to wait for the answer to a ping (default: 20000)")
    grpc_keepalive_permit_without_calls: bool | None = _setting(
        "also ping connections without calls in flight", is_flag=True
    )
    grpc_http2_max_pings_without_data: int | None = _setting(
        "most pings without data in between, 0: no limit (default: 2)", 0
    )
    grpc_http2_min_recv_ping_interval_without_data: int | None = _setting(
        "milliseconds that clients must leave between pings (default: 300000)", 0
    )
    grpc_http2_max_ping_strikes: int | None = _setting(
        "early pings after which a connection is closed, 0: no limit (default: 2)", 0
    )
    grpc_max_connection_age: int | None = _setting("milliseconds after which a connection is closed (default: never)")
    grpc_max_connection_age_grace: int | None = _setting(
        "milliseconds that calls in flight get to finish then (default: no limit)"
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.metadata["is_flag"] and not isinstance(value, bool | None):
                raise InvalidInputError(f"GrpcConnections.{item.name} must be True or False (got {value!r})")
            if not item.metadata["is_flag"] and value is not None:
                _check_whole_number(item.name, value, item.metadata["minimum"], _LARGEST, "GrpcConnections")

    def arguments(self) -> list[str]:
        """The arguments of tritonserver."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        return [f"--{name.replace('_', '-')}={int(value)}" for name, value in given.items() if value is not None]


@dataclass(frozen=True)
class ServeOptions:
    """How to run one Triton server.

    Attributes:
        repository: A complete Triton model repository (one folder with a `config.pbtxt` per model).
        host: IPv4 address to bind, for all three ports; 0.0.0.0 is every interface.
        http_port: Port of the HTTP protocol; 0 picks a free one, also for the other two.
        grpc_port: Port of the gRPC protocol.
        metrics_port: Port of the Prometheus metrics.
        tritonserver: Binary of another Triton installation; None: the one of nvidia-pytriton.
        drain_s: How long the server reports that it is not ready and serves on, once it is asked to stop, in seconds:
            load balancers send their requests elsewhere meanwhile.
        exit_timeout_s: How long Triton waits for requests in flight when it stops, in seconds.
        ready_timeout_s: How long all models may take to load, in seconds.
        log_file: Where Triton's log is appended; None keeps it in the workspace, which is removed at the end.
        log_bytes: Size in bytes at which the log is moved to a second file, in place of what is there.
        log_verbose: Triton's verbosity, 0 to 9.
        otlp: URL of an OpenTelemetry collector that receives traces over HTTP; without a path, /v1/traces is added.
        trace_rate: One of how many requests is traced.
        workspace: Private directory that the server fills, owns and removes at its end; None makes a new one.
        shared_memory: File that receives the token of Triton's shared-memory API, readable by this user only, and that
            is removed at the end; None: no client can register shared memory.
        grpc: Keepalive and age of gRPC connections.
        cuda_pool_bytes: GPU memory, on each GPU that models use, for the tensors that pass between the steps.
        mps: Whether the processes share the GPUs by MPS: the server starts its daemon, and stops it at its end, unless
            the environment names one that runs.

    Raises:
        InvalidInputError: A value is not valid; the message names the field.
    """

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    tritonserver: Path | None = None
    drain_s: int = 0
    exit_timeout_s: int = 5
    ready_timeout_s: float = 120.0
    log_file: Path | None = None
    log_bytes: int = 10 << 20
    log_verbose: int = 0
    otlp: str | None = None
    trace_rate: int = 1000
    workspace: Path | None = None
    shared_memory: Path | None = None
    grpc: GrpcConnections = GrpcConnections()
    cuda_pool_bytes: int = 1 << 30
    mps: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "repository", _repository(self.repository))
        object.__setattr__(self, "host", ipv4_host(self.host, "ServeOptions.host"))
        for name in ("http_port", "grpc_port", "metrics_port"):
            _check_whole_number(name, getattr(self, name), 0, 65535)
        ports = [port for port in (self.http_port, self.grpc_port, self.metrics_port) if port]
        if len(set(ports)) < len(ports):
            raise InvalidInputError(
                f"ServeOptions: http_port, grpc_port and metrics_port must differ (got {self.http_port}, "
                f"{self.grpc_port}, {self.metrics_port}); 0 picks a free port"
            )
        _check_whole_number("drain_s", self.drain_s, 0, LONGEST_STOP_S)
        _check_whole_number("exit_timeout_s", self.exit_timeout_s, 1, LONGEST_STOP_S)
        _check_whole_number("log_verbose", self.log_verbose, 0, 9)
        _check_whole_number("log_bytes", self.log_bytes, 1 << 16, 1 << 40)
        _check_whole_number("trace_rate", self.trace_rate, 1, _LARGEST)
        if self.otlp is not None:
            object.__setattr__(self, "otlp", _traces_url(self.otlp))
        _check_whole_number("cuda_pool_bytes", self.cuda_pool_bytes, 1 << 20, 1 << 40)
        if not 1 <= self.ready_timeout_s <= LONGEST_LOAD_S:
            raise InvalidInputError(
                f"ServeOptions.ready_timeout_s must be from 1 to {LONGEST_LOAD_S} seconds "
                f"(got {self.ready_timeout_s!r})"
            )


def _repository(path: Path) -> Path:
    repository = Path(path).absolute()
    if not repository.is_dir():
        raise InvalidInputError(
            f"ServeOptions.repository: {str(path)!r} is not a directory; `ocdserve publish` writes a model repository"
        )
    if not any(repository.glob("*/config.pbtxt")):
        raise InvalidInputError(
            f"ServeOptions.repository: {str(path)!r} holds no MODEL/config.pbtxt, so there is nothing to serve; "
            "`ocdserve publish` writes a model repository"
        )
    return repository


def _traces_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    # Triton takes the setting up to a comma.
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[!-+\--~]+", url):
        raise InvalidInputError(
            f"ServeOptions.otlp must be the URL of a collector, such as http://127.0.0.1:4318 (got {shown(url)})"
        )
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/v1/traces"


def ipv4_host(host: str, name: str) -> str:
    """The address of a host to bind; raises InvalidInputError, with the option's name, for anything else."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise InvalidInputError(f"{name} must be an IPv4 address such as 127.0.0.1 or 0.0.0.0 (got {host!r})") from None


def _check_whole_number(name: str, value: object, minimum: int, maximum: int, owner: str = "ServeOptions") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise InvalidInputError(f"{owner}.{name} must be a whole number from {minimum} to {maximum} (got {value!r})")
