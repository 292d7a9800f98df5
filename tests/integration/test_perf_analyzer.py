# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's perf_analyzer against the running server."""

import re
from typing import Any

import pytest

from ocdserve.contract import UnavailableError
from ocdserve.perf.inputs.pictures import street
from ocdserve.perf.load.perf_analyzer import AnalyzerRun, analyze, installed_program

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module", autouse=True)
def _program() -> None:
    try:
        installed_program(lambda message: None)
    except UnavailableError as error:
        pytest.skip(f"no perf_analyzer: {error}")


@pytest.mark.parametrize(("protocol", "model"), [("grpc", "ocdnet"), ("http", "ocdnet_fused")])
def test_perf_analyzer_gets_an_answer_to_every_request(
    protocol: str, model: str, default_server: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    url = {"grpc": default_server.grpc_url, "http": default_server.http_url}[protocol]
    run = AnalyzerRun(url, (street().png(),), model, levels=(2,), arguments=("--request-count", "6"))
    assert analyze(run, lambda message: None) == 0
    output = capfd.readouterr().out
    assert "Request concurrency: 2" in output
    assert [int(count) for count in re.findall(r"Request count: (\d+)", output)] == [6]
    assert int(re.findall(r"Successful request count: (\d+)", output)[0]) >= 6


def test_an_unknown_model_is_a_failure(default_server: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run = AnalyzerRun(default_server.grpc_url, (b"image",), "no_such_model", levels=(1, 2))
    assert analyze(run, lambda message: None) != 0
    assert "no_such_model" in capfd.readouterr().err
