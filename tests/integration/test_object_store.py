# SPDX-License-Identifier: Apache-2.0
"""A Triton that reads a published repository from an object store itself."""

import http.client
import importlib.util
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ocdserve.backend import Detector
from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import ServeOptions
from ocdserve.backend.serve.canary import picture
from ocdserve.backend.serve.process.runtime_dir import prepare_runtime
from ocdserve.cli import main
from ocdserve.client import TextDetector

pytestmark = [pytest.mark.triton, pytest.mark.long]

START_S = 240.0


@pytest.fixture
def store(free_ports: Callable[[int], list[int]]) -> Iterator[str]:
    """Address of an object store that speaks S3."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("moto is not installed: .venv/bin/python -m pip install 'moto[s3,server]>=5,<6'")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}", process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


def put(store: str, path: str, data: bytes = b"") -> None:
    connection = http.client.HTTPConnection(store, timeout=60)
    connection.request("PUT", path, data)
    with connection.getresponse() as answer:
        assert answer.status == 200, answer.read()
    connection.close()


def test_a_published_repository_is_served_from_an_object_store(
    store: str, tmp_path: Path, free_ports: Callable[[int], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    repository = publish(PublishOptions(tmp_path / "models", threads=1))
    put(store, "/bucket")
    for path in repository.rglob("*"):
        # Object stores have no folders.
        if path.is_file():
            put(store, f"/bucket/models/{path.relative_to(repository)}", path.read_bytes())
    (tmp_path / "workspace").mkdir()
    runtime = prepare_runtime(ServeOptions(repository), tmp_path / "workspace")
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    command = [
        str(runtime.binary),
        f"--model-repository=s3://http://{store}/bucket/models",
        f"--backend-directory={runtime.backends}",
        "--disable-auto-complete-config",
        *(f"--{kind}-port={port}" for kind, port in ports.items()),
        *(f"--{kind}-address=127.0.0.1" for kind in ports),
        f"--backend-config=python,shm-region-prefix-name=ocdserve-test-{ports['http']}-",
    ]
    key = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = {**runtime.environment, **key}
    encoded, _ = picture()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=runtime.directory, stdout=log, stderr=log)
    with process:
        try:
            url = f"http://127.0.0.1:{ports['http']}"
            wait_for(f"{url}/v2/health/ready", process)
            assert main(["health", url, "--canary"]) == 0
            assert capsys.readouterr().out == "ocdnet answers, ocdnet_raw answers, ocdnet_fused answers\n"
            expected = Detector.load().detect(encoded)
            for model in ("ocdnet", "ocdnet_fused"):
                with TextDetector(url, model=model) as detector:
                    assert detector.detect(encoded).quads.tobytes() == expected.quads.tobytes()
            assert len(expected) == 1
        finally:
            process.terminate()
            process.wait(30)
