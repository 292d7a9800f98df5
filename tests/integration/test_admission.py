# SPDX-License-Identifier: Apache-2.0
"""One request's fault, slowness or lateness is its own: malformed tensors, slow images, full queues and time limits."""

import http.client
import io
import json
import shutil
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import TritonServer
from ocdserve.client import DeadlineError, TextDetector

pytestmark = [pytest.mark.triton, pytest.mark.timed]

MODELS = ("ocdnet", "ocdnet_fused")
QUEUE = 4
# Of a model with one thread: three decoders, and one in the network.
WORKERS = 4
SLOW_S = 1.2
# A decoder that sleeps over images with a mark behind their end.
SLOW_DECODER = f"""
import time
from ocdserve.backend import detector

decode = detector.decode_for
def slow(policy, data, *arguments):
    if data.endswith(b"SLOW"):
        time.sleep({SLOW_S})
    return decode(policy, data, *arguments)
detector.decode_for = slow
"""
NETWORK_S = 0.05
# A network that sleeps over each image with a mark in its first pixel.
SLOW_NETWORK = f"""
import time
from ocdserve.backend.detector import Detector

infer = Detector.infer
def slow(self, images, frames=None):
    time.sleep({NETWORK_S} * sum(image[0, 0].tolist() == [0, 0, 77] for image in images))
    return infer(self, images, frames)
Detector.infer = slow
"""


def word_at(x: int, mark: int = 0) -> bytes:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[10:20, x : x + 40] = 255
    pixels[0, 0, 2] = mark
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


QUICK = [word_at(x) for x in range(10, 80, 10)]
SLOW = QUICK[0] + b"SLOW"
SLOW_IN_NETWORK = word_at(10, 77)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, red_bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("admission")
    options = PublishOptions(folder / "models", red_bundle, threads=1, queue_size=QUEUE)
    repository = publish(options)
    for name in ("ocdnet_preprocess", "ocdnet_fused"):
        code = repository / name / "1" / "model.py"
        code.write_text(SLOW_DECODER + code.read_text())
        # The first step has the threads of the machine; here it must be known how many it has.
        config = repository / name / "config.pbtxt"
        if "threads" not in config.read_text():
            config.write_text(config.read_text() + 'parameters { key: "threads" value { string_value: "1" } }\n')
    code = repository / "ocdnet_network" / "1" / "model.py"
    code.write_text(SLOW_NETWORK + code.read_text())
    return repository


@pytest.fixture(scope="module")
def server(
    repository: Path, running_server: Callable[..., AbstractContextManager[TritonServer]]
) -> Iterator[TritonServer]:
    with running_server(repository) as server:
        yield server


class Client:
    """tritonclient over gRPC."""

    def __init__(self, server: TritonServer) -> None:
        self._client = grpcclient.InferenceServerClient(server.grpc_url.partition("://")[2])

    def detect(self, model: str, *images: bytes, **options: Any) -> float:
        """Left side of the word that is found in the first image."""
        tensor = grpcclient.InferInput("IMAGE", [len(images), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image] for image in images], object))
        wanted = [grpcclient.InferRequestedOutput("QUADS")]
        return float(self._client.infer(model, [tensor], outputs=wanted, **options).as_numpy("QUADS")[0, 0, :, 0].min())


@pytest.fixture
def client(server: TritonServer) -> Client:
    return Client(server)


def status_of(call: Callable[[], object]) -> tuple[str | None, str]:
    """Status and message of a failing call."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status(), caught.value.message()


def counted(server: TritonServer) -> dict[tuple[str, str], int]:
    """Images by model and stage, once the models, which report in the background, are quiet."""
    found: dict[tuple[str, str], int] = {}
    for _ in range(100):
        with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        before, found = found, {}
        for line in lines:
            if line.startswith("ocdserve_stage_duration_seconds_count"):
                labels = dict(part.split("=") for part in line[line.index("{") + 1 : line.index("}")].split(","))
                found[labels["model"].strip('"'), labels["stage"].strip('"')] = int(float(line.split()[-1]))
        if found == before:
            return found
        time.sleep(0.1)
    raise AssertionError("the figures keep changing")


def lie(server: TritonServer, model: str) -> int:
    """Status of a request whose length prefix is larger than its data."""
    data = struct.pack("<I", 2**31 - 1) + QUICK[0]
    tensor = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    connection = http.client.HTTPConnection(server.http_url.partition("://")[2], timeout=30)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    connection.request("POST", f"/v2/models/{model}/infer", head + data, headers)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("model", MODELS)
def test_a_length_that_lies_harms_no_other_request(server: TritonServer, client: Client, model: str) -> None:
    expected = [client.detect(model, image) for image in QUICK]
    assert len(set(expected)) == len(QUICK)
    done = threading.Event()

    def attack() -> list[int]:
        statuses = []
        while not done.is_set():
            statuses.append(lie(server, model))
        return statuses

    def ask(index: int) -> list[float]:
        return [client.detect(model, QUICK[(index + turn) % len(QUICK)]) for turn in range(15)]

    with ThreadPoolExecutor(6) as threads:
        attackers = [threads.submit(attack) for _ in range(2)]
        answers = [threads.submit(ask, index) for index in range(4)]
        try:
            for index, answer in enumerate(answers):
                assert answer.result() == [expected[(index + turn) % len(QUICK)] for turn in range(15)]
        finally:
            done.set()
        assert {status for attacker in attackers for status in attacker.result()} == {400}


@pytest.mark.parametrize("model", MODELS)
def test_an_image_that_takes_long_delays_no_other(client: Client, model: str) -> None:
    expected = client.detect(model, QUICK[1])
    with ThreadPoolExecutor(2) as threads:
        slow = [threads.submit(client.detect, model, SLOW) for _ in range(2)]
        time.sleep(0.2)
        for _ in range(3):
            assert client.detect(model, QUICK[1]) == expected
        assert not any(each.done() for each in slow)
        assert [each.result() for each in slow] == [client.detect(model, QUICK[0])] * 2


@pytest.mark.parametrize("model", [pytest.param("ocdnet", marks=pytest.mark.long), "ocdnet_fused"])
def test_a_full_queue_refuses_at_once_and_decodes_nothing(server: TritonServer, client: Client, model: str) -> None:
    before = counted(server)
    with ThreadPoolExecutor(WORKERS + QUEUE) as threads:
        admitted = [threads.submit(client.detect, model, SLOW) for _ in range(WORKERS + QUEUE)]
        time.sleep(0.4)
        for _ in range(3):
            status, message = status_of(lambda: client.detect(model, SLOW))
            assert status == "StatusCode.UNAVAILABLE"
            assert f"{QUEUE} requests wait for" in message
        assert not any(each.done() for each in admitted)
        for each in admitted:
            each.result()
    first = "ocdnet_fused" if model == "ocdnet_fused" else "ocdnet_preprocess"
    assert counted(server)[first, "preprocess"] - before.get((first, "preprocess"), 0) == WORKERS + QUEUE


def grown(server: TritonServer, before: dict[tuple[str, str], int]) -> tuple[int, int]:
    """Images that the ensemble has decoded, and that its network has had, since then."""
    after = counted(server)
    decoded, computed = (
        after.get(key, 0) - before.get(key, 0)
        for key in (("ocdnet_preprocess", "preprocess"), ("ocdnet_network", "network"))
    )
    return decoded, computed


def test_the_queue_of_an_ensemble_is_that_of_all_its_steps(server: TritonServer, client: Client) -> None:
    client.detect("ocdnet", SLOW_IN_NETWORK)
    before = counted(server)
    calls = WORKERS + QUEUE + 6
    with ThreadPoolExecutor(calls) as threads:
        # Decoded at once, they wait for the network.
        waiting = [threads.submit(client.detect, "ocdnet", SLOW_IN_NETWORK) for _ in range(calls)]
        refusals = [error for each in waiting if isinstance(error := each.exception(), InferenceServerException)]
    assert 1 <= len(refusals) <= 6
    for refusal in refusals:
        assert refusal.status() == "StatusCode.UNAVAILABLE"
        assert f"{QUEUE} requests wait for ocdnet_preprocess" in refusal.message()
    assert grown(server, before) == (calls - len(refusals),) * 2
    # A place is free as soon as its answer is there.
    for _ in range(2):
        with ThreadPoolExecutor(WORKERS + QUEUE) as threads:
            for each in [threads.submit(client.detect, "ocdnet", QUICK[1]) for _ in range(WORKERS + QUEUE)]:
                each.result()


def test_what_would_wait_too_long_is_refused_at_once_and_not_decoded(server: TritonServer, client: Client) -> None:
    for _ in range(16):
        client.detect("ocdnet", SLOW_IN_NETWORK)
    before = counted(server)
    batch = [SLOW_IN_NETWORK] * 8
    with ThreadPoolExecutor(2) as threads:
        # 0.8 s of work, which is always admitted; more is not.
        admitted = [threads.submit(client.detect, "ocdnet", *batch) for _ in range(2)]
        time.sleep(NETWORK_S)
        begin = time.monotonic()
        status, message = status_of(lambda: client.detect("ocdnet", QUICK[0]))
        assert time.monotonic() - begin < 8 * NETWORK_S
        assert status == "StatusCode.UNAVAILABLE"
        assert "16 images wait for ocdnet_preprocess" in message
        assert "too long for its queue time of 1 s" in message
        for each in admitted:
            each.result()
    assert grown(server, before) == (16, 16)
    # Fewer are no queue.
    client.detect("ocdnet", QUICK[0])


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_network_does_not_work_for_clients_that_have_given_up(
    server: TritonServer, client: Client, scheme: str
) -> None:
    url = {"grpc": server.grpc_url, "http": server.http_url}[scheme]
    before = counted(server)
    with TextDetector(url, timeout_s=3 * NETWORK_S) as detector, ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(detector.detect, SLOW_IN_NETWORK) for _ in range(8)]
        given_up = sum(isinstance(each.exception(), DeadlineError) for each in calls)
    time.sleep(4 * NETWORK_S)
    assert given_up >= 5
    assert grown(server, before)[1] <= 4
    assert client.detect("ocdnet", QUICK[1]) == client.detect("ocdnet_fused", QUICK[1])


@pytest.mark.parametrize("model", ["ocdnet", pytest.param("ocdnet_fused", marks=pytest.mark.long)])
def test_what_is_overdue_is_not_computed(server: TritonServer, client: Client, model: str) -> None:
    before = counted(server)
    with ThreadPoolExecutor(6) as threads:
        # Their decoding takes longer than they have: no network. Behind them, some that have to wait too long: nothing.
        slow = [threads.submit(status_of, lambda: client.detect(model, SLOW, timeout=900_000)) for _ in range(3)]
        time.sleep(0.3)
        late = [threads.submit(status_of, lambda: client.detect(model, QUICK[1], timeout=300_000)) for _ in range(3)]
        for step, calls in (("network", slow), ("preprocess", late)):
            for each in calls:
                status, message = each.result()
                assert status == "StatusCode.UNAVAILABLE"
                assert f"before the stage {step} could begin" in message
    after = counted(server)
    names = {"ocdnet_fused": ("ocdnet_fused",) * 2, "ocdnet": ("ocdnet_preprocess", "ocdnet_network")}[model]
    grown = [after[key] - before.get(key, 0) for key in zip(names, ("preprocess", "network"), strict=True)]
    assert grown == [3, 0]
    assert client.detect(model, QUICK[1], timeout=30_000_000) == client.detect(model, QUICK[1])


@pytest.mark.long
def test_a_cancelled_request_is_not_decoded(server: TritonServer, client: Client) -> None:
    before = counted(server)
    with ThreadPoolExecutor(8) as threads:
        slow = [threads.submit(client.detect, "ocdnet_fused", SLOW) for _ in range(WORKERS)]
        time.sleep(0.3)
        cancelled = [
            threads.submit(status_of, lambda: client.detect("ocdnet_fused", QUICK[1], client_timeout=0.3))
            for _ in range(QUEUE)
        ]
        assert [each.result()[0] for each in cancelled] == ["StatusCode.DEADLINE_EXCEEDED"] * QUEUE
        for each in slow:
            each.result()
    key = ("ocdnet_fused", "preprocess")
    assert counted(server)[key] - before.get(key, 0) == WORKERS


@pytest.mark.parametrize("scheme", [pytest.param("grpc", marks=pytest.mark.long), "http"])
@pytest.mark.parametrize("model", ["ocdnet", pytest.param("ocdnet_fused", marks=pytest.mark.long)])
def test_the_sdk_says_how_long_it_waits(server: TritonServer, scheme: str, model: str) -> None:
    url = {"grpc": server.grpc_url, "http": server.http_url}[scheme]
    before = counted(server)
    with TextDetector(url, model=model, timeout_s=0.5) as detector:
        assert len(detector.detect(QUICK[1])) == 1
        with pytest.raises(DeadlineError):
            detector.detect(SLOW)
    time.sleep(SLOW_S)
    network = "ocdnet_fused" if model == "ocdnet_fused" else "ocdnet_network"
    assert counted(server)[network, "network"] - before.get((network, "network"), 0) == 1


@pytest.mark.long
def test_a_repository_of_an_earlier_version_works(
    repository: Path, tmp_path: Path, running_server: Callable[..., AbstractContextManager[TritonServer]]
) -> None:
    earlier = shutil.copytree(repository, tmp_path / "models")
    for path in earlier.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        for tensors in (config.input, config.output):
            kept = [tensor for tensor in tensors if tensor.name != "CONTEXT"]
            del tensors[:]
            tensors.extend(kept)
        for step in config.ensemble_scheduling.step:
            step.input_map.pop("CONTEXT", None)
            step.output_map.pop("CONTEXT", None)
        if config.name in ("ocdnet_preprocess", "ocdnet_fused"):
            config.dynamic_batching.default_queue_policy.max_queue_size = 7
            for tensor in config.input:
                tensor.allow_ragged_batch = True
            del config.parameters["queue_size"]
        path.write_text(text_format.MessageToString(config))
    with running_server(earlier) as server:
        client = Client(server)
        for model in MODELS:
            expected = [client.detect(model, image) for image in QUICK]
            assert len(set(expected)) == len(QUICK)
            with ThreadPoolExecutor(4) as threads:
                assert (
                    list(threads.map(lambda image, model=model: client.detect(model, image), QUICK * 4)) == expected * 4
                )
            status, message = status_of(lambda model=model: client.detect(model, b"hello"))
            assert status == "StatusCode.INVALID_ARGUMENT"
            assert "not an image" in message
