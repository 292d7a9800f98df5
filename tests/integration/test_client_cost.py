# SPDX-License-Identifier: Apache-2.0
"""The benchmark's section `client` against a real server: every client is measured, in turns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend.serve import ServeOptions, running_server
from ocdserve.contract import UnavailableError
from ocdserve.perf.load.drivers import Target, run_load
from ocdserve.perf.load.echo_model import ECHO, echo_image, write_echo_repository
from ocdserve.perf.load.loads import LoadResult
from ocdserve.perf.load.perf_analyzer import installed_program
from ocdserve.perf.sections import client

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("echo")
    repository = write_echo_repository(folder / "repository")
    options = ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0)
    with running_server(options, lambda message: None) as server:
        yield server


def test_single_calls_are_measured_in_turns_over_both_protocols(echo: Any) -> None:
    progress: list[tuple[int, int]] = []
    urls = {"grpc": echo.grpc_url, "http": echo.http_url}
    found = client.measure_overhead(urls, 2, lambda done, total: progress.append((done, total)))
    assert [(one.factors["protocol"], one.subject, one.baseline) for one in found] == [
        (protocol, subject, baseline)
        for protocol in ("grpc", "http")
        for subject, baseline in (
            ("tritonclient", "tritonclient"),
            ("TextDetector", "tritonclient"),
            ("tritonclient, asyncio", "tritonclient, asyncio"),
            ("AsyncTextDetector", "tritonclient, asyncio"),
        )
    ]
    assert {one.cases for one in found} == {("image#0", "image#1")}
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]


# perf_analyzer once did not end within 300 s on a busy machine; that it runs is seen where the drivers are compared.
@pytest.mark.parametrize("driver", ["sdk", pytest.param("perf_analyzer", marks=pytest.mark.long)])
def test_many_calls_are_compared_with_perf_analyzer(echo: Any, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(name: str, target: Target, warm: bool) -> LoadResult:
        asked.append(name)
        return run_load(driver, target, warm=warm)

    if driver == "perf_analyzer":
        try:
            installed_program(lambda message: None)
        except UnavailableError as error:
            pytest.skip(f"no perf_analyzer: {error}")
    monkeypatch.setattr(client, "run_load", run)
    found = client.measure_throughput(echo.grpc_url, ECHO, echo_image(7, 1000), 40, 1, lambda done, total: None)
    assert [(one.subject, one.unit, one.baseline) for one in found] == [
        ("perf_analyzer", "images/s", "perf_analyzer"),
        ("TextDetector.detect_many", "images/s", "perf_analyzer"),
        ("AsyncTextDetector.detect_many", "images/s", "perf_analyzer"),
    ]
    assert all(one.samples[0] > 0 for one in found)
    assert asked == ["perf_analyzer"]


def test_the_import_is_measured_with_and_without_the_client() -> None:
    alone, both = client.measure_import(1)
    assert (alone.subject, alone.baseline) == ("tritonclient.grpc", "tritonclient.grpc")
    assert (both.subject, both.baseline) == ("tritonclient.grpc, then ocdserve.client", "tritonclient.grpc")
