# SPDX-License-Identifier: Apache-2.0
"""The playground over real HTTP with a detector that knows its answer, and the page in a headless Chromium."""

import html
import http.client
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kserve_fakes import grpc_server, http_server
from PIL import Image

from ocdserve.cli import main
from ocdserve.cli.play import served_defaults
from ocdserve.cli.playground import PlayOptions, PlayServer
from ocdserve.client import MockTransport, TextDetector
from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.inputs.pictures import street
from ocdserve.results.detections import Detections
from ocdserve.results.reading import Reading

REPOSITORY = Path(__file__).resolve().parents[2]


class Known:
    """Finds the street's signs in everything, those above `box_thresh` of scores 0.9, 0.85, ..., 0.45."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, dict[str, Any]]] = []

    def detect(self, image: Any, **overrides: Any) -> Detections:
        self.calls.append((image, overrides))
        if isinstance(image, bytes) and image == b"bad":
            raise InvalidInputError("not an image;\nsend a JPEG")
        if isinstance(image, bytes) and image == b"down":
            raise UnavailableError("grpc://h:1 does not answer")
        quads = street().quads
        scores = np.linspace(0.9, 0.45, len(quads), dtype=np.float32)
        found = Detections(quads, scores, 1280, 720, tuple(quads) if overrides.get("polygons") else None)
        return found.filter(min_score=overrides.get("box_thresh", 0.5))

    def read(self, image: Any, **overrides: Any) -> Reading:
        """The first sign, and what it says."""
        self.calls.append((image, overrides))
        scores = np.array([0.9375], np.float32)
        return Reading(street().quads[:1], scores, 1280, 720, texts=("BAKERY",), text_scores=scores)


COLOURS = ((200, 0, 0), (0, 160, 0), (0, 0, 220))


def pages(form: str, count: int = 3) -> bytes:
    """A file of pages of 1200 x 700 pixels, each of its own colour."""
    first, *others = (Image.new("RGB", (1200, 700), colour) for colour in COLOURS[:count])
    stream = io.BytesIO()
    options = {"PDF": {"resolution": 200.0}, "TIFF": {"compression": "tiff_lzw"}}.get(form, {})
    first.save(stream, form, save_all=True, append_images=others, **options)
    return stream.getvalue()


@pytest.fixture
def known() -> Known:
    return Known()


@pytest.fixture
def server(known: Known) -> Iterator[PlayServer]:
    defaults = {"thresh": 0.3, "box_thresh": 0.6, "unclip_ratio": 1.5, "max_candidates": 1000, "min_size": 3}
    with served(known.detect, defaults=defaults, samples=lambda: {"street.png": street().png()}) as serving:
        yield serving


@contextmanager
def served(detect: Callable[..., Detections], **options: Any) -> Iterator[PlayServer]:
    with PlayServer(PlayOptions(detect, port=0, max_bytes=2_000_000, **options)) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.05,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.mark.parametrize("port", ["99999", "-1", "http"])
def test_a_port_out_of_range_is_a_usage_error(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", f"--port={port}"]) == 2
    assert f"argument --port: must be a whole number, from 0 to 65535; got '{port}'" in capsys.readouterr().err


def ask(
    server: PlayServer, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_an_image_is_detected_with_the_parameters_of_the_query(server: PlayServer, known: Known) -> None:
    status, _, body = ask(server, "POST", "/detect?box_thresh=0.8&polygons=true&max_candidates=7", b"picture")
    result = json.loads(body)
    assert (status, result["width"], result["height"]) == (200, 1280, 720)
    assert [round(one["score"], 2) for one in result["detections"]] == [0.9, 0.85, 0.8]
    assert result["detections"][0]["polygon"] == result["detections"][0]["quad"]
    assert result["ms"] >= 0
    assert known.calls == [(b"picture", {"box_thresh": 0.8, "max_candidates": 7, "polygons": True})]


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/detect?box_thresh=2", b"x", 400, "'box_thresh' must be a number from 0 to 1"),
        ("/detect?colour=red", b"x", 400, "unknown request parameter 'colour'"),
        ("/detect?colour=red", bytes(1_900_000), 400, "unknown request parameter 'colour'"),
        ("/detect", b"bad", 400, "not an image; send a JPEG"),
        ("/detect", b"down", 503, "grpc://h:1 does not answer"),
        ("/detect", bytes(2_000_001), 413, "the file has 1.9 MiB; at most 1.90735 MiB are accepted"),
        ("/detect", bytes(30_000_000), 413, "the file has 28.6 MiB; at most"),
        ("/other", b"x", 404, "POST the image to /detect"),
    ],
)
def test_errors_are_sentences_with_a_fitting_status(
    server: PlayServer, path: str, body: bytes, status: int, reason: str
) -> None:
    got, _, content = ask(server, "POST", path, body)
    assert got == status
    assert reason in json.loads(content)["error"]


def test_a_body_of_unknown_length_is_refused(server: PlayServer) -> None:
    status, _, body = ask(server, "POST", "/detect", None, {"Content-Length": "many"})
    assert (status, json.loads(body)["error"].partition(";")[0]) == (400, "the request must have a Content-Length")


@pytest.mark.parametrize("form", ["TIFF", "GIF", "WEBP", "PDF"])
def test_a_page_of_a_file_is_counted_shown_and_detected(server: PlayServer, known: Known, form: str) -> None:
    if form == "PDF":
        pytest.importorskip("pypdfium2", reason="needs the extra pdf")
    content = pages(form)
    status, _, body = ask(server, "POST", "/pages", content)
    assert (status, json.loads(body)) == (200, {"pages": 3, "pdf": form == "PDF"})
    status, headers, png = ask(server, "POST", "/preview?page=2", content)
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert near(png, COLOURS[1])
    status, _, body = ask(server, "POST", "/detect?page=3&box_thresh=0.8", content)
    assert (status, json.loads(body)["page"], len(json.loads(body)["detections"])) == (200, 3, 3)
    [(image, overrides)] = known.calls
    if form == "PDF":
        assert overrides == {"box_thresh": 0.8}
        assert image.shape == (700, 1200, 3)
        assert np.abs(image.astype(int) - COLOURS[2]).max() <= 3
    else:
        assert (image, overrides) == (content, {"box_thresh": 0.8, "page": 3})


@pytest.mark.parametrize(
    ("path", "form", "reason"),
    [
        ("/detect", "PDF", "the PDF has 3 pages. Choose one by page=1 to page=3."),
        ("/detect?page=4", "PDF", "page must be from 1 to 3, the pages of this PDF file; got 4"),
        ("/preview", "TIFF", "the TIFF file has 3 pages"),
        ("/preview?page=4", "GIF", "page must be from 1 to 3, the pages of this GIF file; got 4"),
    ],
)
def test_a_page_that_is_not_there_or_not_chosen_is_refused(
    server: PlayServer, path: str, form: str, reason: str
) -> None:
    if form == "PDF":
        pytest.importorskip("pypdfium2", reason="needs the extra pdf")
    status, _, body = ask(server, "POST", path, pages(form))
    assert status == 400
    assert reason in json.loads(body)["error"]


@pytest.mark.parametrize(("form", "model"), [("TIFF", "ocdnet"), ("PDF", "ocdnet_raw")])
def test_a_server_is_sent_the_file_with_the_page_or_the_rendered_page(form: str, model: str) -> None:
    if form == "PDF":
        pytest.importorskip("pypdfium2", reason="needs the extra pdf")
    none = {"QUADS": np.zeros((1, 0, 4, 2), np.float32), "SCORES": np.zeros((1, 0), np.float32)}
    size = {"COUNT": np.array([[0]], np.int32), "SIZE": np.array([[700, 1200]], np.int32)}
    transport = MockTransport(lambda _: none | size)
    with TextDetector("grpc://127.0.0.1:1", transport=transport) as detector, served(detector.detect) as server:
        status, _, body = ask(server, "POST", "/detect?page=2", pages(form))
    assert (status, json.loads(body)["page"]) == (200, 2)
    [sent] = transport.requests
    assert sent.model == model
    if form == "PDF":
        assert (sent.array.shape, dict(sent.parameters)) == ((1, 700, 1200, 3), {})
    else:
        assert (sent.array[0, 0], dict(sent.parameters)) == (pages(form), {"page": 2})


def test_the_only_page_of_a_pdf_needs_no_number(server: PlayServer, known: Known) -> None:
    pytest.importorskip("pypdfium2", reason="needs the extra pdf")
    assert json.loads(ask(server, "POST", "/pages", pages("PDF", 1))[2]) == {"pages": 1, "pdf": True}
    assert near(ask(server, "POST", "/preview", pages("PDF", 1))[2], COLOURS[0])
    assert "page" not in json.loads(ask(server, "POST", "/detect", pages("PDF", 1))[2])
    assert known.calls[0][0].shape == (700, 1200, 3)


def test_a_pdf_without_its_package_is_refused_by_one_line(server: PlayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    for path in ("/pages", "/preview?page=1", "/detect?page=1"):
        status, _, body = ask(server, "POST", path, pages("PDF", 1))
        assert status == 503
        assert re.fullmatch(
            r"PDF files need pypdfium2, which is not installed: .*ocdserve\[pdf\].*", json.loads(body)["error"]
        )


def near(png: bytes, colour: tuple[int, int, int]) -> bool:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size == (1200, 700)
        return bool(np.abs(np.asarray(picture.convert("RGB"), int) - colour).max() <= 3)


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}])
def test_requests_of_other_sites_are_refused(server: PlayServer, known: Known, headers: dict[str, str]) -> None:
    status, _, body = ask(server, "POST", "/detect", b"picture", headers)
    assert status == 403
    assert json.loads(body) == {"error": f"this page is only for {server.address}"}
    assert known.calls == []


def test_the_page_and_its_parts_load_nothing_from_elsewhere(server: PlayServer) -> None:
    for path, kind in (("/?sample=street", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        status, headers, body = ask(server, "GET", path)
        assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", body)
    assert ask(server, "GET", "/server.py")[0] == 404
    assert ask(server, "GET", "/samples/street.png")[2][:4] == b"\x89PNG"
    assert ask(server, "GET", "/samples/none.png")[0] == 404


def test_samples_without_pillow_name_the_package_to_install(known: Known) -> None:
    def absent() -> Mapping[str, bytes]:
        raise ModuleNotFoundError("No module named 'PIL'")

    missing = pytest.raises(UnavailableError, match=r"pip install 'ocdserve\[images\]'")
    with PlayServer(PlayOptions(known.detect, port=0, samples=absent)) as server, missing:
        server.sample("street.png")


def test_it_listens_on_this_machine_only_and_names_a_taken_port(server: PlayServer, known: Known) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(UnavailableError, match=f"cannot listen on 127.0.0.1:{server.server_port}: .*--port"):
        PlayServer(PlayOptions(known.detect, port=server.server_port))


@pytest.fixture
def chromium(tmp_path: Path) -> list[str]:
    """The command of a headless browser that opens one page with a profile of its own."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not found:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    return [found, *options, f"--user-data-dir={tmp_path}", "--window-size=1440,980", "--virtual-time-budget=20000"]


def dom(chromium: list[str], url: str) -> str:
    done = subprocess.run([*chromium, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True)
    return html.unescape(done.stdout)


def test_the_page_draws_a_quad_for_each_detection_in_a_real_browser(
    server: PlayServer, known: Known, chromium: list[str]
) -> None:
    page = dom(chromium, f"{server.address}/?sample=street&box_thresh=0.7&labels")
    assert 'data-state="done"' in page
    # Of the scores 0.9, 0.85, ... 0.45 those from 0.7 on.
    assert 'data-boxes="5"' in page
    assert page.count("<polygon points=") == 5
    assert re.findall(r"<text [^>]*>([\d.]+)</text>", page) == ["0.90", "0.85", "0.80", "0.75", "0.70"]
    assert "street.png, 1280 × 720" in page
    assert 'found = detector.detect("street.png", box_thresh=0.7)' in page
    assert known.calls == [(street().png(), {"box_thresh": 0.7})]


def test_the_page_shows_the_same_call_for_curl(server: PlayServer, chromium: list[str], tmp_path: Path) -> None:
    page = dom(chromium, f"{server.address}/?sample=street&box_thresh=0.8&tab=curl")
    [command] = re.findall(r'<code id="snippet">(.*?)</code>', page, re.DOTALL)
    (tmp_path / "street.png").write_bytes(street().png())
    done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=tmp_path, check=True)
    assert len(json.loads(done.stdout)["detections"]) == 3


def test_the_page_shows_errors(server: PlayServer, chromium: list[str]) -> None:
    assert "there is no '/samples/none.png' here" in dom(chromium, f"{server.address}/?sample=none")
    page = dom(chromium, f"{server.address}/?sample=street&thresh=7")
    assert 'data-state="failed"' in page
    assert "'thresh' must be a number from 0 to 1" in page


def test_a_screenshot_is_kept(server: PlayServer, chromium: list[str]) -> None:
    file = REPOSITORY / "out" / "play" / "playground.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    url = f"{server.address}/?sample=street&labels"
    subprocess.run([*chromium, f"--screenshot={file}", url], capture_output=True, timeout=120, check=True)
    with Image.open(file) as picture:
        assert picture.size == (1440, 980)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1440 * 980) or []}
    assert (0x16, 0xD6, 0x5F) in colours  # the quads' green


def test_the_sliders_start_at_the_detectors_own_thresholds_else_at_the_contracts(known: Known) -> None:
    with PlayServer(PlayOptions(known.detect, port=0, defaults={"box_thresh": 0.45})) as server:
        defaults = {one["name"]: one["default"] for one in server.config()["parameters"]}
    assert defaults == {
        "thresh": 0.3,
        "box_thresh": 0.45,
        "unclip_ratio": 1.5,
        "max_candidates": 1000,
        "min_size": 3,
        "polygons": False,
    }


def test_the_page_offers_the_formats_that_are_read_and_no_slider_for_the_page(
    server: PlayServer, chromium: list[str]
) -> None:
    assert "page" not in {one["name"] for one in server.config()["parameters"]}
    page = dom(chromium, server.address)
    assert '<span id="formats">JPEG, PNG, WebP, BMP, TIFF, GIF, JPEG 2000, AVIF, PDF</span>' in page
    accepted = "image/jpeg,image/png,image/webp,image/bmp,image/tiff,image/gif,image/jp2,image/avif,application/pdf"
    assert f'accept="{accepted}"' in page


def test_without_a_servers_defaults_the_contracts_apply() -> None:
    with grpc_server() as (grpc_url, _), http_server() as (http_url, _):
        assert served_defaults(grpc_url) == served_defaults(http_url) == {}


def test_the_command_prints_the_address_of_the_page(tmp_path: Path) -> None:
    """In a process of its own, with a mock in the place of the network, ended by Ctrl-C."""
    code = (
        "import signal, sys, types\n"
        "from ocdserve import backend\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a shell's background job
        "class Reader:\n"
        "    postprocess = types.SimpleNamespace(request_defaults=dict)\n"
        "    spec = types.SimpleNamespace(postprocess=postprocess, min_text_score=0.5)\n"
        "    @classmethod\n"
        "    def load(cls, **options): return cls()\n"
        "    def read(self, image, **overrides): raise NotImplementedError\n"
        "    detect = read\n"
        "    detector = recogniser = property(lambda self: self)\n"
        "backend.Reader = Reader\n"
        "from ocdserve.cli import main\n"
        "sys.exit(main(['play', '--port', '0']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    assert re.fullmatch(r"playground at http://127\.0\.0\.1:\d+ \(in process\); Ctrl-C stops it\n", line)


def test_a_reading_has_its_texts_and_rows_and_becomes_a_document(known: Known) -> None:
    with served(known.detect, read=known.read) as server:
        status, _, body = ask(server, "POST", "/read?min_text_score=0.9&direction=false", b"picture")
        result = json.loads(body)
        assert (status, result["detections"][0]["text"], result["rows"]) == (200, "BAKERY", [[0]])
        assert known.calls == [(b"picture", {"min_text_score": 0.9, "direction": False})]
        status, _, document = ask(server, "POST", "/document?format=tsv&name=a.png", body + b"\npicture")
        assert (status, document.splitlines()[-1].split(b"\t")[-2:]) == (200, [b"93.75", b"BAKERY"])
        for query, reason in (
            ("format=doc", "format must be one of text, hocr, alto, tsv, "),
            ("format=text", "not JSON: "),
        ):
            status, _, error = ask(server, "POST", f"/document?{query}", body if "doc" in query else b"{")
            assert (status, json.loads(error)["error"][: len(reason)]) == (400, reason)


def test_a_playground_that_only_detects_refuses_to_read(server: PlayServer) -> None:
    status, _, body = ask(server, "POST", "/read", b"picture")
    assert (status, json.loads(body)) == (400, {"error": "no text is read here; POST the image to /detect"})
    status, _, body = ask(server, "POST", "/detect?words=true", b"picture")
    assert (status, "'words' is for reading text" in json.loads(body)["error"]) == (400, True)


def test_a_server_that_renders_no_pdf_says_so(known: Known) -> None:
    with served(known.detect, pdf=False) as server:
        status, _, body = ask(server, "POST", "/detect", b"%PDF-1.7\n")
    assert (status, json.loads(body)) == (400, {"error": "PDF files are not rendered here; send their pages as images"})
    assert known.calls == []
