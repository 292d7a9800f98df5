# SPDX-License-Identifier: Apache-2.0
"""The real server with clients that wait without a limit: each of their requests ends when a model's process dies."""

import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2_grpc

from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import TritonServer
from ocdserve.backend.serve.process.processes import Stub
from tests.campaigns.clients import grpc_request
from tests.campaigns.serving import pictures, small_bundle

pytestmark = [pytest.mark.triton, pytest.mark.timed, pytest.mark.long]

ENDS_S = 12.0
STEPS = ("ocdnet_preprocess", "ocdnet_network", "ocdnet_postprocess")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, running_server: Callable[..., AbstractContextManager[TritonServer]]
) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("lost")
    small_bundle(folder / "bundle")
    repository = publish(PublishOptions(folder / "repository", bundle=folder / "bundle"))
    with running_server(repository, exit_timeout_s=1) as server:
        yield server


@pytest.fixture(scope="module")
def slow_image() -> bytes:
    """An image whose decoding takes long."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (2000, 3000, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Clients:
    """Clients that send requests without a limit of time, one after the other, until one fails or none is wanted."""

    def __init__(self, server: TritonServer, model: str, image: bytes, number: int) -> None:
        self.outcomes: list[str] = []
        self._url = server.grpc_url.removeprefix("grpc://")
        self._request = grpc_request(model, image)
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float) -> None:
        """Send no more requests; all that were sent have to end in time."""
        self._enough.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        waiting = sum(thread.is_alive() for thread in self._threads)
        assert waiting == 0, f"{waiting} requests without an end; the others: {self.outcomes}"

    def _ask(self) -> None:
        with grpc.insecure_channel(self._url, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            while not self._enough.is_set():
                try:
                    infer(self._request)
                except grpc.RpcError as error:
                    self.outcomes.append(error.code().name)
                    return
                self.outcomes.append("OK")


def living(server: TritonServer, model: str) -> Stub:
    """The process of a model, once the server is ready."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        found = [stub for stub in server.stubs() if stub.model == model and stub.alive()]
        if found and server.ready():
            return found[-1]
        time.sleep(0.1)
    raise AssertionError("the server is not ready again")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("victim", [*STEPS, "ocdnet_fused"])
def test_requests_in_flight_end_when_a_process_dies(
    server: TritonServer, slow_image: bytes, victim: str, number: signal.Signals
) -> None:
    # Also while the canaries of a start are not answered yet.
    stub = living(server, victim)
    clients = Clients(server, "ocdnet" if victim in STEPS else victim, slow_image, 8)
    time.sleep(1.0)
    os.kill(stub.pid, number)
    clients.wait(ENDS_S)


def test_many_requests_that_wait_for_a_stopped_process_end(server: TritonServer) -> None:
    # None was taken from Triton's queue, where Triton ends one per second.
    os.kill(living(server, "ocdnet_fused").pid, signal.SIGSTOP)
    Clients(server, "ocdnet_fused", pictures()[0], 24).wait(ENDS_S)
