# SPDX-License-Identifier: Apache-2.0
"""The playground's page, used: files that the browser cannot show or the detector refuses, zoom, downloads."""

import base64
import io
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ocdserve.cli.playground import PlayOptions, PlayServer
from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs.pictures import street
from ocdserve.results.detections import Detections
from ocdserve.results.reading import Reading

REPOSITORY = Path(__file__).resolve().parents[2]
STREET = street()
PNG = STREET.png()
QUADS = STREET.quads[:3]
_LIMIT_S = 60


class Browser:
    """A headless Chromium that is remote-controlled through two pipes (the DevTools protocol)."""

    def __init__(self, program: str, folder: Path) -> None:
        (theirs, self._write), (self._read, back) = os.pipe(), os.pipe()
        options = "--headless=new --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe"
        command = f'exec "$0" {options} --user-data-dir="$1" --window-size=1440,980 3<&{theirs} 4>&{back}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, str(folder)],
            pass_fds=(theirs, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(back)
        self._answers, self._number, self._session = b"", 0, ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def send(self, method: str, **parameters: Any) -> Any:
        """Call a method; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._answers:
                part = os.read(self._read, 2**20)
                assert part, "the browser ended"
                self._answers += part
            text, _, self._answers = self._answers.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "result" in answer, answer
                return answer["result"]

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + _LIMIT_S
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < until, (expression, self.value("document.body.innerText"))
            time.sleep(0.02)

    def take(self, content: bytes, name: str) -> None:
        """Give the page a file, as a drop does."""
        encoded = base64.b64encode(content).decode()
        self.value(f"take(new Blob([Uint8Array.from(atob('{encoded}'), (c) => c.charCodeAt(0))]), {json.dumps(name)})")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._read)
        os.close(self._write)


class Known:
    """Finds the street's first three signs in everything but b"bad"; on page N only the first N."""

    def detect(self, image: Any, **overrides: Any) -> Detections:
        if isinstance(image, bytes) and image == b"bad":
            raise InvalidInputError("not an image")
        count = overrides.get("page", 3)
        return Detections(QUADS[:count], np.array([0.9, 0.8, 0.7], np.float32)[:count], 1280, 720)

    def read(self, image: Any, **overrides: Any) -> Reading:
        least = overrides.get("min_text_score", 0.5)
        scores = np.array([0.95, 0.75, 0.55], np.float32)
        found = self.detect(image)
        return Reading(**vars(found), texts=("BAKERY", "STATION", "Open 24 hours"), text_scores=scores).filter(
            min_text_score=least
        )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not program:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Browser]:
    """The page with a sample and its three boxes."""
    yield from opened(browser, PlayOptions(Known().detect, port=0, max_bytes=3_000_000, samples=samples))


@pytest.fixture
def reading(browser: Browser) -> Iterator[Browser]:
    """The same with the texts of the boxes."""
    known = Known()
    yield from opened(browser, PlayOptions(known.detect, known.read, port=0, max_bytes=3_000_000, samples=samples))


def opened(browser: Browser, options: PlayOptions) -> Iterator[Browser]:
    with PlayServer(options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        browser.send("Page.navigate", url=f"{server.address}/?sample=street&labels")
        browser.wait("document.body && document.body.dataset.boxes === '3' && image.shown")
        yield browser
        browser.send("Page.navigate", url="about:blank")
        server.shutdown()
        thread.join()


def samples() -> dict[str, bytes]:
    return {"street.png": PNG}


def file_of(form: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (1280, 720), (90, 120, 150)).save(stream, form)
    return stream.getvalue()


def middle(browser: Browser) -> list[float]:
    """Where the first box is drawn on the screen."""
    box = "(() => { const r = document.querySelector('#overlay polygon').getBoundingClientRect(); "
    return list(browser.value(f"{box} return [r.x + r.width / 2, r.y + r.height / 2, r.width]; }})()"))


@pytest.mark.parametrize(("form", "name"), [("TIFF", "scan.tif"), ("JPEG2000", "scan.jp2")])
def test_formats_that_browsers_lack_are_shown_by_a_preview(page: Browser, form: str, name: str) -> None:
    page.take(file_of(form), name)
    page.wait(f"document.body.dataset.state === 'done' && image.shown && image.name === '{name}'")
    assert page.value("[$('picture').naturalWidth, $('view').hidden, $('notice').hidden]") == [1280, False, True]
    assert page.value("$('facts').textContent").startswith(f"{name}, 1280 × 720, ")


def paged(form: str) -> bytes:
    """A red, a green and a blue page; those of a PDF are found by their colour."""
    first, *others = (Image.new("RGB", (1280, 720), colour) for colour in ("red", "lime", "blue"))
    stream = io.BytesIO()
    options = {"PDF": {"resolution": 200.0}, "TIFF": {"compression": "tiff_lzw"}}.get(form, {})
    first.save(stream, form, save_all=True, append_images=others, **options)
    return stream.getvalue()


SHOWN_COLOUR = """(() => {
  const pen = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d');
  pen.drawImage($('picture'), 0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => Math.round(value / 255)).join('');
})()"""


@pytest.mark.parametrize(
    ("form", "name", "detects"),
    [
        ("TIFF", "scan.tif", 'found = detector.detect("scan.tif", page=2)'),
        ("GIF", "moving.gif", 'found = detector.detect("moving.gif", page=2)'),
        ("PDF", "letter.pdf", '[found] = detector.detect_pages("letter.pdf", pages=[2])'),
    ],
)
def test_a_page_is_chosen_shown_and_named_in_the_calls(page: Browser, form: str, name: str, detects: str) -> None:
    if form == "PDF":
        pytest.importorskip("pypdfium2", reason="needs the extra pdf")
    assert page.value("$('pages').hidden") is True
    page.take(paged(form), name)
    page.wait(f"image.name === '{name}' && image.shown && document.body.dataset.state === 'done'")
    assert page.value("$('pages').innerText").split() == ["Page", "1", "2", "3", "of", "3"]
    assert page.value(SHOWN_COLOUR) == "100"
    page.value("$('page').value = '2'; $('page').dispatchEvent(new Event('change'))")
    assert page.value("[$('view').hidden, $('overlay').childElementCount]") == [True, 0]
    page.wait("image.page === 2 && image.shown && document.body.dataset.state === 'done'")
    assert page.value(SHOWN_COLOUR) == "010"
    assert page.value("$('facts').textContent").startswith(f"{name}, page 2, 1280 × 720, ")
    assert page.value("[found.page, stem(), JSON.parse(resultJson()).page]") == [2, f"{name[:-4]}.page-2", 2]
    if form != "PDF":  # its pixels have no page
        assert page.value("document.body.dataset.boxes") == "2"
    assert detects in page.value("snippets().python")
    assert page.value("snippets().curl").endswith("/detect?page=2'")
    assert page.value("snippets().cli") == f"ocdserve detect '{name}' --page 2 --format json"
    page.take(file_of("PNG"), "other.png")
    page.wait("image.name === 'other.png' && image.shown && document.body.dataset.boxes === '3'")
    assert page.value("[$('pages').hidden, snippets().cli]") == [True, "ocdserve detect 'other.png' --format json"]


def test_a_served_page_is_named_in_the_calls(page: Browser) -> None:
    page.value("config.url = 'http://127.0.0.1:8000'")
    page.take(paged("TIFF"), "scan.tif")
    page.wait("image.pages === 3 && image.shown && document.body.dataset.state === 'done'")
    assert '"parameters":{"page":1}' in page.value("snippets().curl")
    assert page.value("snippets().cli") == (
        "ocdserve detect 'scan.tif' --page 1 --url http://127.0.0.1:8000 --format json"
    )


def test_a_file_whose_pages_cannot_be_counted_is_refused(page: Browser) -> None:
    pytest.importorskip("pypdfium2", reason="needs the extra pdf")
    page.take(b"%PDF-1.7 damaged", "letter.pdf")
    page.wait("document.body.dataset.state === 'failed'")
    assert "the PDF of 16 bytes cannot be read" in page.value("$('notice').textContent")
    assert page.value("[$('facts').textContent, $('pages').hidden, $('view').hidden]") == [
        "letter.pdf, 0 kB",
        True,
        True,
    ]


def test_nothing_of_the_picture_before_is_left_after_a_refusal(page: Browser) -> None:
    page.take(b"bad", "notes.txt")
    page.wait("document.body.dataset.state === 'failed'")
    page.wait("$('notice').textContent === 'not an image'")
    assert page.value("[$('facts').textContent, $('boxes').textContent]") == ["notes.txt, 0 kB", "–"]
    assert page.value("[$('view').hidden, $('overlay').childElementCount]") == [True, 0]
    assert page.value("getComputedStyle($('drop')).display") != "none"
    assert page.value("[$('save-json').disabled, $('save-picture').disabled]") == [True, True]
    page.take(bytes(3_000_001), "huge.tif")
    assert "huge.tif has 2.9 MiB" in page.value("$('notice').textContent")
    assert page.value("[$('facts').textContent, document.body.dataset.state]") == ["no picture yet", "empty"]
    page.value("takeSample('none')")
    assert page.value("$('notice').textContent") == "there is no '/samples/none.png' here"


def test_the_wheel_zooms_about_the_pointer_and_dragging_moves(page: Browser) -> None:
    x, y, width = middle(page)
    page.send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-600)
    page.wait("zoom.factor > 2")
    there = middle(page)
    assert np.abs(np.array(there[:2]) - (x, y)).max() < 3
    assert there[2] > 2 * width
    for kind, to in (("mousePressed", x), ("mouseMoved", x + 40), ("mouseReleased", x + 40)):
        page.send("Input.dispatchMouseEvent", type=kind, x=to, y=y, button="left", buttons=1, clickCount=1)
    assert middle(page)[0] - there[0] == pytest.approx(40, abs=1)
    page.send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=5000)
    page.wait("zoom.factor === 1")
    assert middle(page) == pytest.approx([x, y, width], abs=1)


def test_buttons_keys_and_pinches_zoom(page: Browser) -> None:
    x, y, width = middle(page)
    page.value("document.querySelector('[data-zoom=in]').click()")
    assert middle(page)[2] == pytest.approx(1.3 * width, rel=0.02)
    page.value("$('stage').focus()")
    for key, factor in (("+", 1.3**2), ("-", 1.3), ("0", 1)):
        page.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        assert page.value("zoom.factor") == pytest.approx(factor)
    fingers = [[{"x": x - d, "y": y, "id": 1}, {"x": x + d, "y": y, "id": 2}] for d in (40, 60, 80)]
    page.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=fingers[0])
    for points in fingers[1:]:
        page.send("Input.dispatchTouchEvent", type="touchMove", touchPoints=points)
    page.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.wait("zoom.factor > 1.9")
    assert np.abs(np.array(middle(page)[:2]) - (x, y)).max() < 6
    page.take(file_of("PNG"), "other.png")
    page.wait("image.shown && document.body.dataset.boxes === '3'")
    assert page.value("zoom.factor") == 1


def test_lines_keep_their_width_and_scores_their_size_at_every_zoom(page: Browser) -> None:
    height = "document.querySelector('#overlay text').getBoundingClientRect().height"
    before = page.value(height)
    page.value("zoomBy(3)")
    assert page.value(height) == pytest.approx(before, rel=0.1)
    assert (
        page.value("getComputedStyle(document.querySelector('#overlay polygon')).vectorEffect") == "non-scaling-stroke"
    )
    # Where the line is too low for its score, the score waits for a closer look.
    page.value("found.detections.forEach((one) => { one.quad = [[0, 0], [90, 0], [90, 5], [0, 5]]; }); fit(); show()")
    assert page.value("document.querySelectorAll('#overlay text.crowded').length") == 3
    page.value("zoomBy(8)")
    assert page.value("document.querySelectorAll('#overlay text.crowded').length") == 0


def test_the_answer_and_the_picture_with_its_boxes_are_saved(page: Browser, tmp_path: Path) -> None:
    page.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.value("$('save-json').click()")
    saved(tmp_path / "street.json")
    result = json.loads((tmp_path / "street.json").read_text("utf-8"))
    assert (result["image"], result["width"], result["height"], len(result["detections"])) == (
        "street.png",
        1280,
        720,
        3,
    )
    np.testing.assert_allclose(result["detections"][0]["quad"], QUADS[0], atol=0.01)
    page.value("$('save-picture').click()")
    saved(tmp_path / "street-boxes.png")
    with Image.open(tmp_path / "street-boxes.png") as picture:
        assert picture.size == (1280, 720)
        x, y = (QUADS[0][0] + QUADS[0][1]) / 2
        near = picture.convert("RGB").crop((int(x) - 2, int(y) - 2, int(x) + 3, int(y) + 3))
    assert (0x16, 0xD6, 0x5F) in {colour for _, colour in near.getcolors() or []}


def test_the_text_is_shown_in_rows_copied_and_marked_with_its_box(reading: Browser) -> None:
    assert reading.value("$('text').innerText.split('\\n')") == ["BAKERY STATION", "Open 24 hours"]
    assert reading.value("wholeText()") == "BAKERY STATION\nOpen 24 hours"
    assert reading.value("[...document.querySelectorAll('#text .unsure')].map((one) => one.textContent)") == [
        "STATION",
        "Open 24 hours",
    ]
    assert reading.value("document.querySelector('#overlay polygon title').textContent") == (
        "BAKERY\ntext 0.950, box 0.900"
    )
    marked = "[...document.querySelectorAll('.lit')].map((one) => [one.localName, one.dataset.index])"
    for where in ("#overlay polygon[data-index='1']", "#text span[data-index='1']"):
        reading.value(f"document.querySelector(\"{where}\").dispatchEvent(new Event('pointerover', {{bubbles: true}}))")
        assert sorted(reading.value(marked)) == [["polygon", "1"], ["span", "1"]]
    copied = "navigator.clipboard.writeText = (text) => { window.copied = text; }; $('copy-text').click(); copied"
    assert reading.value(copied) == "BAKERY STATION\nOpen 24 hours"
    reading.value("$('texts').click()")
    assert reading.value("document.querySelector('#overlay text').textContent") == "BAKERY  0.90"


def test_reading_is_switched_off_and_its_parameters_with_it(reading: Browser) -> None:
    assert reading.value("[$('kind').textContent, $('min_text_score').closest('label').hidden]") == [
        "ms reading",
        False,
    ]
    reading.value("$('min_text_score').value = 0.9; $('min_text_score').dispatchEvent(new Event('input'))")
    reading.wait("found && found.rows && found.detections.length === 1 && document.body.dataset.state === 'done'")
    assert reading.value("[snippets().cli, snippets().python.split('\\n').pop()]") == [
        "ocdserve read 'street.png' --min-text-score 0.9",
        "print(found.text)",
    ]
    reading.value("$('reads').click()")
    reading.wait("found && !found.rows && found.detections.length === 3 && document.body.dataset.state === 'done'")
    assert reading.value(
        "[$('kind').textContent, $('min_text_score').closest('label').hidden, $('text').innerText]"
    ) == [
        "ms detection",
        True,
        "",
    ]
    assert reading.value("[snippets().cli, $('copy-text').disabled]") == [
        "ocdserve detect 'street.png' --format json",
        True,
    ]


def test_what_is_not_upside_down_is_named_in_the_calls(reading: Browser) -> None:
    reading.value("$('direction').click()")
    assert reading.value("snippets().cli") == "ocdserve read 'street.png' --no-direction"
    assert reading.value("snippets().python").splitlines()[3:] == [
        'found = reader.read("street.png", direction=False)',
        "print(found.text)",
    ]


def test_the_text_is_saved_as_a_document(reading: Browser, tmp_path: Path) -> None:
    reading.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    names = reading.value("[...$('documents').children].map((one) => one.textContent)")
    assert names[:3] == [".txt", ".hocr", ".xml"]
    for name in (".txt", ".hocr"):
        reading.value(f"$('documents').children[{names.index(name)}].click()")
        saved(tmp_path / f"street{name}")
    assert (tmp_path / "street.txt").read_text("utf-8") == "BAKERY STATION\nOpen 24 hours\n"
    assert "street.png" in (tmp_path / "street.hocr").read_text("utf-8")


def test_a_playground_that_does_not_read_has_nothing_of_texts(page: Browser) -> None:
    assert page.value("[$('reading').hidden, $('texts').parentElement.hidden, $('kind').textContent]") == [
        True,
        True,
        "ms detection",
    ]
    assert page.value("snippets().cli") == "ocdserve detect 'street.png' --format json"


def saved(file: Path) -> None:
    until = time.monotonic() + _LIMIT_S
    while not file.exists():
        assert time.monotonic() < until, list(file.parent.iterdir())
        time.sleep(0.02)
