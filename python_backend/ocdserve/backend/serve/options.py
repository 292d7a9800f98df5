# SPDX-License-Identifier: Apache-2.0
"""What to serve and where."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from ocdserve.contract import InvalidInputError


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
        exit_timeout_s: How long Triton waits for requests in flight when it stops, in seconds.
        ready_timeout_s: How long all models may take to load, in seconds.
        log_file: Where Triton's log is appended; None keeps it in the workspace, which is removed at the end.
        log_verbose: Triton's verbosity, 0 to 9.
        workspace: Private directory that the server fills, owns and removes at its end; None makes a new one.
        shared_memory: File that receives the token of Triton's shared-memory API, readable by this user only, and that
            is removed at the end; None: no client can register shared memory.
        cuda_pool_bytes: GPU memory, on each GPU that models use, for the tensors that pass between the steps.

    Raises:
        InvalidInputError: A value is not valid; the message names the field.
    """

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    tritonserver: Path | None = None
    exit_timeout_s: int = 5
    ready_timeout_s: float = 120.0
    log_file: Path | None = None
    log_verbose: int = 0
    workspace: Path | None = None
    shared_memory: Path | None = None
    cuda_pool_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        object.__setattr__(self, "repository", _repository(self.repository))
        object.__setattr__(self, "host", _host(self.host))
        for name in ("http_port", "grpc_port", "metrics_port"):
            _check_whole_number(name, getattr(self, name), 0, 65535)
        ports = [port for port in (self.http_port, self.grpc_port, self.metrics_port) if port]
        if len(set(ports)) < len(ports):
            raise InvalidInputError(
                f"ServeOptions: http_port, grpc_port and metrics_port must differ (got {self.http_port}, "
                f"{self.grpc_port}, {self.metrics_port}); 0 picks a free port"
            )
        # Stopping takes at most 10 s, including ending the process group and the clean-up.
        _check_whole_number("exit_timeout_s", self.exit_timeout_s, 1, 7)
        _check_whole_number("log_verbose", self.log_verbose, 0, 9)
        _check_whole_number("cuda_pool_bytes", self.cuda_pool_bytes, 1 << 20, 1 << 40)
        if not 1 <= self.ready_timeout_s <= 86_400:
            raise InvalidInputError(
                f"ServeOptions.ready_timeout_s must be from 1 to 86400 seconds (got {self.ready_timeout_s!r})"
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


def _host(host: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise InvalidInputError(
            f"ServeOptions.host must be an IPv4 address such as 127.0.0.1 or 0.0.0.0 (got {host!r})"
        ) from None


def _check_whole_number(name: str, value: object, minimum: int, maximum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise InvalidInputError(
            f"ServeOptions.{name} must be a whole number from {minimum} to {maximum} (got {value!r})"
        )
