# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend import serve as backend_serve
from ocdserve.backend.device import probe
from ocdserve.backend.serve import ServeOptions
from ocdserve.backend.serve.public.options import PublicOptions
from ocdserve.cli import main


@pytest.mark.parametrize(
    "option",
    [
        ["--gpu"],
        ["--streams", "0"],
        ["--threads", "2"],
        ["--queue-size", "9"],
        ["--max-side", "9"],
        ["--tuning", "file"],
        ["--runtime", "openvino"],
    ],
)
def test_options_of_a_new_repository_do_not_go_with_a_given_one(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--repository", str(tmp_path), *option]) == 2
    assert "shapes a new repository; it does not go with --repository" in capsys.readouterr().err


def test_mps_without_a_gpu_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--mps"]) == 2
    assert "--mps is for models on a GPU; add --gpu, or leave it out" in capsys.readouterr().err


def test_a_missing_gpu_is_reported_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "_driver", lambda: None)
    assert main(["serve", "--gpu"]) == 1
    error = capsys.readouterr().err
    assert "the runtime onnxruntime-cuda of the detector ppocr needs a GPU, but this machine has no NVIDIA" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--http-port", "99999"], "argument --http-port: must be a whole number, from 0 to 65535; got '99999'"),
        (
            ["--grpc-port", "8000"],
            "serve: --http-port, --grpc-port and --metrics-port must differ (got 8000, 8000, 8002)",
        ),
        (["--host", "nowhere"], "serve: --host must be an IPv4 address"),
        (["--grpc-keepalive-time", "0"], "argument --grpc-keepalive-time: must be a whole number, at least 1; got '0'"),
        (
            ["--grpc-max-connection-age", "9999999999"],
            "serve: --grpc-max-connection-age must be a whole number from 1 to 2147483647 (got 9999999999)",
        ),
        (["--tokens", "file"], "serve: --tokens is of the front door; add --public"),
        (["--host", "0.0.0.0", "--public"], "serve: --tls-cert: none is given, so tokens and images would be readable"),
        (["--public", "--max-json-bytes", "9"], "argument --max-json-bytes: must be a whole number, from 1024 to"),
    ],
)
def test_a_wrong_option_of_the_server_is_reported_by_its_name_on_the_command_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ocdnet").mkdir()
    (tmp_path / "ocdnet" / "config.pbtxt").touch()
    assert main(["serve", "--repository", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve"], ["publish", "--repository", "made"]])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            ["--max-pixels", "0"],
            "--max-pixels (width times height of an image) must be a whole number from 1 to 178956970",
        ),
        (["--queue-size", "-1"], "--queue-size must be a whole number from 1 to 100000; got -1"),
        (["--instances", "0"], "--instances must be a whole number from 1 to 64; got 0"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
        (["--runtime", "Onnx"], "--runtime must be one of openvino, onnxruntime"),
        (["--decoder", "jpeg"], "--decoder must be one of auto, cpu, gpu; got 'jpeg'"),
        (["--tuning", "none.json"], "cannot read the tuning file 'none.json': No such file or directory"),
    ],
)
def test_a_wrong_value_for_a_new_repository_is_a_usage_error(
    command: list[str], option: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *option]) == 2
    assert capsys.readouterr().err.startswith(f"ocdserve {command[0]}: {message}")


def test_options_of_the_front_door_reach_it_and_the_server_itself_stays_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ocdnet").mkdir()
    (tmp_path / "ocdnet" / "config.pbtxt").touch()
    (tmp_path / "tokens").write_text("a-token-of-the-tests")
    served: list[tuple[str, PublicOptions | None]] = []

    def serve(
        options: ServeOptions, ready: Any, report: Any, restore: Any, public: PublicOptions | None, on_log: Any
    ) -> int:
        served.append((options.host, public))
        return 0

    monkeypatch.setattr(backend_serve, "serve", serve)
    command = ["serve", "--repository", str(tmp_path), "--host", "0.0.0.0"]
    tokens = tmp_path / "tokens"
    words = ["--public", "443", "--no-tls", "--rate", "0", "--max-json-bytes", "4096", "--tokens", str(tokens)]
    assert main([*command, *words]) == 0
    expected = PublicOptions(host="0.0.0.0", port=443, no_tls=True, rate=0, max_json_bytes=4096, tokens=tokens)
    assert main([*command, "--public", "--no-tls"]) == 0
    assert main(command) == 0
    default = PublicOptions(host="0.0.0.0", no_tls=True)
    assert (default.port, default.rate) == (8443, 100)
    assert served == [("127.0.0.1", expected), ("127.0.0.1", default), ("0.0.0.0", None)]


def test_settings_of_grpc_connections_reach_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ocdnet").mkdir()
    (tmp_path / "ocdnet" / "config.pbtxt").touch()
    served: list[ServeOptions] = []
    monkeypatch.setattr(backend_serve, "serve", lambda options, *_: served.append(options) or 0)
    words = ["--grpc-keepalive-time", "5000", "--grpc-keepalive-permit-without-calls", "--grpc-max-connection-age", "9"]
    assert main(["serve", "--repository", str(tmp_path), *words]) == 0
    assert served[0].grpc.arguments() == [
        "--grpc-keepalive-time=5000",
        "--grpc-keepalive-permit-without-calls=1",
        "--grpc-max-connection-age=9",
    ]


def test_options_of_logs_and_traces_reach_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ocdnet").mkdir()
    (tmp_path / "ocdnet" / "config.pbtxt").touch()
    served: list[ServeOptions] = []
    monkeypatch.setattr(backend_serve, "serve", lambda options, *_: served.append(options) or 0)
    words = ["--otlp", "http://collector:4318", "--trace-rate", "5", "--log-bytes", "70000"]
    assert main(["serve", "--repository", str(tmp_path), *words]) == 0
    assert (served[0].otlp, served[0].trace_rate, served[0].log_bytes) == ("http://collector:4318/v1/traces", 5, 70_000)


def test_an_error_is_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["serve", "--log-format", "json", "--repository", str(tmp_path)]
    assert main(command) == 2
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["component"]) == ("error", "launcher")
    assert "holds no MODEL/config.pbtxt, so there is nothing to serve" in line["message"]

    (tmp_path / "ocdnet").mkdir()
    (tmp_path / "ocdnet" / "config.pbtxt").touch()
    ports = [word for kind in ("http", "grpc", "metrics") for word in (f"--{kind}-port", "0")]
    assert main([*command, *ports, "--tritonserver", str(tmp_path / "none")]) == 1
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["component"]) == ("error", "launcher")
    assert "is not an executable file" in line["message"]
