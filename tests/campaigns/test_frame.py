# SPDX-License-Identifier: Apache-2.0
"""The campaigns' own counting: what is not the right answer is never counted as one."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.campaigns.clients import Load, Plan, Target
from tests.campaigns.report import Report

PICTURES = (b"right", b"wrong", b"refused", b"closed")


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if body.endswith(b"closed"):
            self.close_connection = True
            return
        answer = b"no answer" if body.endswith(b"wrong") else b"answer"
        self.send_response(503 if body.endswith(b"refused") else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_each_request_is_counted_by_its_outcome(address: str, tmp_path: Path) -> None:
    right = {("http", "m", index): (b"answer",) for index in range(4)}
    plan = Plan(Target(address, ""), PICTURES, right, [("http", "m")], 40, bad=[b"closed"], bad_share=0.2)
    with Load(plan) as load:
        tally = load.tally()
    assert len(tally.all) == 40
    outcomes, bad = tally.outcomes(), tally.bad_outcomes()
    assert set(outcomes) == {"right", "wrong", "503", "closed (RemoteDisconnected)"}
    assert set(bad) == {"closed (RemoteDisconnected)"}
    assert sum(outcomes.values()) + sum(bad.values()) == 40
    assert tally.right == sum(answer.picture == 0 for answer in tally.answers) > 0

    report = Report("example", "An example.", "example")
    report.answered(tally)
    assert not report.held
    report.table("Load", ("share",), [(0.12345,)])
    written = report.write(tmp_path).read_text()
    assert "| good requests without a right answer: none | " in written and "DOES NOT HOLD" in written
    assert "| 0.123 |" in written


def test_a_campaign_without_rules_does_not_hold() -> None:
    assert not Report("example", "An example.", "example").held
