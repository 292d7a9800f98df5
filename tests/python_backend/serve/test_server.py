# SPDX-License-Identifier: Apache-2.0
import socket
from pathlib import Path

import pytest

from ocdserve.backend.serve import ServeOptions, TritonServer
from ocdserve.backend.serve.options import GrpcConnections
from ocdserve.backend.serve.process import command as command_module
from ocdserve.backend.serve.process.command import Ports, Secrets, choose_ports, gpus_used, server_command
from ocdserve.backend.serve.process.runtime_dir import Runtime
from ocdserve.backend.serve.server import describe_end
from ocdserve.contract import UnavailableError


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.pbtxt").write_text('name: "model"')
    return tmp_path


def test_the_command_line_is_complete(repository: Path) -> None:
    runtime = Runtime(Path("/rt/tritonserver"), Path("/rt/backends"), Path("/rt/caches"), Path("/rt/cwd"), {})
    command = server_command(ServeOptions(repository), runtime, Ports(1, 2, 3), "own-", Secrets("s3cret", "t0ken"))
    assert command == [
        "/rt/tritonserver",
        f"--model-repository={repository}",
        "--backend-directory=/rt/backends",
        "--cache-directory=/rt/caches",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--disable-auto-complete-config",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--http-port=1",
        "--grpc-port=2",
        "--metrics-port=3",
        "--http-restricted-api=model-repository,trace,logging:x-ocdserve-secret=s3cret",
        "--http-restricted-api=shared-memory:x-ocdserve-shared-memory=t0ken",
        "--grpc-restricted-protocol=model-repository,trace,logging:x-ocdserve-secret=s3cret",
        "--grpc-restricted-protocol=shared-memory:x-ocdserve-shared-memory=t0ken",
        "--exit-timeout-secs=5",
        "--log-verbose=0",
        "--backend-config=python,shm-region-prefix-name=own-",
        "--backend-config=python,shm-default-byte-size=4194304",
        "--backend-config=python,shm-growth-byte-size=4194304",
    ]


def test_given_settings_of_grpc_connections_are_passed_on(repository: Path) -> None:
    runtime = Runtime(Path("/rt/tritonserver"), Path("/rt/backends"), None, Path("/rt/cwd"), {})
    grpc = GrpcConnections(grpc_keepalive_time=10_000, grpc_keepalive_permit_without_calls=True)
    command = server_command(ServeOptions(repository, grpc=grpc), runtime, Ports(1, 2, 3), "own-", Secrets("a", "b"))
    assert [argument for argument in command if "keepalive" in argument] == [
        "--grpc-keepalive-time=10000",
        "--grpc-keepalive-permit-without-calls=1",
    ]


def test_each_gpu_gets_a_pool_for_the_tensors_between_the_steps(repository: Path) -> None:
    runtime = Runtime(Path("/rt/tritonserver"), Path("/rt/backends"), None, Path("/rt/cwd"), {})
    command = server_command(
        ServeOptions(repository, cuda_pool_bytes=1 << 28), runtime, Ports(1, 2, 3), "a", Secrets(), 2
    )
    assert command[-2:] == ["--cuda-memory-pool-byte-size=0:268435456", "--cuda-memory-pool-byte-size=1:268435456"]


def test_gpus_are_counted_only_where_a_model_wants_one(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_module, "gpu_count", lambda: 3)
    assert gpus_used(ServeOptions(repository)) == 0
    config = repository / "model" / "config.pbtxt"
    config.write_text('name: "model" instance_group [ { kind: KIND_GPU count: 1 } ]')
    assert gpus_used(ServeOptions(repository)) == 3
    monkeypatch.setattr(command_module, "gpu_count", lambda: 0)
    with pytest.raises(UnavailableError, match=r"the models model were published for a GPU, .* Publish without --gpu"):
        gpus_used(ServeOptions(repository))


def test_free_ports_are_all_different_and_given_ones_are_kept(repository: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        given = listener.getsockname()[1]
    ports = choose_ports(ServeOptions(repository, http_port=0, grpc_port=given, metrics_port=0))
    assert ports.grpc == given
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    assert min(ports.http, ports.metrics) > 0


def test_a_port_in_use_is_named(repository: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{port} \(metrics_port\) cannot be bound: .* in use"):
            choose_ports(ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=port))


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (1, "Triton ended with exit status 1"),
        (139, "Triton was ended by signal 11"),
        (-9, "Triton's guard was ended by signal 9"),
    ],
)
def test_the_end_of_a_process_is_described(status: int, sentence: str) -> None:
    assert describe_end(status) == sentence


def test_a_server_that_was_not_started_has_no_ports(repository: Path) -> None:
    with pytest.raises(UnavailableError, match=r"call start\(\)"):
        _ = TritonServer(ServeOptions(repository)).ports
