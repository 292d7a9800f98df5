# SPDX-License-Identifier: Apache-2.0
import io
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ocdserve.client
from ocdserve import backend
from ocdserve.cli import main
from ocdserve.client import MockTransport, TextDetector
from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.results.detections import Detections
from ocdserve.results.pictures import QUAD_COLOUR

DETECTION = {"quad": [[10.0, 20.0], [50.0, 20.0], [50.0, 40.0], [10.0, 40.0]], "score": 0.5}


class FakeDetector:
    """One box in every image of 80 x 60; an image of the bytes b"bad" is refused."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}
        self.calls: list[tuple[bytes, dict[str, Any]]] = []

    def load(self, **options: Any) -> "FakeDetector":
        self.loaded = options
        return self

    def detect(self, image: bytes, **overrides: Any) -> Detections:
        self.calls.append((image, overrides))
        if image == b"bad":
            raise InvalidInputError("not an image;\nsend a JPEG")
        return Detections(
            quads=np.array([DETECTION["quad"]], np.float32),
            scores=np.array([0.5], np.float32),
            width=80,
            height=60,
            polygons=(np.array([[1, 2], [3, 4], [5, 6]], np.float32),) if overrides.get("polygons") else None,
        )


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> FakeDetector:
    fake = FakeDetector()
    monkeypatch.setitem(vars(backend), "Detector", fake)
    return fake


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a.png, b.jpg (refused) and a folder of three pages."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 60), (90, 90, 90)).save("a.png")
    Path("b.jpg").write_bytes(b"bad")
    Path("pages").mkdir()
    for name in ("page10.png", "page2.PNG", "page1.webp", "notes.txt"):
        Path("pages", name).write_bytes(name.encode())
    return tmp_path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def without_ms(result: dict[str, Any]) -> dict[str, Any]:
    assert result.pop("ms") >= 0
    return result


def test_the_table_has_image_size_boxes_and_time(
    detector: FakeDetector, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "a.png"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "size", "boxes", "ms"]
    assert row.split()[:3] == ["a.png", "80x60", "1"]
    assert float(row.split()[3]) >= 0
    assert detector.loaded == {"bundle": None, "runtime": None}
    assert detector.calls == [((images / "a.png").read_bytes(), {})]


def test_json_on_stdout_is_one_object_per_line_and_nothing_else(
    detector: FakeDetector, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "a.png", "pages/page1.webp", "--json", "-"]) == 0
    results = [without_ms(result) for result in lines(capsys.readouterr().out)]
    assert results == [
        {"image": "a.png", "width": 80, "height": 60, "detections": [DETECTION]},
        {"image": "pages/page1.webp", "width": 80, "height": 60, "detections": [DETECTION]},
    ]


def test_json_is_written_to_a_file_in_addition_to_the_table(
    detector: FakeDetector, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "a.png", "--json", "found.jsonl"]) == 0
    [result] = lines(Path("found.jsonl").read_text())
    assert result["image"] == "a.png"
    assert "a.png" in capsys.readouterr().out


def test_a_failing_image_is_reported_and_the_others_are_processed(
    detector: FakeDetector, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "b.jpg", "none.png", "a.png", "--json", "-"]) == 1
    out, err = capsys.readouterr()
    bad, missing, good = lines(out)
    assert bad == {"image": "b.jpg", "error": "not an image; send a JPEG"}
    assert missing == {"image": "none.png", "error": "cannot read the file: No such file or directory"}
    assert good["detections"] == [DETECTION]
    assert err.splitlines() == [
        "ocdserve detect: b.jpg: not an image; send a JPEG",
        "ocdserve detect: none.png: cannot read the file: No such file or directory",
    ]


def test_a_folder_is_read_in_natural_order(
    detector: FakeDetector, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "pages", "--json", "-"]) == 0
    assert [result["image"] for result in lines(capsys.readouterr().out)] == [
        "pages/page1.webp",
        "pages/page2.PNG",
        "pages/page10.png",
    ]


def test_a_folder_without_images_is_refused(
    detector: FakeDetector, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    assert main(["detect", "empty"]) == 1
    assert "ocdserve detect: empty: no image in the folder 'empty'; looked for .avif, .bmp" in capsys.readouterr().err


def test_a_dash_reads_standard_input(
    detector: FakeDetector, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = Path("a.png").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert main(["detect", "-", "--json", "-", "--draw", "drawn"]) == 0
    assert lines(capsys.readouterr().out)[0]["image"] == "-"
    assert detector.calls[0][0] == content
    assert os.listdir("drawn") == ["stdin.png"]


def test_images_with_boxes_are_written(detector: FakeDetector, images: Path) -> None:
    assert main(["detect", "a.png", "a.png", "--draw", "out/drawn"]) == 0
    assert sorted(os.listdir("out/drawn")) == ["a-2.png", "a.png"]
    with Image.open("out/drawn/a.png") as picture:
        assert picture.getpixel((30, 20)) == QUAD_COLOUR
        assert picture.getpixel((30, 30)) == (90, 90, 90)


def test_an_image_that_cannot_be_drawn_keeps_its_result(
    detector: FakeDetector, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "pages/page1.webp", "--draw", "drawn", "--json", "-"]) == 1
    out, err = capsys.readouterr()
    assert [result["detections"] for result in lines(out)] == [[DETECTION]]
    assert "ocdserve detect: pages/page1.webp: cannot read the image" in err


def test_only_given_parameters_reach_the_detector_with_their_types(detector: FakeDetector, images: Path) -> None:
    options = [
        "--thresh",
        "0.25",
        "--box-thresh",
        ".5",
        "--unclip-ratio",
        "2",
        "--max-candidates",
        "7",
        "--min-size",
        "1",
        "--polygons",
    ]
    assert main(["detect", "a.png", *options]) == 0
    [(_, overrides)] = detector.calls
    assert overrides == {
        "thresh": 0.25,
        "box_thresh": 0.5,
        "unclip_ratio": 2.0,
        "max_candidates": 7,
        "min_size": 1.0,
        "polygons": True,
    }
    assert [type(value) for value in overrides.values()] == [float, float, float, int, float, bool]


def test_polygons_are_in_the_json(detector: FakeDetector, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "a.png", "--polygons", "--json", "-"]) == 0
    [result] = lines(capsys.readouterr().out)
    assert result["detections"][0]["polygon"] == [[1, 2], [3, 4], [5, 6]]


def test_bundle_and_runtime_select_the_detector(detector: FakeDetector, images: Path) -> None:
    assert main(["detect", "a.png", "--bundle", "my/bundle", "--runtime", "onnxruntime"]) == 0
    assert detector.loaded == {"bundle": Path("my/bundle"), "runtime": "onnxruntime"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--thresh", "1.5"], "argument --thresh: must be a number from 0 to 1"),
        (["--max-candidates", "2.5"], "argument --max-candidates: must be a whole number from 1 to 100000"),
        (["--url", "grpc://h:1", "--runtime", "openvino"], "leave them out with --url"),
        (["--url", "grpc://h:1", "--bundle", "x"], "leave them out with --url"),
        (["--model", "ocdnet_fused"], "give the server with --url"),
        (["--url", "grpc://h:1", "--threads", "2"], "leave it out with --url"),
        (["--threads", "0"], "argument --threads: must be a whole number, at least 1; got '0'"),
        (["--concurrency", "0"], "argument --concurrency: must be a whole number, at least 1; got '0'"),
        (["--tile", "10"], "--tile must be at least 64 pixels; got 10"),
        (["--tile", "100", "--overlap", "51"], "--overlap must be from 0 to half a tile, 50 pixels; got 51"),
        (["--resume", "--overwrite", "--json", "found.jsonl"], "leave one of them out"),
    ],
)
def test_contradictory_options_are_a_usage_error(
    options: list[str], reason: str, detector: FakeDetector, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "a.png", *options]) == 2
    assert reason in " ".join(capsys.readouterr().err.split())
    assert detector.calls == []
    assert detector.loaded == {}


def test_threads_reach_the_detector(detector: FakeDetector, images: Path) -> None:
    assert main(["detect", "a.png", "--threads", "2"]) == 0
    assert detector.loaded["threads"] == 2


@pytest.mark.parametrize(
    ("options", "missing"), [(["--draw", "drawn"], "PIL"), (["--parquet", "found.parquet"], "pyarrow")]
)
def test_a_missing_package_is_reported_before_anything_is_loaded_or_printed(
    options: list[str],
    missing: str,
    detector: FakeDetector,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["detect", "a.png", *options]) == 1
    out, err = capsys.readouterr()
    assert (out, detector.loaded) == ("", {})
    assert "pip install 'ocdserve[" in err


def test_an_existing_json_file_is_kept_unless_it_is_to_be_replaced(
    detector: FakeDetector, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("found.jsonl").write_text("mine")
    assert main(["detect", "a.png", "--json", "found.jsonl"]) == 1
    assert capsys.readouterr().err == (
        "ocdserve detect: the file 'found.jsonl' of --json exists; continue it with --resume, replace it with "
        "--overwrite, or name another\n"
    )
    assert Path("found.jsonl").read_text() == "mine"
    assert detector.loaded == {}
    assert main(["detect", "a.png", "--json", "found.jsonl", "--overwrite"]) == 0
    assert lines(Path("found.jsonl").read_text())[0]["image"] == "a.png"


def test_quiet_prints_nothing_but_json_and_errors(
    detector: FakeDetector, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", ".", "-q", "--json", "found.jsonl"]) == 1
    assert capsys.readouterr() == ("", "ocdserve detect: b.jpg: not an image; send a JPEG\n")
    assert main(["detect", "a.png", "pages", "-q", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert (len(lines(out)), err) == (4, "")


def test_a_json_file_that_cannot_be_written_is_named(
    detector: FakeDetector, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "a.png", "--json", "none/found.jsonl"]) == 1
    assert "cannot write the file 'none/found.jsonl' of --json: No such file or directory" in capsys.readouterr().err
    assert detector.calls == []


def served(monkeypatch: pytest.MonkeyPatch, transport: MockTransport) -> None:
    def detector(url: str, *, model: str | None = None) -> TextDetector:
        return TextDetector(url, model=model, transport=transport)

    monkeypatch.setattr(ocdserve.client, "TextDetector", detector)


def test_with_url_the_servers_model_is_used(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transport = MockTransport(
        lambda request: {
            "QUADS": np.array([[DETECTION["quad"]]], np.float32),
            "SCORES": np.array([[0.5]], np.float32),
            "COUNT": np.array([[1]], np.int32),
            "SIZE": np.array([[60, 80]], np.int32),
        }
    )
    served(monkeypatch, transport)
    options = ["--url", "grpc://h:8001", "--model", "ocdnet_fused", "--min-size", "5", "--json", "-"]
    assert main(["detect", "a.png", *options]) == 0
    [result] = lines(capsys.readouterr().out)
    assert without_ms(result) == {"image": "a.png", "width": 80, "height": 60, "detections": [DETECTION]}
    [request] = transport.requests
    assert (request.model, dict(request.parameters)) == ("ocdnet_fused", {"min_size": 5.0})
    assert transport.closed


def test_a_wrong_model_is_reported_with_those_that_are_ready(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served(monkeypatch, MockTransport(lambda _: {}, ready=lambda name: name in ("ocdnet", "ocdnet_raw")))
    assert main(["detect", "a.png", "--url", "http://h:8000", "--model", "ocdnet_row"]) == 1
    assert capsys.readouterr().err == (
        "ocdserve detect: the server at http://h:8000 has no ready model 'ocdnet_row'; did you mean ocdnet_raw?; "
        "ready are ocdnet, ocdnet_raw\n"
    )


def test_the_port_of_the_metrics_is_recognised(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(200 if self.path == "/metrics" else 405)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert main(["detect", "a.png", "--url", f"http://127.0.0.1:{server.server_port}"]) == 1
        finally:
            server.shutdown()
            thread.join()
    assert "the server answered 405" in (error := capsys.readouterr().err)
    assert "perhaps that of the metrics; by default, 8000 is Triton's for HTTP" in error


def test_an_absent_server_is_reported_once(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(_: Any) -> Any:
        raise UnavailableError("connection refused")

    served(monkeypatch, MockTransport(absent, ready=absent))
    assert main(["detect", "a.png", "a.png", "--url", "http://h:8000"]) == 1
    assert capsys.readouterr().err == (
        "ocdserve detect: no server with a ready model 'ocdnet' answers at http://h:8000; "
        "start one with `ocdserve serve`, or correct --url\n"
    )


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_host_without_an_address_is_named(scheme: str, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "a.png", "--url", f"{scheme}://nosuch.invalid:8000"]) == 1
    assert capsys.readouterr().err == "ocdserve detect: the host 'nosuch.invalid' of --url is unknown; correct it\n"


def test_an_invalid_url_is_refused(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "a.png", "--url", "h:8000"]) == 1
    assert "ocdserve detect: --url must be grpc://HOST:PORT or http://HOST:PORT" in capsys.readouterr().err
