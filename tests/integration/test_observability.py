# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of a server: metrics that count each request once, logs, traces."""

import importlib.metadata
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from ocdserve.backend import Bundle
from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import TritonServer
from ocdserve.backend.serve.log_lines import LogWriter
from ocdserve.backend.serve.process import metrics as declared
from ocdserve.client import ServerError, TextDetector

pytestmark = pytest.mark.triton

Counts = Counter[tuple[str, ...]]

SLOW_S = 0.1
QUEUE = 4
# Of models with one thread.
WORKERS = 4
# A decoder that sleeps over images with a mark behind their end, and fails with another.
DECODER = f"""
import time
from ocdserve.backend import detector

decode = detector.decode_for
def marked(policy, data, *arguments):
    if data.endswith(b"SLOW"):
        time.sleep({SLOW_S})
    if data.endswith(b"BROKEN"):
        raise RuntimeError("a fault")
    return decode(policy, data, *arguments)
detector.decode_for = marked
"""
PIXELS = np.zeros((1, 64, 128, 3), np.uint8)
PIXELS[0, 10:20, 20:60] = 255
# The outcome of a request, by what its client reads.
OUTCOMES = {
    "not an image": "invalid",
    "image is empty": "invalid",
    "must be a non-empty uint8 array": "invalid",
    "requests wait": "shed",
    "timeout was over": "expired",
    "failed with RuntimeError": "failed",
}


def image() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(stream, "PNG")
    return stream.getvalue()


class Collector:
    """Receives traces as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        received = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/json")
                for resource in json.loads(body)["resourceSpans"]:
                    for scope in resource["scopeSpans"]:
                        received.extend(scope["spans"])
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    threading.Thread(target=collector.server.serve_forever, daemon=True).start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture(scope="module")
def stderr() -> io.StringIO:
    """Where the server's log goes."""
    return io.StringIO()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    red_bundle: Path,
    stderr: io.StringIO,
    collector: Collector,
    running_server: Callable[..., AbstractContextManager[TritonServer]],
) -> Iterator[TritonServer]:
    models = tmp_path_factory.mktemp("observability") / "models"
    repository = publish(PublishOptions(models, red_bundle, threads=1, queue_size=QUEUE))
    for name in ("ocdnet_preprocess", "ocdnet_fused"):
        code = repository / name / "1" / "model.py"
        code.write_text(DECODER + code.read_text())
        # The first step has the threads of the machine; here it must be known how many it has.
        config = repository / name / "config.pbtxt"
        if "threads" not in config.read_text():
            config.write_text(config.read_text() + 'parameters { key: "threads" value { string_value: "1" } }\n')
    log = LogWriter("json", stderr)
    with running_server(repository, on_log=log.relay, otlp=collector.url, trace_rate=1, exit_timeout_s=1) as server:
        yield server


def url_of(server: TritonServer, protocol: str) -> str:
    return server.grpc_url if protocol == "grpc" else server.http_url


class Client:
    """tritonclient over one protocol."""

    def __init__(self, server: TritonServer, protocol: str) -> None:
        self._library: Any = getattr(tritonclient, protocol)
        self._url = url_of(server, protocol).partition("://")[2]

    def ask(self, model: str, data: Any, timeout_us: int | None = None, **parameters: Any) -> str:
        """The outcome of one request."""
        if isinstance(data, bytes):
            tensor = self._library.InferInput("IMAGE", [1, 1], "BYTES")
            data = np.array([[data]], object)
        else:
            tensor = self._library.InferInput("PIXELS", list(data.shape), "UINT8")
        tensor.set_data_from_numpy(data)
        try:
            # Over HTTP, a client is for one thread.
            with self._library.InferenceServerClient(self._url) as client:
                client.infer(model, [tensor], timeout=timeout_us, parameters=parameters or None)
        except InferenceServerException as error:
            return next((outcome for text, outcome in OUTCOMES.items() if text in error.message()), error.message())
        return "ok"


def samples(server: TritonServer) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name and the values of their labels."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for sample in (sample for family in families for sample in family.samples):
        if sample.name.startswith("ocdserve_"):
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def scraped(server: TritonServer) -> dict[str, dict[tuple[str, ...], float]]:
    """The same, once the server, which counts in the background, is quiet."""
    before: object = None
    for _ in range(100):
        found = samples(server)
        if found == before:
            return found
        before = found
        time.sleep(0.2)
    raise AssertionError("the figures keep changing")


def grown(server: TritonServer, name: str, before: dict[str, dict[tuple[str, ...], float]]) -> Counts:
    """How much the values of a metric have grown, without those that have not."""
    now = scraped(server)[name]
    return +Counter({labels: int(value - before[name].get(labels, 0)) for labels, value in now.items()})


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_each_request_is_counted_once_by_outcome_and_by_the_model_that_was_asked_for(
    server: TritonServer, protocol: str
) -> None:
    client, good = Client(server, protocol), image()
    before, expected = scraped(server), Counts()

    def ask(model: str, *arguments: Any) -> None:
        expected[model, client.ask(model, *arguments)] += 1

    for model in ("ocdnet", "ocdnet_fused"):
        with ThreadPoolExecutor(WORKERS + QUEUE + 3) as threads:
            list(threads.map(lambda _, model=model: ask(model, good + b"SLOW"), range(WORKERS + QUEUE + 3)))
            # Behind as many slow ones as are worked on.
            slow = [threads.submit(ask, model, good + b"SLOW") for _ in range(WORKERS)]
            time.sleep(SLOW_S / 4)
            ask(model, good, 1000)
            assert all(done.result() is None for done in slow)
        for data in (good, good, good, b"hello", b"", good + b"BROKEN"):
            ask(model, data)
    ask("ocdnet_raw", PIXELS)
    ask("ocdnet_raw", np.zeros((1, 9, 0, 3), np.uint8))
    assert {outcome for _, outcome in expected} == {"ok", "invalid", "shed", "expired", "failed"}
    assert grown(server, "ocdserve_requests_total", before) == expected
    answered = Counter({(model,): count for (model, outcome), count in expected.items() if outcome == "ok"})
    assert grown(server, "ocdserve_request_duration_seconds_count", before) == answered
    spent = scraped(server)["ocdserve_request_duration_seconds_sum"]
    for model in ("ocdnet", "ocdnet_fused"):
        slow_s = spent[model,] - before["ocdserve_request_duration_seconds_sum"][model,]
        assert WORKERS * SLOW_S < slow_s < 60 * WORKERS


def test_the_queue_is_shown(server: TritonServer) -> None:
    client, busy, deadline = Client(server, "grpc"), ("ocdnet_fused_0_0", "ocdnet_fused"), time.monotonic() + 30
    length = age = 0.0
    with ThreadPoolExecutor(WORKERS + QUEUE) as threads:
        while not (length > 1 and SLOW_S / 2 < age < 60):
            assert time.monotonic() < deadline
            asked = [threads.submit(client.ask, "ocdnet_fused", image() + b"SLOW") for _ in range(WORKERS + QUEUE)]
            while not all(done.done() for done in asked):
                now = samples(server)
                length, age = now["ocdserve_queue_requests"][busy], now["ocdserve_queue_oldest_seconds"][busy]
                time.sleep(0.02)
    while any(samples(server)["ocdserve_queue_requests"].values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert set(samples(server)["ocdserve_queue_oldest_seconds"].values()) == {0.0}


def test_counters_of_the_launcher_are_shown_and_outlive_a_process_of_the_models(server: TritonServer) -> None:
    client = Client(server, "grpc")
    assert client.ask("ocdnet", image()) == "ok"
    server.counters.count(declared.RELOADS, "ok")
    before = scraped(server)
    victims = [stub for stub in server.stubs() if stub.model == "ocdnet_preprocess" and stub.alive()]
    for stub in victims:
        os.kill(stub.pid, signal.SIGKILL)
    server.counters.count(declared.RELOADS, "failed")
    server.counters.count(declared.CANARIES, "wrong")
    deadline = time.monotonic() + 60
    while client.ask("ocdnet", image()) != "ok":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not any(stub.alive() for stub in victims)
    while (now := scraped(server))["ocdserve_canary_total"]["wrong",] == 0:
        assert time.monotonic() < deadline
    assert now["ocdserve_reloads_total"] == {("ok",): 1, ("failed",): 1}
    # The launcher's own canaries, of which the first three were sent before the server was ready.
    answered = now["ocdserve_canary_total"].pop(("ok",))
    assert answered >= 3
    assert now["ocdserve_canary_total"] == {("busy",): 0, ("silent",): 0, ("wrong",): 1}
    assert now["ocdserve_requests_total"]["ocdnet", "ok"] == before["ocdserve_requests_total"]["ocdnet", "ok"] + 1
    restarts, died = before["ocdserve_restarts_total"], ("process_died",)
    assert now["ocdserve_restarts_total"] == {**restarts, died: restarts[died] + 1}


def test_the_metrics_are_those_that_are_declared(server: TritonServer) -> None:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        shown = {family.name: family for family in text_string_to_metric_families(response.read().decode())}
    ours = {name: family for name, family in shown.items() if name.startswith("ocdserve_")}
    # This server does not read.
    families = [family for family in declared.FAMILIES if family.name != "ocdserve_lines_per_image"]
    assert set(ours) == {family.name.removesuffix("_total") for family in families}
    for family in families:
        found = ours[family.name.removesuffix("_total")]
        assert (found.type, found.documentation) == (family.kind, family.meaning)
        for sample in found.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            assert list(labels) == list(family.labels)
            assert all(value in family.labels[name] for name, value in labels.items() if family.labels[name])
    assert {sample.labels["limit"]: sample.value for sample in ours["ocdserve_limit"].samples} == {
        "max_pixels": 80_000_000,
        "max_pixels_in_flight": 80_000_000,
        "max_side": 65_535,
        "max_bytes": 67_108_864,
        "max_scans": 100,
        "max_work": 1_600_000_000,
        "max_parts": 20_000,
        "max_strips": 100_000,
        "max_parameters": 64,
        "max_parameter_bytes": 16_384,
        "max_lines": 4_000,
    }


def test_what_is_served_and_the_room_of_its_processes_are_shown(server: TritonServer, red_bundle: Path) -> None:
    with urllib.request.urlopen(f"{server.http_url}/v2", timeout=10) as response:
        triton = json.load(response)["version"]
    shown = scraped(server)
    digest = Bundle.load(red_bundle).digest()
    assert shown["ocdserve_build_info"] == {(digest, "openvino", triton, importlib.metadata.version("ocdserve")): 1}
    usage = shutil.disk_usage("/dev/shm")
    assert shown["ocdserve_shm_bytes"]["size",] == usage.total
    # At least one segment of each process.
    assert 4 * 4_194_304 < shown["ocdserve_shm_bytes"]["used",] < usage.total


def test_a_trace_of_the_client_goes_on_in_the_server(server: TritonServer, collector: Collector) -> None:
    sent: list[tuple[str, str, str | None]] = []
    for protocol in ("grpc", "http"):
        trace, parent = secrets.token_hex(16), secrets.token_hex(8)
        with TextDetector(url_of(server, protocol)) as detector:
            found = detector.detect(image(), traceparent=f"00-{trace}-{parent}-01")
        sent.append((trace, parent, found.request_id))
    deadline = time.monotonic() + 30
    for trace, parent, request_id in sent:
        spans: dict[str, Any] = {}
        while "InferRequest" not in spans:
            assert time.monotonic() < deadline
            time.sleep(0.1)
            spans = {span["name"]: span for span in collector.spans if span["traceId"] == trace}
        assert spans["InferRequest"]["parentSpanId"] == parent
        assert spans["ocdnet"]["parentSpanId"] == spans["InferRequest"]["spanId"]
        for step in ("ocdnet_preprocess", "ocdnet_network", "ocdnet_postprocess"):
            assert spans[step]["parentSpanId"] == spans["ocdnet"]["spanId"]
            ids = [each["value"] for each in spans[step]["attributes"] if each["key"] == "triton.request_id"]
            assert ids == [{"stringValue": request_id}]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("model", ["ocdnet", "ocdnet_fused"])
def test_the_log_names_the_request_that_the_error_of_the_client_names(
    server: TritonServer, stderr: io.StringIO, protocol: str, model: str
) -> None:
    with (
        TextDetector(url_of(server, protocol), model=model) as detector,
        pytest.raises(ServerError, match="failed with RuntimeError; the server's log has the details") as caught,
    ):
        detector.detect(image() + b"BROKEN")
    assert caught.value.request_id
    unique = secrets.token_hex(4)
    evil = unique + '"]\n{"level": "error"}\x1b[31m' + "x" * 5000
    with TextDetector(url_of(server, protocol), model=model) as detector, pytest.raises(ServerError):
        detector.detect(image() + b"BROKEN", request_id=evil)
    expected = [caught.value.request_id, f"{unique}?????level?:??error????31mxxx"]
    deadline = time.monotonic() + 30
    found: list[Any] = []
    while len(found) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        lines = [json.loads(line) for line in stderr.getvalue().splitlines()]
        found = [line for line in lines if line.get("request_id", "").startswith(tuple(expected))]
    step = "ocdnet_preprocess" if model == "ocdnet" else model
    for line in found:
        assert {**line, "time": ""} == {
            "time": "",
            "level": "error",
            "component": "model",
            "model": step,
            "request_id": line["request_id"],
            "message": f"{step}: [request id: {line['request_id']}] RuntimeError: a fault",
        }
    assert [len(line["request_id"]) for line in found] == [16, 64]


def test_the_launcher_and_triton_log_one_json_object_per_line(tiny: Any, tmp_path: Path) -> None:
    tiny.model("quick")
    tiny.code("quick", 'print("loading", flush=True)')
    ports = [word for kind in ("http", "grpc", "metrics") for word in (f"--{kind}-port", "0")]
    command = [sys.executable, "-m", "ocdserve.cli", "serve", "--repository", str(tiny.path), *ports]
    options = ["--log-format", "json", "--log-file", str(tmp_path / "log")]
    lines: list[dict[str, Any]] = []
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            lines.append(json.loads(line))
            if lines[-1]["message"].startswith("ready: http://"):
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert all({"time", "level", "component", "message"} <= set(line) for line in lines)
    said = {(line["component"], line.get("model"), line["message"]) for line in lines}
    assert ("launcher", "quick", "loading quick ...") in said
    assert ("triton", "quick", "successfully loaded 'quick'") in said
    assert ("triton", None, "loading") in said
    assert ("launcher", None, "Ctrl-C stops the server") in said
    assert "successfully unloaded 'quick' version 1" in (tmp_path / "log").read_text()
