# SPDX-License-Identifier: Apache-2.0
"""The foreground with a small Python program in place of tritonserver."""

import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ocdserve.backend.serve import ServeOptions, TritonServer, foreground, serve, supervisor
from ocdserve.backend.serve.reload import Source

FAKE = """
#!{python} -IS
import http.server, os, sys, time
options = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:] if "=" in argument)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        {after_ready}

    def log_message(self, *_):
        pass


{at_start}
http.server.HTTPServer(("127.0.0.1", int(options["http-port"])), Handler).serve_forever()
"""
# A moment later, as the launcher has by then read the answer.
DIE = 'time.sleep(0.2); os.write(2, b"E1121 02:26:53.0 1 x.cc:1] the roof is on fire\\n"); os._exit(3)'


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., ServeOptions]:
    (tmp_path / "models" / "model").mkdir(parents=True)
    (tmp_path / "models" / "model" / "config.pbtxt").write_text('name: "model"')
    (tmp_path / "fake" / "backends" / "python").mkdir(parents=True)
    (tmp_path / "fake" / "bin").mkdir()

    def make(at_start: str = "", after_ready: str = "pass") -> ServeOptions:
        binary = tmp_path / "fake" / "bin" / "tritonserver"
        source = textwrap.dedent(FAKE).format(python=sys.executable, at_start=at_start, after_ready=after_ready)
        binary.write_text(source.lstrip())
        binary.chmod(0o700)
        return ServeOptions(tmp_path / "models", http_port=0, grpc_port=0, metrics_port=0, tritonserver=binary)

    return make


def test_a_server_that_keeps_dying_is_given_up_with_its_log(
    options: Callable[..., ServeOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 0.05)
    messages: list[str] = []

    assert serve(options(after_ready=DIE), report=messages.append) == 3

    assert sum("starting it again" in message for message in messages) == 4
    assert messages[-1].startswith("giving up after 5 starts that ended at once. Triton ended with exit status 3")
    assert "the roof is on fire" in messages[-1]


def test_a_server_that_never_becomes_ready_is_not_tried_again(options: Callable[..., ServeOptions]) -> None:
    messages: list[str] = []
    assert serve(options(at_start=DIE), report=messages.append) == 1
    assert messages == [
        "Triton ended with exit status 3 while it loaded its models:\nE1121 02:26:53.0 1 x.cc:1] the roof is on fire"
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_old_handlers_come_back(
    options: Callable[..., ServeOptions], number: signal.Signals
) -> None:
    ready: list[str] = []

    def old_handler(*_: object) -> None:
        raise AssertionError

    # The parent may ignore the signal (nohup), and serve() would then ignore it too.
    before = signal.signal(number, old_handler)
    try:
        code = serve(options(), on_ready=lambda server: (ready.append(server.http_url), signal.raise_signal(number))[0])
        after = signal.getsignal(number)
    finally:
        signal.signal(number, before)

    assert code == 0
    assert len(ready) == 1
    assert after is old_handler


def test_without_a_terminal_sighup_reloads_and_does_not_stop(
    options: Callable[..., ServeOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreground, "_has_terminal", lambda: False)
    messages: list[str] = []

    def ready(server: object) -> None:
        signal.raise_signal(signal.SIGHUP)

    def report(message: str) -> None:
        messages.append(message)
        if "the reload failed" in message:
            signal.raise_signal(signal.SIGTERM)

    assert serve(options(), ready, report, Source()) == 0
    # The stand-in serves no model of ours.
    assert any("the repository holds no model of ocdserve" in message for message in messages)


def test_a_signal_while_models_load_ends_it_at_once(options: Callable[..., ServeOptions]) -> None:
    timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGTERM])
    timer.start()
    start = time.monotonic()
    assert serve(options(at_start="time.sleep(60)")) == 0
    assert time.monotonic() - start < 2.0


@pytest.mark.parametrize("end", ["time", "second signal", "death"])
def test_draining_ends_after_its_time_or_with_the_server(
    options: Callable[..., ServeOptions], end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreground, "_SAME_SIGNAL_S", 0.1)
    messages: list[str] = []
    after: dict[str, Callable[[TritonServer], None]] = {
        "time": lambda server: None,
        "second signal": lambda server: signal.raise_signal(signal.SIGTERM),
        "death": TritonServer.abort,
    }

    def ready(server: TritonServer) -> None:
        signal.raise_signal(signal.SIGTERM)
        threading.Timer(0.4, after[end], [server]).start()

    start = time.monotonic()
    assert serve(replace(options(), drain_s=2 if end == "time" else 60), ready, messages.append) == 0
    # The supervisor may report the death before draining ends.
    assert any(message.startswith("draining: for ") for message in messages)
    assert (time.monotonic() - start > 2.0) == (end == "time")


def test_a_server_that_hangs_does_not_lengthen_draining(options: Callable[..., ServeOptions]) -> None:
    hangs = replace(options(at_start="Handler.do_POST = lambda self: time.sleep(60)"), drain_s=1)
    start = time.monotonic()
    assert serve(hangs, lambda server: signal.raise_signal(signal.SIGTERM)) == 0
    assert time.monotonic() - start < 10.0
