# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend.serve import ServeOptions
from ocdserve.backend.serve.options import GrpcConnections
from ocdserve.contract import InvalidInputError


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.pbtxt").write_text('name: "model"')
    return tmp_path


def test_defaults_bind_loopback_on_the_usual_ports(repository: Path) -> None:
    options = ServeOptions(repository)
    assert (options.host, options.http_port, options.grpc_port, options.metrics_port) == ("127.0.0.1", 8000, 8001, 8002)


def test_localhost_is_the_loopback_address(repository: Path) -> None:
    assert ServeOptions(repository, host="localhost").host == "127.0.0.1"


def test_a_relative_repository_becomes_absolute(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository.parent)
    assert ServeOptions(Path(repository.name)).repository == repository


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"host": "::1"}, r"host must be an IPv4 address .*got '::1'"),
        ({"host": "server.example"}, r"host must be an IPv4 address .*got 'server\.example'"),
        ({"http_port": -1}, r"http_port must be a whole number from 0 to 65535 \(got -1\)"),
        ({"grpc_port": 65536}, r"grpc_port must be a whole number from 0 to 65535 \(got 65536\)"),
        ({"metrics_port": True}, r"metrics_port must be a whole number from 0 to 65535 \(got True\)"),
        ({"grpc_port": 8000}, r"must differ \(got 8000, 8000, 8002\)"),
        ({"exit_timeout_s": 3601}, r"exit_timeout_s must be a whole number from 1 to 3600 \(got 3601\)"),
        ({"drain_s": -1}, r"drain_s must be a whole number from 0 to 3600 \(got -1\)"),
        ({"ready_timeout_s": 0}, r"ready_timeout_s must be from 1 to 86400 seconds \(got 0\)"),
        ({"log_verbose": 10}, r"log_verbose must be a whole number from 0 to 9 \(got 10\)"),
    ],
)
def test_a_bad_value_is_refused_with_field_value_and_rule(
    repository: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ServeOptions(repository, **values)


def test_three_free_ports_may_all_be_zero(repository: Path) -> None:
    assert ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0).http_port == 0


def test_a_missing_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"'.*nowhere' is not a directory; `ocdserve publish`"):
        ServeOptions(tmp_path / "nowhere")


def test_a_directory_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"holds no MODEL/config\.pbtxt"):
        ServeOptions(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grpc_keepalive_time": 0}, r"grpc_keepalive_time must be a whole number from 1 to 2147483647 \(got 0\)"),
        ({"grpc_max_connection_age": 1.5}, r"grpc_max_connection_age must be a whole number .*\(got 1\.5\)"),
        ({"grpc_http2_max_ping_strikes": -1}, r"grpc_http2_max_ping_strikes must be a whole number from 0 "),
        ({"grpc_keepalive_permit_without_calls": 1}, r"permit_without_calls must be True or False \(got 1\)"),
    ],
)
def test_a_bad_value_of_grpc_connections_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        GrpcConnections(**values)


def test_what_is_not_given_is_left_to_triton() -> None:
    assert GrpcConnections().arguments() == []
    assert GrpcConnections(grpc_keepalive_permit_without_calls=False).arguments() == [
        "--grpc-keepalive-permit-without-calls=0"
    ]


@pytest.mark.parametrize(
    ("url", "traces"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector.example/", "https://collector.example/v1/traces"),
        ("http://collector:4318/api/traces", "http://collector:4318/api/traces"),
    ],
)
def test_the_path_of_traces_is_added_where_there_is_none(repository: Path, url: str, traces: str) -> None:
    assert ServeOptions(repository, otlp=url).otlp == traces


@pytest.mark.parametrize(
    "url", ["127.0.0.1:4318", "grpc://x:4317", "http://", "http://[", "http://x/,mode=triton", "http://x y", ""]
)
def test_an_address_of_traces_that_is_none_is_refused(repository: Path, url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"otlp must be the URL of a collector, such as http://127.0.0.1:4318"):
        ServeOptions(repository, otlp=url)
