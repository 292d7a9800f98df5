# SPDX-License-Identifier: Apache-2.0
"""`ocdserve detect` over many images: patterns, concurrency, tiles, resuming, Parquet, progress, figures."""

import io
import json
import re
import struct
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ocdserve.client
from ocdserve import backend
from ocdserve.backend.detector import LocalDetector
from ocdserve.cli import main
from ocdserve.client import Downloads, InferRequest, MockTransport, TextDetector
from ocdserve.results.detections import Detections

QUAD = [[10.0, 20.0], [50.0, 20.0], [50.0, 40.0], [10.0, 40.0]]


class FakeDetector(LocalDetector):
    """One box in every image of any size; records its inputs."""

    def __init__(self) -> None:
        self.images: list[Any] = []
        self.downloads = Downloads()

    def load(self, **_: Any) -> "FakeDetector":
        return self

    def answer(self, images: Sequence[Any], *_: Any) -> list[Detections]:
        return [self.detect(image) for image in images]

    def detect(self, image: Any, **overrides: Any) -> Detections:
        self.images.append(image)
        height, width = image.shape[:2] if isinstance(image, np.ndarray) else (60, 80)
        return Detections(np.array([QUAD], np.float32), np.array([0.5], np.float32), width, height)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> FakeDetector:
    fake = FakeDetector()
    monkeypatch.setitem(vars(backend), "Detector", fake)
    return fake


@pytest.fixture(autouse=True)
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """scans/1.png, scans/2.png, scans/10.png, scans/deep/3.jpg, scans/notes.txt; the working directory holds scans."""
    monkeypatch.chdir(tmp_path)
    Path("scans/deep").mkdir(parents=True)
    for name in ("10.png", "2.png", "1.png", "deep/3.jpg", "notes.txt"):
        Path("scans", name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> MockTransport:
    """A server behind --url: one box in each image; b"bad" is refused."""

    def answer(request: InferRequest) -> dict[str, Any]:
        return {
            "QUADS": np.array([[QUAD]], np.float32),
            "SCORES": np.array([[0.5]], np.float32),
            "COUNT": np.array([[1]], np.int32),
            "SIZE": np.array([[60, 80]], np.int32),
        }

    transport = MockTransport(answer)

    def detector(url: str, *, model: str | None = None) -> TextDetector:
        return TextDetector(url, model=model, transport=transport)

    monkeypatch.setattr(ocdserve.client, "TextDetector", detector)
    return transport


def names(text: str) -> list[str]:
    return [json.loads(line)["image"] for line in text.splitlines()]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("scans/*.png", ["scans/1.png", "scans/2.png", "scans/10.png"]),
        ("scans/**/*", ["scans/1.png", "scans/2.png", "scans/10.png", "scans/deep/3.jpg"]),
        ("scans/[12].png", ["scans/1.png", "scans/2.png"]),
    ],
)
def test_a_pattern_selects_matching_images(
    detector: FakeDetector, pattern: str, found: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", pattern, "--json", "-"]) == 0
    assert names(capsys.readouterr().out) == found


def test_an_existing_file_named_like_a_pattern_is_that_file(
    detector: FakeDetector, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a[1].png").write_bytes(b"x")
    assert main(["detect", "a[1].png", "--json", "-"]) == 0
    assert names(capsys.readouterr().out) == ["a[1].png"]


def test_a_pattern_without_images_is_refused(detector: FakeDetector, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "scans/*.tif"]) == 1
    assert "no image matches 'scans/*.tif'; looked for .avif" in capsys.readouterr().err


def test_totals_are_printed_below_the_table(detector: FakeDetector, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "scans", "none.png", "--no-recursive"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"4 images, 3 boxes, 1 failed in \d+\.\d s: \d+\.\d\d images/s", last)


def test_requests_to_a_server_are_concurrent_and_results_ordered(
    served: MockTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    both = threading.Barrier(2, timeout=10)
    handler = served._handler

    def wait(request: InferRequest) -> Any:
        if len(served.requests) <= 2:
            both.wait()
        return handler(request)

    served._handler = wait
    arguments = ["scans/1.png", "none.png", "scans/2.png", "scans/10.png"]
    assert main(["detect", *arguments, "--url", "grpc://h:1", "--concurrency", "3", "--json", "-"]) == 1
    out, err = capsys.readouterr()
    assert names(out) == arguments
    assert json.loads(out.splitlines()[1])["error"].startswith("cannot read the file: No such file")
    assert json.loads(out.splitlines()[0])["ms"] > 0
    assert err.startswith("ocdserve detect: none.png: cannot read")
    assert len(served.requests) == 3


def test_resuming_skips_finished_images_and_repairs_a_truncated_line(
    detector: FakeDetector, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "scans/1.png", "none.png", "--json", "found.jsonl"]) == 1
    with open("found.jsonl", "a") as file:
        file.write('{"image": "scans/2.png", "wid')
    detector.images.clear()
    capsys.readouterr()
    Path("none.png").write_bytes(b"now there")
    assert main(["detect", "scans", "none.png", "--json", "found.jsonl", "--resume", "--no-recursive"]) == 0
    assert detector.images == [b"2.png", b"10.png", b"now there"]
    assert capsys.readouterr().out.startswith("1 of 4 images are already done\n")
    lines = [json.loads(line) for line in Path("found.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines if "error" not in line] == [
        "scans/1.png",
        "scans/2.png",
        "scans/10.png",
        "none.png",
    ]


def test_resuming_a_complete_run_does_nothing(detector: FakeDetector) -> None:
    for _ in range(2):
        assert main(["detect", "scans", "--json", "found.jsonl", "--resume", "--no-recursive"]) == 0
    assert len(detector.images) == 3
    assert len(Path("found.jsonl").read_text().splitlines()) == 3


def test_resuming_refuses_a_different_file(detector: FakeDetector, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.jsonl").write_text('{"image": "a.png"}\n')
    assert main(["detect", "scans", "--json", "notes.jsonl", "--resume"]) == 1
    assert "notes.jsonl, line 1, is not what `ocdserve detect --json` writes" in capsys.readouterr().err
    assert Path("notes.jsonl").read_text() == '{"image": "a.png"}\n'


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--resume"], "name that file"),
        (["--resume", "--json", "-"], "name that file"),
        (["--overlap", "9"], "--tile"),
        (["--second-look", "--tile", "100"], "leave one of them out"),
    ],
)
def test_options_without_their_prerequisite_are_a_usage_error(
    detector: FakeDetector, options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "scans", *options]) == 2
    assert reason in capsys.readouterr().err


def test_parquet_has_one_row_per_detection_including_earlier_runs(detector: FakeDetector) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    assert main(["detect", "scans/1.png", "--json", "found.jsonl"]) == 0
    assert (
        main(["detect", "scans", "--json", "found.jsonl", "--resume", "--parquet", "found.parquet", "--no-recursive"])
        == 0
    )
    rows = parquet.read_table("found.parquet").to_pylist()
    assert [row["image"] for row in rows] == ["scans/1.png", "scans/2.png", "scans/10.png"]
    assert {name: rows[0][name] for name in ("width", "height", "index", "score", "x3", "y3")} == {
        "width": 80,
        "height": 60,
        "index": 0,
        "score": 0.5,
        "x3": 50.0,
        "y3": 40.0,
    }


def test_parquet_without_pyarrow_names_the_package(
    detector: FakeDetector, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["detect", "scans", "--parquet", "found.parquet"]) == 1
    assert (
        "--parquet needs pyarrow: `pip install 'ocdserve[tables]'` (in a source tree: `make extra NAME=tables`)"
        in capsys.readouterr().err
    )
    assert detector.images == []


def test_progress_is_overwritten_on_stderr_only(detector: FakeDetector, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "scans", "--json", "-", "--progress", "--no-recursive"]) == 0
    out, err = capsys.readouterr()
    assert len(names(out)) == 3
    assert re.search(r"\r\x1b\[K\[######\.{14}\] 1/3 images, [\d.]+/s, \d+ s left", err)
    assert "[####################] 3/3 images" in err
    assert re.search(r"\r\x1b\[K3 images, 3 boxes in \d+\.\d s: [\d.]+ images/s\n$", err)


def test_a_second_look_asks_again_where_nothing_is_found(
    detector: FakeDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def detect(image: Any, **overrides: Any) -> Detections:
        asked.append((getattr(image, "shape", "file"), overrides))
        boxes = [[[5, 5], [50, 5], [50, 20], [5, 20]]] if len(asked) > 1 else []
        return Detections(np.array(boxes, np.float32).reshape(-1, 4, 2), np.full(len(boxes), 0.9, np.float32), 80, 60)

    monkeypatch.setattr(detector, "detect", detect)
    Image.new("RGB", (80, 60), "white").save("sparse.png")
    assert main(["detect", "sparse.png", "--second-look", "--thresh", "0.2", "--json", "-"]) == 0
    assert asked[0] == ("file", {"thresh": 0.2})
    assert asked[1] == ("file", {"thresh": 0.2, "box_thresh": 0.1, "polygons": False})
    assert asked[2] == ((736, 736, 3), {"thresh": 0.2})


def test_large_images_are_detected_in_tiles_in_process_and_through_a_server(
    detector: FakeDetector, served: MockTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (300, 100)).save("wide.png")
    for options in ([], ["--url", "grpc://h:1"]):
        assert main(["detect", "wide.png", "--tile", "100", "--overlap", "0", "--json", "-", *options]) == 0
        [result] = map(json.loads, capsys.readouterr().out.splitlines())
        assert (result["width"], result["height"]) == (300, 100)
        assert sorted(one["quad"][0] for one in result["detections"]) == [[10, 20], [110, 20], [210, 20]]
    assert [image.shape for image in detector.images] == [(100, 100, 3)] * 3
    assert [request.array.shape for request in served.requests] == [(1, 100, 100, 3)] * 3


@pytest.fixture
def site() -> Iterator[str]:
    """A web server: /a%20b.png and /deep/a b.png are images, anything else is missing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = "a%20b.png" in self.path
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", "3" if found else "0")
            self.end_headers()
            self.wfile.write(b"web" if found else b"")

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_images_by_url_are_fetched_in_process_and_for_a_server(
    detector: FakeDetector, served: MockTransport, site: str, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [f"{site}/a%20b.png?size=1", f"{site}/none.png", "scans/1.png"]
    for options in ([], ["--url", "grpc://h:1"]):
        assert main(["detect", *urls, "--allow-urls", "--json", "-", *options]) == 1
        out, err = capsys.readouterr()
        results = [json.loads(line) for line in out.splitlines()]
        assert [result["image"] for result in results] == urls
        assert ["error" in result for result in results] == [False, True, False]
        assert err == f"ocdserve detect: {urls[1]}: cannot fetch the image '{urls[1]}': HTTP 404 Not Found\n"
    assert detector.images == [b"web", b"1.png"]
    assert sorted(bytes(request.array.ravel()[0]) for request in served.requests) == [b"1.png", b"web"]


def test_results_of_a_url_are_named_after_its_file(detector: FakeDetector, site: str) -> None:
    words = [f"{site}/a%20b.png", "--allow-urls", "--format", "icdar", "--output", "out"]
    assert main(["detect", *words]) == 0
    assert [path.name for path in Path("out").iterdir()] == ["res_a b.txt"]
    assert main(["detect", *words, "--resume"]) == 0
    assert len(detector.images) == 1


def test_a_name_of_a_file_cannot_break_lines_or_reach_the_terminal(
    detector: FakeDetector, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("scans/1.png").rename("scans/a\nb\x1b[31m\u00e9.png")
    assert main(["detect", "scans", "scans/no\nne.png"]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:4]] == [
        "scans/2.png",
        "scans/10.png",
        "scans/a\\nb\\x1b[31m\u00e9.png",
    ]
    assert len({len(line) for line in out.splitlines()[:4]}) == 1
    assert err.splitlines()[-1].startswith("ocdserve detect: scans/no\\nne.png: cannot read the file: No such file")
    assert main(["detect", "scans", "--json", "-"]) == 0
    names = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
    assert "scans/a\nb\x1b[31m\u00e9.png" in names


def test_a_url_is_fetched_only_if_that_is_allowed(
    detector: FakeDetector, site: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", f"{site}/a%20b.png", "scans/1.png"]) == 1
    line = f"ocdserve detect: {site}/a%20b.png: a URL is fetched only with --allow-urls\n"
    assert capsys.readouterr().err == line
    assert detector.images == [b"1.png"]


def test_limits_of_downloads_are_reported_without_names_of_python(
    detector: FakeDetector, site: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ocdserve.client, "Downloads", lambda private: Downloads(private=private, max_bytes=2))
    assert main(["detect", f"{site}/a%20b.png", "--allow-urls"]) == 1
    assert capsys.readouterr().err.endswith("' has more than 2 bytes; send a smaller one\n")


def test_large_images_are_scaled_down_first_in_process_and_through_a_server(
    detector: FakeDetector, served: MockTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    large = Image.new("RGB", (300, 200), "white")
    large.getexif()[274] = 6  # shown as 200 x 300
    large.paste("black", (0, 0, 150, 200))
    large.save("large.png", exif=large.getexif())
    Image.new("RGB", (150, 100)).save("small.png")
    for options in ([], ["--url", "grpc://h:1"]):
        words = ["large.png", "small.png", "none.png", "--max-side", "150", "--json", "-", *options]
        assert main(["detect", *words]) == 1
        large_found, small_found, failed = map(json.loads, capsys.readouterr().out.splitlines())
        assert (large_found["width"], large_found["height"]) == (200, 300)
        scale = 2 if not options else 2.5  # the server's stand-in calls every image one of 80 x 60
        assert large_found["detections"][0]["quad"][1][0] == 50 * scale
        assert small_found["detections"][0]["quad"] == QUAD
        assert failed["error"].startswith("cannot read the ")
    assert detector.images[0].shape == (150, 100, 3)
    assert detector.images[0][:74].max() == 0 and detector.images[0][76:].min() == 255
    assert detector.images[1] == Path("small.png").read_bytes()
    assert sum(np.array_equal(request.array[0], detector.images[0]) for request in served.requests) == 1


@pytest.mark.parametrize("options", [["--max-side", "1000"], ["--max-side", "1000", "--url", "grpc://h:1"]])
def test_an_image_beyond_what_can_be_decoded_names_no_option_that_does_not_help(
    options: list[str], detector: FakeDetector, served: MockTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.BytesIO()
    Image.new("1", (1, 1)).save(stream, "PNG")
    for width, height, reason in ((20_000, 10_000, "200000000 pixels"), (70_000, 9, "a side of 70000 pixels")):
        header = stream.getvalue()[:16] + struct.pack(">II", width, height) + stream.getvalue()[24:29]
        Path("huge.png").write_bytes(header + struct.pack(">I", zlib.crc32(header[12:])) + stream.getvalue()[33:])
        assert main(["detect", "huge.png", *options]) == 1
        error = capsys.readouterr().err
        assert reason in error and re.search(r"[Ss]cale it down elsewhere\.?\n$", error) and "--" not in error
    assert detector.images == [] and served.requests == []


def test_the_limit_of_a_side_leaves_what_is_no_image_to_the_detector(
    detector: FakeDetector, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "scans/1.png", "--max-side", "64"]) == 0
    assert detector.images == [b"1.png"]
    assert main(["detect", "scans/1.png", "--max-side", "64", "--tile", "640"]) == 2
    assert "leave one of them out" in capsys.readouterr().err
    assert main(["detect", "scans/1.png", "--max-side", "9"]) == 2
    assert "argument --max-side: must be a whole number, at least 32; got '9'" in capsys.readouterr().err
