# SPDX-License-Identifier: Apache-2.0
"""Command line of tritonserver: arguments, ports and GPUs."""

import contextlib
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

from ocdserve.backend.device.probe import gpu_count
from ocdserve.backend.serve.options import ServeOptions
from ocdserve.backend.serve.preflight import SEGMENT_BYTES, configurations, processes_in
from ocdserve.backend.serve.process.runtime_dir import KIND_GPU, Runtime
from ocdserve.backend.serve.repository_api import SECRET_HEADER
from ocdserve.contract import SHARED_MEMORY_HEADER, UnavailableError

# Who may register shared memory can read and write what Triton and its stubs share, so it needs a token of its own.
RESTRICTED_APIS = "model-repository,trace,logging"
SHARED_MEMORY_API = "shared-memory"


@dataclass(frozen=True)
class Ports:
    """The three ports of a server."""

    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True)
class Secrets:
    """What callers of restricted APIs must send: random text, made for each server.

    Attributes:
        launcher: For Triton's repository, trace and logging APIs; never leaves the launcher.
        shared_memory: For the shared-memory API.
    """

    launcher: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    shared_memory: str = field(default_factory=lambda: secrets.token_urlsafe(24))


def server_command(
    options: ServeOptions, runtime: Runtime, ports: Ports, prefix: str, known: Secrets, gpus: int = 0
) -> list[str]:
    """The argument vector of tritonserver; `gpus` is the number of GPUs that its models use."""
    restricted = (
        f"{RESTRICTED_APIS}:{SECRET_HEADER}={known.launcher}",
        f"{SHARED_MEMORY_API}:{SHARED_MEMORY_HEADER}={known.shared_memory}",
    )
    backend = f"shm-region-prefix-name={prefix}"
    return [
        str(runtime.binary),
        f"--model-repository={options.repository}",
        f"--backend-directory={runtime.backends}",
        *([f"--cache-directory={runtime.caches}"] if runtime.caches else []),
        # Only explicit control lets the supervisor unload and load the model of a dead stub.
        "--model-control-mode=explicit",
        "--load-model=*",
        # Auto-completion would start each stub twice.
        "--disable-auto-complete-config",
        *(f"--{kind}-address={options.host}" for kind in ("http", "grpc", "metrics")),
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        *(f"--http-restricted-api={group}" for group in restricted),
        *(f"--grpc-restricted-protocol={group}" for group in restricted),
        *options.grpc.arguments(),
        f"--exit-timeout-secs={options.exit_timeout_s}",
        f"--log-verbose={options.log_verbose}",
        *_tracing(options),
        f"--backend-config=python,{backend}",
        f"--backend-config=python,shm-default-byte-size={SEGMENT_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={SEGMENT_BYTES}",
        # Tensors that do not fit into the pool are passed by handles that each take milliseconds to open.
        *(f"--cuda-memory-pool-byte-size={index}:{options.cuda_pool_bytes}" for index in range(gpus)),
    ]


def _tracing(options: ServeOptions) -> list[str]:
    if options.otlp is None:
        return []
    settings = (
        "mode=opentelemetry",
        f"opentelemetry,url={options.otlp}",
        "opentelemetry,resource=service.name=ocdserve",
        "opentelemetry,bsp_schedule_delay=1000",
        "level=TIMESTAMPS",
        f"rate={options.trace_rate}",
    )
    return [f"--trace-config={setting}" for setting in settings]


def gpus_used(options: ServeOptions) -> int:
    """GPUs that the models of the repository use: all of this machine's, or none.

    Raises:
        UnavailableError: Models want a GPU and there is none.
    """
    wanting = sorted(name for name, text in configurations(options.repository).items() if KIND_GPU in text)
    count = gpu_count() if wanting else 0
    if wanting and not count:
        raise UnavailableError(
            f"the models {', '.join(wanting)} were published for a GPU, and this machine has none that can be used; "
            "see `ocdserve doctor`. Publish without --gpu to serve on the CPU."
        )
    return count


def gpu_processes(options: ServeOptions) -> int:
    """Most processes that a model of the repository has on a GPU."""
    texts = configurations(options.repository).values()
    return max((processes_in(text) for text in texts if KIND_GPU in text), default=0)


def choose_ports(options: ServeOptions) -> Ports:
    """The ports of the options, free ones in place of 0.

    Raises:
        UnavailableError: A port is in use already.
    """
    # All stay bound until the last one is chosen; otherwise the same free port could be found twice.
    with contextlib.ExitStack() as stack:
        names = ("http_port", "grpc_port", "metrics_port")
        return Ports(*(stack.enter_context(bound(options.host, getattr(options, name), name)) for name in names))


@contextlib.contextmanager
def bound(host: str, port: int, name: str) -> Iterator[int]:
    """Keep a port, a free one in place of 0, bound for the block.

    Raises:
        UnavailableError: It is in use already.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UnavailableError(
                f"{host}:{port} ({name}) cannot be bound: {error.strerror}; stop the program that uses it or choose "
                "another port (0 picks a free one)"
            ) from error
        yield int(listener.getsockname()[1])
