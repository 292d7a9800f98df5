# SPDX-License-Identifier: Apache-2.0
"""The command for probes, against a small server; tests/integration asks the real one."""

import subprocess
import sys

import pytest
from kserve_fakes import FOUND, HttpFake, http_server

from ocdserve.cli import main


def test_a_server_that_is_not_ready_or_does_not_answer_is_not_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    with http_server() as (url, _):
        # The stand-in is never ready as a whole.
        assert main(["health", url]) == 1
        assert capsys.readouterr().err == f"ocdserve health: {url} is not ready (HTTP status 400)\n"
    assert main(["health", url]) == 1
    assert "does not answer (ConnectionRefusedError" in capsys.readouterr().err


def test_a_server_that_answers_every_path_is_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Triton's port of the metrics does.
    monkeypatch.setattr(HttpFake, "do_GET", lambda handler: handler.answer(200, b""))
    with http_server() as (url, _):
        assert main(["health", url]) == 1
    # The stand-in may complain there of a connection that was closed.
    assert capsys.readouterr().err.startswith(
        f"ocdserve health: {url} is not the server's HTTP port: it answers every path, as the port of the metrics does"
    )


def test_a_canary_is_sent_to_the_models_that_are_ready(capsys: pytest.CaptureFixture[str]) -> None:
    size = f'{{"name": "SIZE", "shape": [1, 2], "data": [{FOUND["height"]}, {FOUND["width"]}]}}'
    nothing = ", ".join(
        f'{{"name": "{name}", "shape": {shape}, "data": {data}}}'
        for name, shape, data in (("QUADS", [1, 0, 4, 2], []), ("SCORES", [1, 0], []), ("COUNT", [1, 1], [0]))
    )
    with http_server() as (url, server):
        server.answer = (200, f'{{"outputs": [{size}, {nothing}]}}'.encode())
        assert main(["health", url, "--canary"]) == 1
        assert "canary of ocdnet: SIZE is [20, 30] for a picture of height 96" in capsys.readouterr().err
        server.answer = (503, b'{"error": "64 requests wait already"}')
        assert main(["health", url, "--canary"]) == 0
        assert capsys.readouterr().out == "ocdnet is busy\n"
        assert server.last[0] == "/v2/models/ocdnet/infer"


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:8001", "127.0.0.1:8000", "http://h:1/path", "http://h:x"])
def test_only_the_address_of_an_http_port_is_accepted(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", url]) == 2
    assert f"URL must be http://HOST:PORT, of the server's HTTP port; got {url!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "light"),
    [
        ("'health'", ("numpy", "tritonclient", "grpc", "PIL", "ocdserve.client", "ocdserve.backend")),
        ("'health', '--canary'", ("tritonclient", "grpc", "ocdserve.client", "ocdserve.backend.serve.server")),
    ],
)
def test_a_probe_imports_little(words: str, light: tuple[str, ...]) -> None:
    code = f"""
import sys
from ocdserve.cli import main
main([{words}, "http://127.0.0.1:9"])
print([name for name in {light} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
