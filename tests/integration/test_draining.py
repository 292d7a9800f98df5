# SPDX-License-Identifier: Apache-2.0
"""A stop that a load balancer sees coming."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import tritonclient.grpc

from ocdserve.cli import main

pytestmark = [pytest.mark.triton, pytest.mark.timed]


def test_a_draining_server_is_not_ready_and_serves_until_it_stops(
    tiny: Any, free_ports: Callable[[int], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.model("quick")
    http, grpc, metrics = free_ports(3)
    words = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}", "--drain-s=1"]
    command = [sys.executable, "-m", "ocdserve.cli", "serve", "--repository", str(tiny.path), "--log-format=json"]
    url = f"http://127.0.0.1:{http}"
    body = json.dumps({"inputs": [{"name": "X", "shape": [1, 1], "datatype": "UINT8", "data": [7]}]}).encode()
    with (
        subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True) as process,
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc}") as client,
    ):
        assert process.stderr
        said = [next(line for line in process.stderr if "ready: http://" in line)]
        assert main(["health", url]) == 0
        assert client.is_server_ready()
        process.send_signal(signal.SIGTERM)
        said.append(next(line for line in process.stderr if "draining" in line))
        began = time.monotonic()
        while main(["health", url]) == 0:
            assert time.monotonic() - began < 0.8
        assert not client.is_server_ready()
        served = 0
        while time.monotonic() - began < 0.8:
            with urllib.request.urlopen(f"{url}/v2/models/quick/infer", body, timeout=5) as answer:
                assert json.load(answer)["outputs"][0]["data"] == [7]
            served += 1
        said += list(process.stderr)
    assert (process.returncode, served > 0) == (0, True)
    assert f"{url} is not ready (HTTP status 400)" in capsys.readouterr().err
    # Nothing has gone wrong.
    assert {json.loads(line)["level"] for line in said if "ocdserve_draining" in line} == {"info"}
