# SPDX-License-Identifier: Apache-2.0
import io
import json
import os
import signal
from argparse import Namespace
from collections.abc import Callable, Iterator
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
from ocdserve.results.pictures import QUAD_COLOUR
from ocdserve.results.reading import Reading

QUAD = [[10.0, 20.0], [50.0, 20.0], [50.0, 29.0], [10.0, 29.0]]
KINDS = ("json", "pdf", "png", "txt")


def reads(text: str = "Tea", score: float = 0.5) -> Callable[..., Reading]:
    """Reads a text, five times, in every image of 80 x 60."""

    def read(image: bytes, *, words: bool) -> Reading:
        assert words
        if image == b"bad":
            raise InvalidInputError("not an image")
        quads = np.array(QUAD, np.float32) + np.array([(0, 10 * row) for row in range(5)], np.float32)[:, None]
        scores = np.full(5, score, np.float32)
        return Reading(quads, scores, 80, 60, texts=(text,) * 5, text_scores=scores)

    return read


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), (90, 90, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def image(name: str, content: bytes | None = None) -> DemoImage:
    return DemoImage(name, Path(name).stem, lambda: png() if content is None else content)


def test_one_table_and_the_results_of_every_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = nullcontext(Served(reads(), reads()))
    assert show([image("a.png"), image("x/a.png")], Drawings(tmp_path), server, Clock()) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["image", "size", "boxes", "ms", "gRPC", "ms", "HTTP"]
    assert [line.split()[:3] for line in (out[1], out[6])] == [["a.png", "80x60", "5"], ["x/a.png", "80x60", "5"]]
    assert all(float(number) >= 0 for line in (out[1], out[6]) for number in line.split()[3:])
    assert out[2:6] == out[7:11] == ["    Tea", "    Tea", "    Tea", "    ... 2 more lines"]
    assert out[11].startswith("first result 0.")
    assert out[12:] == [
        f"wrote {tmp_path}/a.png, a.json, a.txt and a.pdf",
        f"wrote {tmp_path}/a-2.png, a-2.json, a-2.txt and a-2.pdf",
        "gRPC and HTTP gave the same answer for 2 of 2 images",
    ]
    assert sorted(os.listdir(tmp_path)) == [f"{stem}.{kind}" for stem in ("a-2", "a") for kind in KINDS]
    assert (tmp_path / "a.txt").read_text() == "Tea\nTea\nTea\nTea\nTea\n"
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF-")
    result = json.loads((tmp_path / "a-2.json").read_text())
    assert result.pop("ms_grpc") >= 0
    assert result.pop("ms_http") >= 0
    assert result.pop("detections")[0] == {"quad": QUAD, "score": 0.5, "text": "Tea", "text_score": 0.5}
    assert result == {"image": "x/a.png", "width": 80, "height": 60}
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.getpixel((30, 20)) == QUAD_COLOUR


def test_of_a_short_text_all_is_printed_and_of_a_wide_line_its_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quads = np.array([QUAD], np.float32)
    scores = np.ones(1, np.float32)
    found = Reading(quads, scores, 80, 60, texts=("harbour " * 10,), text_scores=scores)
    server = nullcontext(Served(lambda *_, **__: found, lambda *_, **__: found))
    assert show([image("a.png")], Drawings(tmp_path), server, Clock()) == 0
    line, after = capsys.readouterr().out.splitlines()[2:4]
    assert line == "    harbour harbour harbour harbour harbour harbour harbour harbo..."
    assert after.startswith("first result ")


@pytest.mark.parametrize("other", [reads(score=0.5000001), reads("tea")])
def test_different_results_are_a_failure(
    other: Callable[..., Reading], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = nullcontext(Served(reads(), other))
    assert show([image("a.png")], Drawings(tmp_path), server, Clock()) == 1
    out, err = capsys.readouterr()
    assert "ocdserve demo: a.png: gRPC and HTTP gave different answers (5 and 5 boxes)" in err
    assert "same answer" not in out


def test_an_image_that_fails_is_named_and_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = nullcontext(Served(reads(), reads()))
    assert show([image("b.jpg", b"bad"), image("a.png")], Drawings(tmp_path), server, Clock()) == 1
    assert "ocdserve demo: b.jpg: not an image\n" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == [f"a.{kind}" for kind in KINDS]


def test_the_server_is_stopped_whatever_happens(tmp_path: Path) -> None:
    events: list[str] = []

    @contextmanager
    def server() -> Iterator[Served]:
        events.append("started")
        try:
            yield Served(reads(), reads())
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
