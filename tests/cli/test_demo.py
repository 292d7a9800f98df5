# SPDX-License-Identifier: Apache-2.0
import io
import json
import os
import signal
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ocdserve.cli import demo
from ocdserve.cli.demo import Clock, DemoImage, Served, show
from ocdserve.cli.detect.reports import Drawings
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections
from ocdserve.results.pictures import QUAD_COLOUR

QUAD = [[10.0, 20.0], [50.0, 20.0], [50.0, 40.0], [10.0, 40.0]]


class FakeDetector:
    """One box of the given score in every image of 80 x 60."""

    def __init__(self, score: float = 0.5) -> None:
        self.score = score

    def detect(self, image: bytes, **overrides: Any) -> Detections:
        if image == b"bad":
            raise InvalidInputError("not an image")
        return Detections(np.array([QUAD], np.float32), np.array([self.score], np.float32), 80, 60)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), (90, 90, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def image(name: str, content: bytes | None = None) -> DemoImage:
    return DemoImage(name, Path(name).stem, lambda: png() if content is None else content)


def test_one_table_and_the_results_of_every_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = nullcontext(Served(FakeDetector(), FakeDetector()))
    assert show([image("a.png"), image("x/a.png")], Drawings(tmp_path), server, Clock()) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["image", "size", "boxes", "ms", "gRPC", "ms", "HTTP"]
    assert [line.split()[:3] for line in out[1:3]] == [["a.png", "80x60", "1"], ["x/a.png", "80x60", "1"]]
    assert all(float(number) >= 0 for line in out[1:3] for number in line.split()[3:])
    assert out[3].startswith("first result 0.")
    assert out[4:] == [
        f"wrote {tmp_path}/a.png and a.json",
        f"wrote {tmp_path}/a-2.png and a-2.json",
        "gRPC and HTTP gave the same answer for 2 of 2 images",
    ]
    assert sorted(os.listdir(tmp_path)) == ["a-2.json", "a-2.png", "a.json", "a.png"]
    result = json.loads((tmp_path / "a-2.json").read_text())
    assert result.pop("ms_grpc") >= 0
    assert result.pop("ms_http") >= 0
    assert result == {"image": "x/a.png", "width": 80, "height": 60, "detections": [{"quad": QUAD, "score": 0.5}]}
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.getpixel((30, 20)) == QUAD_COLOUR


def test_different_results_are_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = nullcontext(Served(FakeDetector(0.5), FakeDetector(0.5000001)))
    assert show([image("a.png")], Drawings(tmp_path), server, Clock()) == 1
    out, err = capsys.readouterr()
    assert "ocdserve demo: a.png: gRPC and HTTP gave different answers (1 and 1 boxes)" in err
    assert "same answer" not in out


def test_an_image_that_fails_is_named_and_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = nullcontext(Served(FakeDetector(), FakeDetector()))
    assert show([image("b.jpg", b"bad"), image("a.png")], Drawings(tmp_path), server, Clock()) == 1
    assert "ocdserve demo: b.jpg: not an image\n" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.png"]


def test_the_server_is_stopped_whatever_happens(tmp_path: Path) -> None:
    events: list[str] = []

    @contextmanager
    def server() -> Iterator[Served]:
        events.append("started")
        try:
            yield Served(FakeDetector(), FakeDetector())
        finally:
            events.append("stopped")

    def interrupted() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show([DemoImage("a", "a", interrupted)], Drawings(tmp_path), server(), Clock())
    assert events == ["started", "stopped"]


def test_progress_goes_to_stderr_with_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    Clock().say("starting Triton")
    assert capsys.readouterr() == ("", "[  0.0 s] starting Triton\n")


@pytest.fixture
def signals() -> Iterator[None]:
    """Default handlers of SIGINT and SIGTERM, restored after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def raising(number: signal.Signals) -> Any:
    def show(*_: Any) -> int:
        signal.raise_signal(number)
        return 0

    return show


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_unwind_the_demo(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "show", raising(number))
    with pytest.raises(KeyboardInterrupt):
        demo.run(Namespace(images=[str(tmp_path / "a.png")], output=tmp_path / "out"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("signals")
def test_a_signal_that_was_ignored_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setattr(demo, "show", raising(signal.SIGINT))
    assert demo.run(Namespace(images=[str(tmp_path / "a.png")], output=tmp_path / "out")) == 0


@pytest.mark.usefixtures("signals")
def test_signals_are_ignored_while_the_server_is_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), demo._stop_undisturbed(Clock()):
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    assert capsys.readouterr().err.endswith("stopping the server\n")
