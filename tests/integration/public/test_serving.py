# SPDX-License-Identifier: Apache-2.0
"""Good clients of the front door: TLS, tokens, files as the body, and probes."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from front_doors import FOUND, ONCE, SERVICE, TOKEN, WORD, ask, call, door, wait_for

from ocdserve.backend.serve import TritonServer
from ocdserve.backend.serve.public import front_door
from ocdserve.backend.serve.public.front_door import FrontDoor
from ocdserve.cli import main
from ocdserve.client import AccessError, TextDetector, Tls, UnavailableError

pytestmark = pytest.mark.triton


def test_the_client_library_detects_through_tls_and_tokens(
    server: TritonServer, certificates: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# of the tests\n{TOKEN}  # the first\n\nanother-token-of-them\n")
    tls = Tls(ca=certificates / "old.pem")
    messages: list[str] = []
    given = {"tls_cert": certificates / "old.pem", "tls_key": certificates / "old.key", "tokens": tokens}
    with door(server, messages, **given) as opened:
        assert [url.partition(":")[0] for url in opened.urls] == ["https", "grpcs"]
        assert messages == [f"open to the holders of 2 tokens: {opened.urls[0]}  {opened.urls[1]}"]
        for url, direct in zip(opened.urls, (server.http_url, server.grpc_url), strict=True):
            with TextDetector(direct) as detector:
                expected = detector.detect(WORD)
            for token in (TOKEN, "another-token-of-them"):
                with TextDetector(url, tls=tls, token=token) as detector:
                    assert detector.ready()
                    assert detector.detect(WORD).to_dict() == expected.to_dict()
                    assert len(detector.detect(np.zeros((64, 128, 3), np.uint8))) == 0
            for wrong in (None, TOKEN[:-1], TOKEN + "x", "# of the tests"):
                with TextDetector(url, tls=tls, token=wrong) as detector, pytest.raises(AccessError) as caught:
                    detector.detect(WORD)
                assert "a token of this server is missing" in str(caught.value)
                assert caught.value.status in ("401", "UNAUTHENTICATED")
        folder = server.workspace / f"door-{opened.port}"
        assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {
            "admin": "0o600",
            "bootstrap.json": "0o600",
            "listeners.json": "0o600",
            "proxy.log": "0o600",
        }
        assert TOKEN not in (folder / "bootstrap.json").read_text()


def test_secrets_of_a_configuration_that_the_proxy_refuses_are_not_shown(
    server: TritonServer, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    given = {"tls_cert": certificates / "old.pem", "tls_key": certificates / "old.key", "tokens": tmp_path / "tokens"}
    real = front_door.listeners
    monkeypatch.setattr(front_door, "listeners", lambda *args: {**real(*args), "version_info": {}})
    monkeypatch.setattr(front_door, "_START_S", 2)
    with pytest.raises(UnavailableError, match="proxy does not start") as caught, door(server, **given):
        pass
    assert "version_info" in str(caught.value)
    assert TOKEN not in str(caught.value) and "PRIVATE KEY" not in str(caught.value)


def test_an_image_file_as_the_body_is_answered_with_json(server: TritonServer, plain: FrontDoor) -> None:
    with TextDetector(server.http_url) as detector:
        expected = detector.detect(WORD, thresh=0.2).to_dict()
    status, _, body = ask(plain, "/detect?thresh=0.2", WORD, {})
    found = json.loads(body)
    assert (status, found["ms"] > 0, len(found["request_id"]) > 8) == (200, True, True)
    assert {name: found[name] for name in expected} == expected
    assert len(found["detections"]) == FOUND
    page = {"Host": "attacked.example", "Origin": "http://page.example"}
    assert ask(plain, "/detect", WORD, page)[0] == 200
    for query, image, reason in (
        ("", b"text", "not an image"),
        ("", b"%PDF-1.7\n", "PDF files are not rendered here"),
        ("?thresh=2", WORD, "request parameter 'thresh'"),
        ("?color=red", WORD, "request parameter 'color'"),
    ):
        status, _, body = ask(plain, f"/detect{query}", image, {})
        assert (status, reason in json.loads(body)["error"]) == (400, True), body
    for method, path in (
        ("GET", "/"),
        ("GET", "/config"),
        ("GET", "/detect"),
        ("POST", "/pages"),
        ("POST", "/preview"),
    ):
        assert ask(plain, path, WORD, {}, method)[0] == 404
    chunks = iter([WORD[:10], WORD[10:]])
    assert ask(plain, "/detect", chunks, {})[0] == 200


def test_probes_of_load_balancers_need_no_token(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    with door(server, tokens=tmp_path / "tokens") as opened:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert ask(opened, path, None, {}, "GET")[0] == 200
        for method in (f"{SERVICE}ServerLive", f"{SERVICE}ServerReady", "/grpc.health.v1.Health/Check"):
            assert call(opened, method, b"") == ("OK", "")
        assert ask(opened)[0] == 401
        assert ask(opened, "/v2", None, {}, "GET")[1]["www-authenticate"] == "Bearer"
        assert ask(opened, "/detect", WORD, {})[0] == 401
        assert call(opened, f"{SERVICE}ServerMetadata", b"")[0] == "UNAUTHENTICATED"


def test_the_command_serves_and_stops_with_its_front_door(
    server: TritonServer, tmp_path: Path, leftovers: Callable[[int], list[str]]
) -> None:
    command = [
        sys.executable,
        "-m",
        "ocdserve",
        "serve",
        "--repository",
        str(server.options.repository),
        "--public",
        "0",
        "--drain-s=1",
    ]
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen([*command, *ports], stderr=log)
    try:
        while "Ctrl-C stops" not in (tmp_path / "log").read_text():
            assert launcher.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        port = re.search(r"open to anybody: http://127.0.0.1:(\d+)  grpc://", (tmp_path / "log").read_text())
        assert port
        with TextDetector(f"grpc://127.0.0.1:{port[1]}") as detector:
            assert len(detector.detect(WORD)) == FOUND
            launcher.send_signal(signal.SIGTERM)
            health = f"http://127.0.0.1:{port[1]}"
            while main(["health", health]) == 0:
                assert launcher.poll() is None
            assert len(detector.detect(WORD)) == FOUND
        assert launcher.wait(30) == 0
    finally:
        launcher.kill()
        launcher.wait()
    assert leftovers(launcher.pid) == []


def test_new_tokens_and_certificates_are_used_without_a_restart(
    server: TritonServer, certificates: Path, tmp_path: Path
) -> None:
    cert, key, tokens = (tmp_path / name for name in ("cert", "key", "tokens"))
    shutil.copy(certificates / "old.pem", cert)
    shutil.copy(certificates / "old.key", key)
    tokens.write_text(TOKEN)
    messages: list[str] = []

    def works(ca: str, token: str) -> bool:
        try:
            with TextDetector(opened.urls[0], tls=Tls(ca=certificates / ca), token=token, retry=ONCE) as detector:
                return len(detector.detect(WORD)) == FOUND
        except Exception:
            return False

    with door(server, messages, tls_cert=cert, tls_key=key, tokens=tokens) as opened:
        pid = opened.pids[0]
        assert works("old.pem", TOKEN)
        tokens.write_text("short")
        wait_for(lambda: "goes on as before: tokens: line 1" in messages[-1])
        assert works("old.pem", TOKEN)
        tokens.write_text("another-token-of-them")
        wait_for(lambda: works("old.pem", "another-token-of-them") and not works("old.pem", TOKEN))
        shutil.copy(certificates / "new.key", key)
        shutil.copy(certificates / "new.pem", cert)
        wait_for(lambda: works("new.pem", "another-token-of-them") and not works("old.pem", "another-token-of-them"))
        assert opened.pids[0] == pid
