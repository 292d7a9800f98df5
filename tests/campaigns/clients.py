# SPDX-License-Identifier: Apache-2.0
"""Closed-loop clients in a process of their own, which send good requests and account for each of them.

They are written on the protocols, not on the client library, whose retries would hide what happened.
"""

import http.client
import itertools
import json
import multiprocessing
import random
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

OUTPUTS = ("QUADS", "SCORES", "COUNT", "SIZE")
# Protocol and model of each client.
EIGHT_CLIENTS = tuple(itertools.product(("http", "grpc"), ("ocdnet", "ocdnet_fused"))) * 2
# After a request without an answer, so that an outage is not a busy loop.
_PAUSE_S = 0.02

# What is sent, and the status ("200", "OK") with the body that came back.
Ask = Callable[[bytes], tuple[str, bytes]]


@dataclass(frozen=True)
class Target:
    """A server's addresses, HOST:PORT, and what its clients need.

    Attributes:
        http: Address of HTTP.
        grpc: Address of gRPC.
        headers: Sent with each request, such as a token.
        certificate: Certificate in PEM that the server proves itself with; None: no TLS.
        timeout_s: Seconds after which a client gives up; None: never.
    """

    http: str
    grpc: str
    headers: Mapping[str, str] = field(default_factory=dict)
    certificate: str | None = None
    timeout_s: float | None = 60.0

    def connection(self, timeout_s: float | None = None) -> http.client.HTTPConnection:
        """A new HTTP connection."""
        seconds = self.timeout_s if timeout_s is None else timeout_s
        if self.certificate is None:
            return http.client.HTTPConnection(self.http, timeout=seconds)
        context = ssl.create_default_context(cadata=self.certificate)
        return http.client.HTTPSConnection(self.http, timeout=seconds, context=context)

    def channel(self) -> grpc.Channel:
        """A new gRPC channel, which takes answers of any size."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        if self.certificate is None:
            return grpc.insecure_channel(self.grpc, options)
        return grpc.secure_channel(self.grpc, grpc.ssl_channel_credentials(self.certificate.encode()), options)


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        at_s: When it was sent, on the monotonic clock, which all processes share.
        latency_s: Until its answer.
        client: Index of the client.
        picture: Index of the picture, or of the bad one.
        outcome: `right`; `wrong`, an answer with other bytes; else the status, or how the connection ended.
        is_bad: Whether a bad request was sent, whose outcome is never `right` or `wrong`.
        variant: Which of the right answers it was.
    """

    at_s: float
    latency_s: float
    client: int
    picture: int
    outcome: str
    is_bad: bool = False
    variant: int = 0


@dataclass(frozen=True)
class Tally:
    """All requests of a load; without `bad` in a name, the good ones are meant."""

    all: tuple[Answer, ...]

    @property
    def answers(self) -> list[Answer]:
        """Of the good requests."""
        return [answer for answer in self.all if not answer.is_bad]

    @property
    def right(self) -> int:
        """How many were answered, and rightly."""
        return self.outcomes()["right"]

    def outcomes(self) -> Counter[str]:
        """Number of requests by outcome."""
        return Counter(answer.outcome for answer in self.answers)

    def bad_outcomes(self) -> Counter[str]:
        """Number of bad requests by outcome."""
        return Counter(answer.outcome for answer in self.all if answer.is_bad)

    def latency_s(self, percentile: float) -> float:
        """A percentile of the latency of all requests; nan if there are none."""
        latencies = [answer.latency_s for answer in self.answers]
        return float(np.percentile(latencies, percentile)) if latencies else float("nan")

    def per_second(self) -> float:
        """Right answers per second, from the first request to the last answer."""
        first = min((answer.at_s for answer in self.answers), default=0.0)
        last = max((answer.at_s + answer.latency_s for answer in self.answers), default=0.0)
        return self.right / max(last - first, 1e-9)

    def row(self) -> tuple[object, ...]:
        """Cells for `HEADERS`."""
        others = ", ".join(f"{count} x {name}" for name, count in self.outcomes().items() if name != "right")
        p50, p99 = self.latency_s(50), self.latency_s(99)
        slowest = max((answer.latency_s for answer in self.answers), default=float("nan"))
        return len(self.answers), self.right, others or "none", p50, p99, slowest, self.per_second()


HEADERS = ("good", "right", "others", "p50 s", "p99 s", "max s", "right/s")


@dataclass(frozen=True)
class Plan:
    """A load of good requests.

    Attributes:
        target: The server.
        pictures: What is sent in turn, each client from another one on.
        right: By (protocol, model, index of the picture) the answers of which one must come.
        clients: Protocol and model of each.
        requests: How many all send together; None: until the load is stopped.
        bad: Files that are sent instead of a picture now and then.
        bad_share: Share of the requests that are bad.
    """

    target: Target
    pictures: Sequence[bytes]
    right: Mapping[tuple[str, str, int], Sequence[bytes]]
    clients: Sequence[tuple[str, str]] = EIGHT_CLIENTS
    requests: int | None = None
    bad: Sequence[bytes] = ()
    bad_share: float = 0.0


class Load:
    """Runs a plan in a process of its own, within a `with` block, which ends it.

    >>> with Load(plan) as load: ...
    >>> load.tally()
    """

    def __init__(self, plan: Plan) -> None:
        """The `with` block starts it."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(plan, theirs), daemon=True)
        self._tally: Tally | None = None

    def __enter__(self) -> "Load":
        self._process.start()
        # Importing grpc takes a moment, in which there is no load yet.
        self._pipe.recv()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        if kind is None:
            self.stop()
        self._process.kill()
        self._process.join()

    @property
    def running(self) -> bool:
        """Whether requests are still sent."""
        return self._tally is None and not self._pipe.poll()

    def stop(self) -> Tally:
        """Send no more requests; returns what became of all."""
        if self._tally is None:
            self._pipe.send("stop")
        return self.tally()

    def tally(self) -> Tally:
        """What became of all requests, once the last is answered."""
        if self._tally is None:
            self._tally = self._pipe.recv()
        return self._tally


def _run(plan: Plan, pipe: Any) -> None:
    stopping = threading.Event()
    numbers = itertools.count()
    lock = threading.Lock()
    answers: list[Answer] = []

    def ask_in_turn(client: int) -> None:
        ask, chance = asker(plan.target, *plan.clients[client]), random.Random(client)
        for turn in itertools.count(client):
            with lock:
                number = next(numbers)
            if stopping.is_set() or (plan.requests is not None and number >= plan.requests):
                return
            is_bad = chance.random() < plan.bad_share
            answer = _asked(plan, ask, client, turn % len(plan.bad if is_bad else plan.pictures), is_bad)
            answers.append(answer)
            if answer.outcome not in ("right", "wrong") and not is_bad:
                time.sleep(_PAUSE_S)

    threads = [threading.Thread(target=ask_in_turn, args=(client,), daemon=True) for client in range(len(plan.clients))]
    pipe.send("begins")
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if not stopping.is_set() and pipe.poll(0.05):
            stopping.set()
        time.sleep(0.05)
    pipe.send(Tally(tuple(sorted(answers, key=lambda answer: answer.at_s))))


def _asked(plan: Plan, ask: Ask, client: int, picture: int, is_bad: bool) -> Answer:
    at = time.monotonic()
    outcome, body = ask((plan.bad if is_bad else plan.pictures)[picture])
    latency_s, variant = time.monotonic() - at, 0
    if outcome in ("200", "OK") and not is_bad:
        allowed = list(plan.right[(*plan.clients[client], picture)])
        variant = allowed.index(body) if body in allowed else 0
        outcome = "right" if body in allowed else "wrong"
    return Answer(at, latency_s, client, picture, outcome, is_bad, variant)


def asker(target: Target, protocol: str, model: str) -> Ask:
    """A client of one connection that sends an image and returns the status with the answer's bytes."""
    return {"http": _http_asker, "grpc": _grpc_asker}[protocol](target, model)


def _http_asker(target: Target, model: str) -> Ask:
    connection: http.client.HTTPConnection | None = None

    def ask(image: bytes) -> tuple[str, bytes]:
        nonlocal connection
        connection = connection or target.connection()
        path, headers, body = http_request(model, image)
        try:
            connection.request("POST", path, body, {**headers, **target.headers})
            response = connection.getresponse()
            return str(response.status), response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            connection = None
            return ("timed out" if isinstance(error, TimeoutError) else f"closed ({type(error).__name__})"), b""

    return ask


def _grpc_asker(target: Target, model: str) -> Ask:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(target.channel())
    metadata = tuple(target.headers.items())

    def ask(image: bytes) -> tuple[str, bytes]:
        try:
            answer = stub.ModelInfer(grpc_request(model, image), timeout=target.timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            return error.code().name, error.details().encode()
        return "OK", answer.SerializeToString(deterministic=True)

    return ask


def http_request(
    model: str, image: bytes, prefix: int | None = None, parameters: Mapping[str, object] | None = None
) -> tuple[str, dict[str, str], bytes]:
    """Path, headers and body of a request with an encoded image; `prefix` is the length that is announced."""
    data = struct.pack("<I", len(image) if prefix is None else prefix) + image
    tensor = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    message: dict[str, Any] = {
        "inputs": [tensor],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in OUTPUTS],
    }
    if parameters:
        message["parameters"] = dict(parameters)
    head = json.dumps(message).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return f"/v2/models/{model}/infer", headers, head + data


def grpc_request(model: str, image: bytes, prefix: int | None = None) -> Any:
    """A `ModelInferRequest` with an encoded image."""
    message = service_pb2.ModelInferRequest(model_name=model)
    message.inputs.add(name="IMAGE", datatype="BYTES", shape=[1, 1])
    message.raw_input_contents.append(struct.pack("<I", len(image) if prefix is None else prefix) + image)
    for name in OUTPUTS:
        message.outputs.add(name=name)
    return message
