# SPDX-License-Identifier: Apache-2.0
"""`ocdserve read`, with a reader that knows its answer: what is printed and written, and where."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ocdserve.client
from ocdserve import backend
from ocdserve.backend import Reader
from ocdserve.cli import main
from ocdserve.client import MockTransport, TextReader
from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs.pictures import receipt
from ocdserve.results.detections import Detections
from ocdserve.results.reading import Reading

QUADS = np.array([[[10, y], [50, y], [50, y + 10], [10, y + 10]] for y in (10, 30)], np.float32)
TEXTS = {"red": ("Tea", "4.20"), "blue": ("Sea salt",), "black": ()}
COLOURS = {(255, 0, 0): "red", (0, 0, 255): "blue", (0, 0, 0): "black"}


class FakeReader:
    """Reads the texts of an image's colour; what is no image is refused."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}
        self.calls: list[dict[str, Any]] = []

    def load(self, **options: Any) -> "FakeReader":
        self.loaded = options
        return self

    def read(self, image: Any, **overrides: Any) -> Reading:
        self.calls.append(overrides)
        if isinstance(image, bytes):
            try:
                with Image.open(io.BytesIO(image)) as picture:
                    image = np.asarray(picture.convert("RGB"))
            except OSError:
                raise InvalidInputError("not an image;\nsend a JPEG") from None
        height, width = image.shape[:2]
        texts = TEXTS[COLOURS[tuple(image[0, 0].tolist())]]
        scores = np.full(len(texts), 0.5, np.float32)
        return Reading(QUADS[: len(texts)], scores, width, height, texts=texts, text_scores=scores)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeReader:
    reader = FakeReader()
    monkeypatch.setitem(vars(backend), "Reader", reader)
    return reader


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with red.png, blue.png, black.png, bad.png (refused) and pages.tif of red and blue."""
    monkeypatch.chdir(tmp_path)
    pictures = {name: Image.new("RGB", (80, 60), colour) for colour, name in COLOURS.items()}
    for name, picture in pictures.items():
        picture.save(f"{name}.png")
    pictures["red"].copy().save("pages.tif", save_all=True, append_images=[pictures["blue"].copy()])
    Path("bad.png").write_bytes(b"bad")
    return tmp_path


def test_the_text_of_one_image_is_printed_and_nothing_else(
    fake: FakeReader, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["read", "red.png"]) == 0
    assert capsys.readouterr() == ("Tea\n4.20\n", "")
    assert fake.loaded == {"bundle": None, "recogniser": None, "runtime": None}
    assert fake.calls == [{}]


def test_several_inputs_have_their_names_and_one_without_text_is_empty(
    fake: FakeReader, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["read", "red.png", "black.png", "pages.tif"]) == 0
    assert capsys.readouterr() == (
        "==> red.png <==\nTea\n4.20\n\n==> black.png <==\n\n==> pages.tif <==\nTea\n4.20\n\fSea salt\n",
        "",
    )


def test_an_image_that_fails_is_reported_and_the_others_are_read(
    fake: FakeReader, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["read", "bad.png", "blue.png", "none.png"]) == 1
    assert capsys.readouterr() == (
        "==> blue.png <==\nSea salt\n",
        "ocdserve read: bad.png: not an image; send a JPEG\n"
        "ocdserve read: none.png: cannot read the file: No such file or directory\n",
    )


def test_parameters_and_the_choice_of_the_recogniser_reach_the_reader(fake: FakeReader) -> None:
    options = ["--min-text-score", "0.7", "--words", "--no-direction", "--thresh", ".2", "--page", "2"]
    assert main(["read", "pages.tif", *options, "--recogniser", "default", "--threads", "1"]) == 0
    assert fake.loaded == {"bundle": None, "recogniser": Path("default"), "runtime": None, "threads": 1}
    assert fake.calls == [{"min_text_score": 0.7, "words": True, "direction": False, "thresh": 0.2}]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--format", "txt"], "argument --format: must be one of text, json, "),
        (["--format", "markdown"], "got 'markdown'"),
        (["--output", "out.doc"], "--format must say what to write to 'out.doc': text, json, "),
        (["--min-text-score", "1.5"], "argument --min-text-score: must be a number from 0 to 1"),
        (["--recogniser", "x", "--url", "grpc://h:1"], "--recogniser chooses that of this process; leave it out"),
        (["--model", "ocr"], "give the server with --url"),
        (["--recognizer", "x"], "did you mean --recogniser?"),
        (["--resume"], "--resume continues the file of --format json, or a folder of text or"),
        (["--tile", "100", "--second-look"], "leave one of them out"),
    ],
)
def test_options_that_contradict_each_other_or_are_unknown_are_usage_errors(
    options: list[str], reason: str, fake: FakeReader, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["read", "red.png", *options]) == 2
    assert reason in " ".join(capsys.readouterr().err.split())
    assert fake.loaded == {}


def test_columns_are_read_one_after_the_other_where_that_is_asked_for(
    fake: FakeReader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quads = np.array([[[x, y], [x + 50, y], [x + 50, y + 10], [x, y + 10]] for y in (10, 24) for x in (10, 110)])
    scores = np.ones(4, np.float32)
    texts = ("left", "right", "below left", "below right")
    page = Reading(quads.astype(np.float32), scores, 200, 60, texts=texts, text_scores=scores)
    monkeypatch.setattr(fake, "read", lambda image, **_: page)
    assert main(["read", "red.png"]) == 0
    assert main(["read", "red.png", "--columns"]) == 0
    assert capsys.readouterr().out == (
        "left right\nbelow left below right\n" + "left\nbelow left\nright\nbelow right\n"
    )
    assert main(["read", "red.png", "--columns", "--output", "out/"]) == 0
    assert Path("out/red.txt").read_text("utf-8") == "left\nbelow left\nright\nbelow right\n"


def test_json_has_an_object_per_page_and_continues(fake: FakeReader, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "pages.tif", "--output", "read.jsonl"]) == 0
    first, second = map(json.loads, Path("read.jsonl").read_text("utf-8").splitlines())
    assert (first["image"], first["page"], second["page"]) == ("pages.tif", 1, 2)
    assert second["detections"] == [
        {"quad": [[10.0, 10.0], [50.0, 10.0], [50.0, 20.0], [10.0, 20.0]], "score": 0.5, "text": "Sea salt",
         "text_score": 0.5}
    ]  # fmt: skip
    assert main(["read", "pages.tif", "blue.png", "--output", "read.jsonl", "--resume"]) == 0
    assert [json.loads(line)["image"] for line in Path("read.jsonl").read_text("utf-8").splitlines()] == [
        "pages.tif",
        "pages.tif",
        "blue.png",
    ]
    assert len(fake.calls) == 3
    assert capsys.readouterr() == ("", "0 of 2 images are already done\n")


def test_a_file_of_detections_is_not_continued_with_texts(fake: FakeReader, capsys: pytest.CaptureFixture[str]) -> None:
    found = Detections(QUADS, np.ones(2, np.float32), 80, 60)
    Path("found.jsonl").write_text(json.dumps({"image": "red.png", **found.to_dict()}) + "\n", "utf-8")
    assert main(["read", "red.png", "--output", "found.jsonl", "--resume"]) == 1
    assert "found.jsonl, line 1, is not what `ocdserve read --format json` writes" in capsys.readouterr().err
    assert fake.loaded == {}


def test_a_document_holds_all_pages_of_an_input(fake: FakeReader) -> None:
    assert main(["read", "pages.tif", "--output", "out.md"]) == 0
    assert Path("out.md").read_text("utf-8") == "Tea\n\n4.20\n\n---\n\nSea salt\n"


def test_a_searchable_pdf_keeps_all_pages_of_the_input(fake: FakeReader) -> None:
    pytest.importorskip("pikepdf", reason="needs the extra pdf")
    pdfium = pytest.importorskip("pypdfium2", reason="needs the extra pdf")
    assert main(["read", "pages.tif", "red.png", "--format", "pdf", "--output", "out/"]) == 0
    assert [texts(pdfium, f"out/{name}.pdf") for name in ("pages", "red")] == [["Tea 4.20", "Sea salt"], ["Tea 4.20"]]


def test_a_pdf_is_read_and_kept_with_its_text(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real networks: the receipt is the second page, whose total is where it was drawn."""
    pytest.importorskip("pikepdf", reason="needs the extra pdf")
    pdfium = pytest.importorskip("pypdfium2", reason="needs the extra pdf")
    picture = receipt()
    Image.new("RGB", picture.image.size, "white").save(
        "scan.pdf", save_all=True, append_images=[picture.image], resolution=200
    )
    monkeypatch.setattr(Reader, "load", lambda **_: reader)
    assert main(["read", "scan.pdf", "--page", "2", "--dpi", "200"]) == 0
    assert capsys.readouterr().out.splitlines()[11:13] == ["TOTAL 29.20", "Cash 30.00"]
    assert main(["read", "scan.pdf", "--output", "out.pdf"]) == 0
    with pdfium.PdfDocument("out.pdf") as document:
        assert document[0].get_textpage().get_text_range() == ""
        page = document[1].get_textpage()
        start, count = page.search("29.20").get_next()
        boxes = np.array([page.get_charbox(start + place, loose=True) for place in range(count)])
    # In points, 72 of which are 200 pixels; the box is that of the drawn text and a margin of 0.1 font sizes.
    [total] = (quad for quad, text in zip(picture.quads, picture.texts, strict=True) if text == "29.20")
    expected = [total[0, 0], total[0, 1], total[2, 0], total[2, 1]]
    left, bottom, right, top = *boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)
    found = [left / 0.36, 1080 - top / 0.36, right / 0.36, 1080 - bottom / 0.36]
    np.testing.assert_allclose(found, expected, atol=12)


def test_a_pdf_goes_to_a_pipe_and_not_to_a_terminal(
    fake: FakeReader, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    pytest.importorskip("pikepdf", reason="needs the extra pdf")
    assert main(["read", "red.png", "--format", "pdf"]) == 0
    assert capfdbinary.readouterr().out.startswith(b"%PDF-")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["read", "red.png", "--format", "pdf"]) == 2
    assert b"a terminal does not show PDF; name a file with --output" in capfdbinary.readouterr().err


def texts(pdfium: Any, file: str) -> list[str]:
    document = pdfium.PdfDocument(file)
    return [" ".join(page.get_textpage().get_text_range().split()) for page in document]


@pytest.mark.parametrize(("form", "words"), [("tsv", {"words": True}), ("alto", {"words": True}), ("md", {})])
def test_formats_with_a_place_for_words_ask_for_them(form: str, words: dict[str, bool], fake: FakeReader) -> None:
    assert main(["read", "red.png", "--format", form, "--output", "out/"]) == 0
    assert fake.calls == [words]


def test_several_inputs_get_a_document_each_in_a_folder(fake: FakeReader) -> None:
    assert main(["read", "red.png", "pages.tif", "bad.png", "--output", "out", "--format", "md"]) == 1
    assert sorted(os.listdir("out")) == ["pages.md", "red.md"]
    assert main(["read", "blue.png", "--output", "new/"]) == 0
    assert Path("new/blue.txt").read_text("utf-8") == "Sea salt\n"


def test_an_input_that_is_named_twice_begins_again(fake: FakeReader, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "pages.tif", "pages.tif", "blue.png", "blue.png", "--overwrite", "--output", "out.txt"]) == 0
    tiff, blue = "==> pages.tif <==\nTea\n4.20\n\fSea salt\n", "==> blue.png <==\nSea salt\n"
    assert Path("out.txt").read_text("utf-8") == "\n".join([tiff, tiff, blue, blue])
    assert main(["read", "pages.tif", "pages.tif", "--output", "out/", "--format", "md"]) == 0
    assert Path("out/pages.md").read_text("utf-8") == "Tea\n\n4.20\n\n---\n\nSea salt\n"


def test_a_document_that_cannot_be_made_is_reported_and_the_others_are_written(
    fake: FakeReader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pikepdf", reason="needs the extra pdf")
    read = fake.read
    monkeypatch.setattr(
        fake, "read", lambda *image, **given: replace(read(*image, **given), width=80 + len(fake.calls) % 2)
    )
    assert main(["read", "black.png", "red.png", "blue.png", "--output", "out/", "--format", "pdf"]) == 1
    assert os.listdir("out") == ["red.pdf"]
    assert capsys.readouterr().err == (
        "ocdserve read: black.png: the reading is of an image of 81x60 pixels; got one of 80x60\n"
        "ocdserve read: blue.png: the reading is of an image of 81x60 pixels; got one of 80x60\n"
        "ocdserve read: there is no pdf of 2 of the inputs, see above\n"
    )


def test_a_folder_of_documents_is_continued_and_not_replaced(
    fake: FakeReader, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/red.txt").write_text("mine")
    # The second page of an input is a part of its document.
    Path("out/pages.page-2.txt").write_text("mine")
    assert main(["read", "red.png", "pages.tif", "--output", "out"]) == 1
    assert "1 of the files to write exist in the folder 'out' of --output, such as red.txt" in capsys.readouterr().err
    assert main(["read", "red.png", "pages.tif", "--output", "out", "--resume"]) == 0
    assert Path("out/red.txt").read_text("utf-8") == "mine"
    assert Path("out/pages.txt").read_text("utf-8") == "Tea\n4.20\n\fSea salt\n"
    assert len(fake.calls) == 2


def test_several_inputs_do_not_make_one_document(fake: FakeReader, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "red.png", "blue.png", "--output", "out.md"]) == 2
    assert capsys.readouterr().err == (
        "ocdserve read: md is a document per input, and there are 2; name a folder with --output, a path that ends "
        "in /\n"
    )
    assert (fake.loaded, Path("out.md").exists()) == ({}, False)


def test_a_document_of_an_image_that_cannot_be_read_is_not_written(fake: FakeReader) -> None:
    assert main(["read", "bad.png", "--output", "out.md"]) == 1
    assert sorted(os.listdir()) == ["bad.png", "black.png", "blue.png", "pages.tif", "red.png"]


def test_ctrl_c_leaves_no_part_of_a_document(fake: FakeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    read = fake.read

    def interrupted(image: Any, **overrides: Any) -> Reading:
        if len(fake.calls) == 2:
            raise KeyboardInterrupt
        return read(image, **overrides)

    monkeypatch.setattr(fake, "read", interrupted)
    assert main(["read", "red.png", "pages.tif", "--output", "out", "--format", "md"]) == 130
    assert os.listdir("out") == ["red.md"]


def test_the_text_stays_on_stdout_when_quiet(fake: FakeReader, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "blue.png", "-q"]) == 0
    assert capsys.readouterr() == ("Sea salt\n", "")


def test_text_in_a_file_is_what_would_be_printed(fake: FakeReader, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "red.png", "blue.png", "--output", "out.txt"]) == 0
    assert Path("out.txt").read_text("utf-8") == "==> red.png <==\nTea\n4.20\n\n==> blue.png <==\nSea salt\n"
    assert main(["read", "red.png", "--output", "out.txt"]) == 1
    assert "the file 'out.txt' of --output exists; replace it with --overwrite" in capsys.readouterr().err


def served(monkeypatch: pytest.MonkeyPatch, transport: MockTransport) -> None:
    def reader(url: str, *, model: str | None = None) -> TextReader:
        return TextReader(url, model=model, transport=transport)

    monkeypatch.setattr(ocdserve.client, "TextReader", reader)


def test_with_url_the_server_reads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    transport = MockTransport(
        lambda request: {
            "QUADS": QUADS[None],
            "SCORES": np.array([[0.5, 0.5]], np.float32),
            "COUNT": np.array([[2]], np.int32),
            "SIZE": np.array([[60, 80]], np.int32),
            "TEXTS": np.array([[b"Tea", b"4.20"]], np.object_),
            "TEXT_SCORES": np.array([[0.9, 0.9]], np.float32),
        }
    )
    served(monkeypatch, transport)
    options = ["--url", "grpc://h:8001", "--model", "ocr_fused", "--no-direction"]
    assert main(["read", "red.png", "blue.png", *options]) == 0
    assert capsys.readouterr().out == "==> red.png <==\nTea\n4.20\n\n==> blue.png <==\nTea\n4.20\n"
    assert [(request.model, dict(request.parameters)) for request in transport.requests] == [
        ("ocr_fused", {"direction": False})
    ] * 2


def test_a_server_that_only_detects_is_reported_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served(monkeypatch, MockTransport(lambda _: {}, ready=lambda name: name.startswith("ocdnet")))
    assert main(["read", "red.png", "--url", "http://h:8000"]) == 1
    assert capsys.readouterr().err == (
        "ocdserve read: the server at http://h:8000 detects text but does not read it; start it with "
        "`ocdserve serve --recogniser default`\n"
    )
