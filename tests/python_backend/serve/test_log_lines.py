# SPDX-License-Identifier: Apache-2.0
import io
import json
import logging
from datetime import datetime, timezone

import pytest

from ocdserve.backend.serve.log_lines import Failure, Incident, LogLine, LogWriter, request_line, safe_id
from ocdserve.contract import UnavailableError

STARTED = 'I1121 02:26:51.020973 5352 grpc_server.cc:2558] "Started GRPCInferenceService at 127.0.0.1:46497"'
LOADING = 'I1121 02:26:51.020973 5352 model_lifecycle.cc:472] "loading: slow:1"'
LOADED = "I1121 02:26:52.727422 5352 model_lifecycle.cc:839] \"successfully loaded 'slow'\""
FAILED = r'E1121 02:26:53.000000 5352 base_model.py:163] "ocdnet_fused: [request id: 4f-1] RuntimeError: a \"b\"\nc"'
QUEUE = 'W1121 02:26:53.000000 5352 x.cc:1] "in ensemble, [request id: <id_unknown>] Exceeds maximum queue size"'


def parsed(text: str) -> dict[str, str]:
    fields = json.loads(LogLine.of_triton(text).to_json())
    assert datetime.fromisoformat(fields["time"].replace("Z", "+00:00")).tzinfo == timezone.utc
    return {name: value for name, value in fields.items() if name != "time"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            STARTED,
            {
                "level": "info",
                "component": "triton",
                "message": "Started GRPCInferenceService at 127.0.0.1:46497",
            },
        ),
        (LOADING, {"level": "info", "component": "triton", "model": "slow", "message": "loading: slow:1"}),
        (LOADED, {"level": "info", "component": "triton", "model": "slow", "message": "successfully loaded 'slow'"}),
        (
            FAILED,
            {
                "level": "error",
                "component": "model",
                "model": "ocdnet_fused",
                "request_id": "4f-1",
                "message": 'ocdnet_fused: [request id: 4f-1] RuntimeError: a "b"\nc',
            },
        ),
        (
            QUEUE,
            {
                "level": "warning",
                "component": "triton",
                "message": "in ensemble, [request id: <id_unknown>] Exceeds maximum queue size",
            },
        ),
        ("Traceback (most recent call last):", {"level": "info"}),
        ('E0231 02:26:53.000000 1 x.cc:1] "no such day"', {"level": "error", "message": "no such day"}),
        ('E1121 02:26:53.000000 1 x.cc:1] "cut', {"level": "error", "message": '"cut'}),
    ],
)
def test_a_line_of_triton_becomes_an_object(text: str, expected: dict[str, str]) -> None:
    assert parsed(text) == {"message": text, "component": "triton", **expected}


def test_a_time_of_december_read_in_january_is_last_year(monkeypatch: pytest.MonkeyPatch) -> None:
    from ocdserve.backend.serve import log_lines

    monkeypatch.setattr(log_lines, "_now", lambda: datetime(2027, 1, 1, 0, 0, 1, tzinfo=timezone.utc))
    text = 'I1231 23:59:59.500000 1 x.cc:1] "late"'
    assert LogLine.of_triton(text).time == datetime(2026, 12, 31, 23, 59, 59, 500_000, tzinfo=timezone.utc)


def test_a_request_id_cannot_forge_a_line() -> None:
    evil = 'a]\n{"level": "error"}\x1b[31m' + "x" * 5000
    line = request_line("ocdnet", evil, "RuntimeError: a fault")
    assert line.startswith("ocdnet: [request id: a???")
    assert line.endswith("x] RuntimeError: a fault")
    assert len(line) == len("ocdnet: [request id: ] RuntimeError: a fault") + 64
    assert line.isprintable()
    assert request_line("ocdnet", "", "a fault") == "ocdnet: [request id: <id_unknown>] a fault"
    assert safe_id("00-4bf92f.3:5/@+=_é") == "00-4bf92f.3:5/@+=_?"


def test_json_has_one_object_per_line_whatever_the_message() -> None:
    stream = io.StringIO()
    log = LogWriter("json", stream)
    log.know(["ocdnet", "slow"])
    with log.installed():
        log.report("loading slow ...")
        log.report(Incident("slow: Python process 7 died\nwith a reason \x1b[31m"))
        log.report("Triton serves again")
        log.report(Failure(UnavailableError("giving up")))
        log.relay(FAILED)
        log.relay("x" * 100_000)
        logging.getLogger("some.library").warning("look %s", "here")
    text = stream.getvalue()
    assert text.isascii() and "\x1b" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["component"], line["level"], line.get("model")) for line in lines] == [
        ("launcher", "info", "slow"),
        ("launcher", "warning", "slow"),
        ("launcher", "info", None),
        ("launcher", "error", None),
        ("model", "error", "ocdnet_fused"),
        ("triton", "info", None),
        ("launcher", "warning", None),
    ]
    assert len(lines[5]["message"]) == 16_384
    assert lines[6]["message"] == "look here"


def test_text_has_the_warnings_and_errors_of_the_models() -> None:
    stream = io.StringIO()
    log = LogWriter("text", stream)
    log.report("ready: http://127.0.0.1:8000")
    for line in (STARTED, "a print", QUEUE, FAILED):
        log.relay(line)
    assert stream.getvalue().splitlines() == [
        "ocdserve: ready: http://127.0.0.1:8000",
        'ocdserve: error: ocdnet_fused: [request id: 4f-1] RuntimeError: a "b" c',
    ]


def test_a_reader_that_has_left_stops_nothing() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    LogWriter("json", Closed()).report("ready")
