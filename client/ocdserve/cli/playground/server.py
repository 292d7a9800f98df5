# SPDX-License-Identifier: Apache-2.0
"""The playground's server, of the standard library: a page, sample pictures, and one detection or reading per POST.

Only for the machine that it runs on: it listens on 127.0.0.1, and refuses requests that a page of another site made a
browser send (their `Host` or `Origin` is another).
"""

import io
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from time import perf_counter
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from ocdserve.batch.sources import Source
from ocdserve.cli import one_line
from ocdserve.cli.formats.documents import READINGS, document
from ocdserve.contract import (
    FORMATS,
    PARAMETERS,
    READING_PARAMETERS,
    InvalidInputError,
    OcdserveError,
    ReadingParameters,
    RequestParameters,
    UnavailableError,
    install_command,
)
from ocdserve.results import order
from ocdserve.results.detections import Detections
from ocdserve.results.pages import count_pages, page_of
from ocdserve.results.pdf import is_pdf
from ocdserve.results.pictures import picture_of
from ocdserve.results.reading import Reading

HOST = "127.0.0.1"
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/snippets.js": ("snippets.js", "text/javascript; charset=utf-8"),
    "/text.js": ("text.js", "text/javascript; charset=utf-8"),
    "/saving.js": ("saving.js", "text/javascript; charset=utf-8"),
    "/zoom.js": ("zoom.js", "text/javascript; charset=utf-8"),
}
# Nothing is loaded from elsewhere, and the page may not be framed.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

_POSTED = ("/detect", "/read", "/document", "/pages", "/preview")

# Side of a preview in pixels: sharp when zoomed, and encoded in less than a second.
_LONGEST_PREVIEW = 4096
# The most that a reading, before the file that a document is made of, adds to it in bytes.
_LARGEST_READING = 2**24
# How much of a file that is too large is still read, in bytes and in chunks, so that the browser gets the answer.
_MOST_DISCARDED, _CHUNK = 2**28, 2**16


@dataclass(frozen=True)
class PlayOptions:
    """Options of the playground.

    Attributes:
        detect: Detects in one image, encoded or uint8 (H, W, 3) RGB; keywords are request parameters. Called in several
            threads.
        read: Reads the text in one, likewise; None: the page only detects.
        source: Shown on the page: a server's URL, or "in process".
        url: The server's URL for the snippets; None in process.
        port: Port to listen on; 0: any free one.
        max_bytes: Largest accepted image file.
        defaults: The detector's own values of request parameters, for the sliders; the contract's for those left out.
        pdf: Whether PDF files are rendered, in this process.
        samples: Draws the sample pictures: PNG files by name. May raise ModuleNotFoundError.
    """

    detect: Callable[..., Detections]
    read: Callable[..., Reading] | None = None
    source: str = "in process"
    url: str | None = None
    port: int = 8010
    max_bytes: int = 32 * 2**20
    defaults: Mapping[str, Any] = field(default_factory=dict)
    pdf: bool = True
    samples: Callable[[], Mapping[str, bytes]] = dict


class PlayServer(ThreadingHTTPServer):
    """A running playground; `serve_forever` serves it until `shutdown` is called from another thread."""

    daemon_threads = True

    def __init__(self, options: PlayOptions) -> None:
        """Take the port.

        Raises:
            UnavailableError: It is taken.
        """
        self.options = options
        self._samples: Mapping[str, bytes] | None = None
        self._samples_lock = threading.Lock()
        try:
            super().__init__((HOST, options.port), _Handler)
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {HOST}:{options.port}: {error.strerror}; choose another with --port"
            ) from error

    @property
    def address(self) -> str:
        """URL of the page."""
        return f"http://{HOST}:{self.server_port}"

    def sample(self, name: str) -> bytes | None:
        """The PNG file of a sample picture; None if there is none of that name.

        Raises:
            UnavailableError: Pillow, which draws them, is not installed.
        """
        with self._samples_lock:
            if self._samples is None:
                try:
                    self._samples = self.options.samples()
                except ModuleNotFoundError as error:
                    raise UnavailableError(
                        "sample pictures are drawn by Pillow, which is not installed: "
                        + install_command("ocdserve[images]")
                    ) from error
        return self._samples.get(name)

    def config(self) -> dict[str, Any]:
        """What the page needs, as JSON."""
        parameters = [
            {
                "name": name,
                "type": spec.type.__name__,
                "usual": spec.usual,
                "meaning": spec.meaning,
                "default": self.options.defaults.get(name, spec.default),
                "stage": spec.stage,
            }
            for name, spec in (PARAMETERS if self.options.read is None else READING_PARAMETERS).items()
            if spec.stage != "decode" and name != "words"  # which are always asked for: documents need them
        ]
        options = self.options
        return {
            "source": options.source,
            "url": options.url,
            "max_bytes": options.max_bytes,
            "formats": [
                *({"label": form.label, "media_type": form.media_type} for form in FORMATS),
                {"label": "PDF", "media_type": "application/pdf"},
            ],
            "parameters": parameters,
            "documents": [
                {"name": form.name, "suffix": form.suffixes[0]}
                for form in READINGS.formats
                if form.is_document and options.read is not None
            ],
        }


def preview(encoded: bytes, page: int | None = None) -> bytes:
    """A PNG file of an image that a browser cannot show, or of a page, scaled down to at most 4096 pixels a side.

    Raises:
        InvalidInputError: The image cannot be decoded, or lacks the page; or it has several and none is chosen.
        UnavailableError: Pillow, or for a PDF pypdfium2, is not installed.
    """
    picture = picture_of(rendered(encoded, page), page)
    picture.thumbnail((_LONGEST_PREVIEW, _LONGEST_PREVIEW))
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def rendered(encoded: bytes, page: int | None) -> bytes | NDArray[np.uint8]:
    """A page of a PDF as uint8 (H, W, 3) RGB; any other file as it is: detectors choose the page themselves.

    Raises:
        InvalidInputError: The PDF cannot be read, or lacks the page; or it has several and none is chosen.
        UnavailableError: pypdfium2 is not installed.
    """
    if not is_pdf(encoded):
        return encoded
    if page is None and (count := count_pages(encoded)) > 1:
        raise InvalidInputError(f"the PDF has {count} pages. Choose one by page=1 to page={count}.")
    return page_of(encoded, page or 1)


def _document(body: bytes, query: Mapping[str, str]) -> bytes:
    """A document of a reading: its JSON, a line break, and the file in which it was read.

    Raises:
        InvalidInputError: The format is unknown, or the first line is not the JSON of a reading.
        UnavailableError: A package that the format needs is not installed.
    """
    reading, _, encoded = body.partition(b"\n")
    source = Source(query.get("name", "image"), None, content=encoded)
    return document(query.get("format", ""), source, [Reading.from_json(reading)])


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: PlayServer
    server_version = "ocdserve"
    sys_version = ""
    # Idle connections are closed after so many seconds.
    timeout = 30

    def do_GET(self) -> None:
        """The page and its parts, its configuration, a sample picture."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A detection, a reading, a preview, the number of pages, a document.

        The body is the file, and the query has request parameters; for a document, the JSON of the reading and a line
        break are before the file, and the query has the format and the file's name.
        """
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the page shows its own errors."""

    def _get(self) -> None:
        path = urlsplit(self.path).path
        if path in _FILES:
            name, kind = _FILES[path]
            self._send(HTTPStatus.OK, resources.files("ocdserve.cli.playground").joinpath(name).read_bytes(), kind)
        elif path == "/config":
            self._send_json(HTTPStatus.OK, self.server.config())
        elif path.startswith("/samples/") and (png := self.server.sample(path.removeprefix("/samples/"))) is not None:
            self._send(HTTPStatus.OK, png, "image/png")
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": f"there is no {path!r} here"})

    def _post(self) -> None:
        address = urlsplit(self.path)
        if address.path not in _POSTED:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": f"POST the image to {', '.join(_POSTED)}"})
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise InvalidInputError("the request must have a Content-Length; send the image file as its body")
        if int(length) > self.server.options.max_bytes + _LARGEST_READING * (address.path == "/document"):
            largest = f"{self.server.options.max_bytes / 2**20:g} MiB"
            message = f"the file has {int(length) / 2**20:.1f} MiB; at most {largest} are accepted"
            self._send_json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": message})
            self._discard(min(int(length), _MOST_DISCARDED))
            return
        # Read first: an answer to a browser that is still sending is lost with the connection.
        body = self.rfile.read(int(length))
        query = dict(parse_qsl(address.query))
        if address.path == "/document":
            self._send(HTTPStatus.OK, _document(body, query), "application/octet-stream")
            return
        if not self.server.options.pdf and is_pdf(body):
            raise InvalidInputError("PDF files are not rendered here; send their pages as images")
        parameters = (ReadingParameters if address.path == "/read" else RequestParameters).parse(query)
        if address.path == "/pages":
            self._send_json(HTTPStatus.OK, {"pages": count_pages(body), "pdf": is_pdf(body)})
        elif address.path == "/preview":
            self._send(HTTPStatus.OK, preview(body, parameters.page), "image/png")
        else:
            self._send_json(HTTPStatus.OK, self._found(body, parameters))

    def _found(self, encoded: bytes, parameters: RequestParameters) -> dict[str, Any]:
        overrides = parameters.given()
        options = self.server.options
        call = options.read if isinstance(parameters, ReadingParameters) else options.detect
        if call is None:
            raise InvalidInputError("no text is read here; POST the image to /detect")
        begin = perf_counter()
        image = rendered(encoded, parameters.page)
        if not isinstance(image, bytes):
            overrides.pop("page", None)
        found = replace(call(image, **overrides), page=parameters.page)
        ms = (perf_counter() - begin) * 1000
        # The page shows the detections of a row in one line.
        rows = {"rows": [row.tolist() for row in order.rows(found.quads)]} if isinstance(found, Reading) else {}
        return found.to_dict() | rows | {"ms": round(ms, 2), "request_id": found.request_id}

    def _discard(self, left: int) -> None:
        """Read what the browser still sends: if the connection were closed before, the answer would be lost."""
        while left > 0 and (chunk := self.rfile.read(min(left, _CHUNK))):
            left -= len(chunk)

    def _answer(self, work: Callable[[], None]) -> None:
        try:
            if self._is_foreign():
                message = f"this page is only for {self.server.address}"
                self._send_json(HTTPStatus.FORBIDDEN, {"error": message})
            else:
                work()
        except InvalidInputError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": one_line(error)})
        except UnavailableError as error:
            self._send_json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": one_line(error)})
        except OcdserveError as error:
            self._send_json(HTTPStatus.BAD_GATEWAY, {"error": one_line(error)})
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # the browser has moved on to the next picture

    def _is_foreign(self) -> bool:
        """Whether the page of another site sends this: across origins, or by DNS rebinding."""
        ours = {f"{host}:{self.server.server_port}" for host in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        return self.headers.get("Host") not in ours or (origin is not None and urlsplit(origin).netloc not in ours)

    def _send_json(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)
