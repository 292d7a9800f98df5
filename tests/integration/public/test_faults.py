# SPDX-License-Identifier: Apache-2.0
"""A front door whose processes fail, whose model is loading, and that closes."""

import http.client
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from front_doors import GOOD, INFER, JSON, LENGTH, SERVICE, WORD, ask, call, door, infer_request, serves, wait_for

from ocdserve.backend.serve import TritonServer
from ocdserve.backend.serve.public import front_door
from ocdserve.backend.serve.public.front_door import FrontDoor

pytestmark = [pytest.mark.triton, pytest.mark.timed]


def test_a_model_that_is_loading_is_temporarily_unavailable(
    repository: Path, running_server: Callable[..., AbstractContextManager[TritonServer]]
) -> None:
    path = INFER.replace("ocdnet", "ocdnet_fused")
    # A server of its own, whose supervisor loads the model once more after the test.
    with running_server(repository) as server, door(server) as opened:
        server.api.unload("ocdnet_fused")
        deadline = time.monotonic() + 10
        while ask(opened, path)[0] == 200:
            assert time.monotonic() < deadline
        status, headers, body = ask(opened, path, headers={LENGTH: str(len(JSON)), "Accept-Encoding": "gzip"})
        assert (status, headers["retry-after"]) == (503, "1")
        assert "ocdnet_fused" in json.loads(body)["error"]
        status, text = call(opened, f"{SERVICE}ModelInfer", infer_request("ocdnet_fused"))
        assert (status, "ocdnet_fused" in text) == ("UNAVAILABLE", True)
        server.api.load("ocdnet_fused")
        wait_for(lambda: ask(opened, path)[0] == 200)


def test_a_proxy_that_is_killed_or_hangs_is_replaced(server: TritonServer) -> None:
    messages: list[str] = []
    with door(server, messages) as opened:
        folder = server.workspace / f"door-{opened.port}"
        for fault, reason in (
            (lambda: os.kill(opened.pids[0], signal.SIGKILL), "was ended by signal 9"),
            (lambda: os.kill(opened.pids[0], signal.SIGSTOP), "hangs (it was stopped by a signal)"),
            (lambda: shutil.rmtree(folder), "has lost its files"),
        ):
            fault()
            expected = [
                f"the front door's proxy {reason}; it is started again",
                "the front door's proxy was started again",
            ]
            wait_for(lambda expected=expected: messages[-2:] == expected)
            wait_for(lambda: serves(opened))


def test_a_process_for_uploads_that_dies_is_replaced(plain: FrontDoor) -> None:
    first = plain.pids[1]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: plain.pids[1] != first and ask(plain, "/detect", WORD, {})[0] == 200)


def test_a_front_door_that_closes_answers_those_who_are_in(server: TritonServer) -> None:
    with door(server) as opened:
        connection = http.client.HTTPConnection("127.0.0.1", opened.port, timeout=30)
        headers = {LENGTH: str(len(JSON))}
        for closes in (None, "close"):
            connection.request("POST", INFER, GOOD, headers)
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("connection")) == (200, closes)
            assert b'"name":"QUADS"' in answer.read()
            opened.drain()
        with pytest.raises(ConnectionRefusedError):
            connection.connect()


def test_a_front_door_that_sends_clients_away_lets_new_connections_in(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    with door(server, messages) as opened:
        opened.send_away()
        for _ in range(2):
            status, headers, _ = ask(opened)
            assert (status, headers["connection"]) == (200, "close")
        # It does not hang for that.
        monkeypatch.setattr(front_door, "_CHECK_S", 0.0)
        monkeypatch.setattr(front_door, "_HANG_S", 0.2)
        time.sleep(0.6)
    assert not [text for text in messages if "started again" in text]
