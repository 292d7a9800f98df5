# SPDX-License-Identifier: Apache-2.0
"""All accepted kinds of images, and downloads within limits."""

import io
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from ocdserve.client import Downloads, InvalidInputError, UnavailableError
from ocdserve.results.images import load_image, takes_time

HERE = Downloads(private=True)  # which the addresses of these tests are
PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def test_bytes_paths_and_file_objects_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"jpeg")
    assert load_image(b"jpeg") == b"jpeg"
    assert load_image(bytearray(b"jpeg")) == b"jpeg"
    assert load_image(memoryview(b"jpeg")) == b"jpeg"
    assert load_image(file) == load_image(str(file)) == b"jpeg"
    assert load_image(io.BytesIO(b"jpeg")) == b"jpeg"
    with file.open("rb") as opened:
        assert load_image(opened) == b"jpeg"


def test_arrays_are_rgb_unless_bgr_is_set() -> None:
    assert load_image(PIXELS) is PIXELS
    assert np.asarray(load_image(PIXELS, bgr=True)).tolist() == PIXELS[..., ::-1].tolist()
    assert load_image(b"jpeg", bgr=True) == b"jpeg"


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK"])
def test_pillow_images_become_rgb_pixels(mode: str) -> None:
    picture = PIL.Image.fromarray(PIXELS).convert(mode)
    loaded = load_image(picture)
    assert isinstance(loaded, np.ndarray)
    assert (loaded.shape, loaded.dtype) == ((2, 3, 3), np.uint8)
    assert loaded.tolist() == np.asarray(picture.convert("RGB")).tolist()


def test_transparency_is_composited_on_white_and_exif_orientation_applied() -> None:
    clear = PIL.Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    assert np.asarray(load_image(clear)).tolist() == [[[255, 255, 255]] * 2]
    turned = PIL.Image.new("RGB", (4, 2))
    turned.getexif()[274] = 6
    assert np.asarray(load_image(turned)).shape == (4, 2, 3)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Path("none.jpg"), "cannot read the image file 'none.jpg': No such file or directory"),
        ("a\0b", "cannot read the image file"),
        (io.StringIO("text"), r'its read\(\) returned str. Open it with mode "rb"'),
        (7, "image must be encoded bytes, a path, a URL, .*; got int"),
        (None, "got NoneType"),
        (PIL.Image.new("F", (2, 2)), "floating-point pixels .* Convert to 8 bits per channel first"),
        ("http://", "cannot fetch the image 'http://'"),
        ("http://[::1", "cannot fetch the image"),
    ],
)
def test_anything_else_is_refused(image: Any, reason: str) -> None:
    with pytest.raises((InvalidInputError, UnavailableError), match=reason):
        load_image(image, downloads=HERE)


def test_only_images_in_memory_are_loaded_in_the_event_loop() -> None:
    assert not takes_time(b"x") and not takes_time(PIXELS)
    assert takes_time("a.jpg") and takes_time(io.BytesIO()) and takes_time("http://h/a.jpg")


def test_pillow_is_not_imported_for_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "PIL.Image")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert load_image(io.BytesIO(b"jpeg")) == b"jpeg"
    with pytest.raises(InvalidInputError, match="got object"):
        load_image(object())  # type: ignore[arg-type]


class Site(BaseHTTPRequestHandler):
    """Images and error cases by path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.strip("/").partition("?")[0]
        if name.startswith("to-"):
            target = {
                "to-file": "file:///etc/passwd",
                "to-ftp": "ftp://127.0.0.1/x",
                "to-data": "data:text/plain,x",
                "to-picture": "/picture",
                "to-here": "http://127.0.0.1:1/picture",
                "to-itself": "/to-itself",
            }[name]
            self.answer(302, b"", {"Location": target})
        elif name == "slowly-to-itself":
            time.sleep(0.15)
            self.answer(302, b"", {"Location": f"/{name}?{time.monotonic_ns()}"})
        elif name == "short":
            self.answer(200, b"only this", {"Content-Length": "1000", "Connection": "close"})
        elif name == "slow":
            self.answer(200, b"", {"Content-Length": "1000"})
            for _ in range(100):
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
                time.sleep(0.02)
        elif name == "slow-headers":
            for line in ("HTTP/1.1 200 OK\r\n", *("X: y\r\n" for _ in range(100))):
                try:
                    self.wfile.write(line.encode())
                except OSError:
                    return
                time.sleep(0.02)
        elif name == "picture":
            self.answer(200, b"picture")
        else:
            self.answer(int(name), b"")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = "Connection" in (headers or {})

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@contextmanager
def serving() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.mark.parametrize("name", ["picture", "to-picture"])
def test_a_url_is_downloaded(site: str, name: str) -> None:
    assert load_image(f"{site}/{name}", downloads=HERE) == b"picture"
    assert load_image(f"{site}/{name}".replace("http", "HTTP", 1), downloads=HERE) == b"picture"


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("to-file", InvalidInputError, "Redirection to url 'file:///etc/passwd' is not allowed"),
        ("to-ftp", InvalidInputError, "neither http nor https"),
        ("to-data", InvalidInputError, "is not allowed"),
        ("to-itself", InvalidInputError, "redirects too often|infinite loop"),
        ("404", InvalidInputError, "HTTP 404"),
        ("503", UnavailableError, "HTTP 503"),
        ("short", UnavailableError, "ended after 9 of 1000 bytes"),
    ],
)
def test_a_failing_url_is_reported_with_the_reason(site: str, name: str, kind: type[Exception], reason: str) -> None:
    with pytest.raises(kind, match=reason):
        load_image(f"{site}/{name}", downloads=HERE)


def test_downloads_respect_their_limits(site: str) -> None:
    with pytest.raises(InvalidInputError, match=r"has more than 6 bytes; .* Downloads\.max_bytes"):
        load_image(f"{site}/picture", downloads=replace(HERE, max_bytes=6))
    assert load_image(f"{site}/picture", downloads=replace(HERE, max_bytes=7)) == b"picture"
    with pytest.raises(InvalidInputError, match="redirects too often"):
        load_image(f"{site}/to-picture", downloads=replace(HERE, redirects=0))
    for name in ("slow", "slow-headers"):
        start = time.monotonic()
        with pytest.raises(UnavailableError, match=r"was not received within 0\.2 s"):
            load_image(f"{site}/{name}", downloads=replace(HERE, timeout_s=0.2))
        assert time.monotonic() - start < 1


def test_no_url_is_fetched_unless_that_is_asked_for(site: str) -> None:
    with pytest.raises(InvalidInputError, match=r"is a URL, and none is fetched unless .* downloads=Downloads\(\)"):
        load_image(f"{site}/picture")


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "[fec0::1]",
        # IPv4 addresses within IPv6 ones: compatible, NAT64 (10.1.2.3 and 169.254.169.254), 6to4.
        "[::127.0.0.1]",
        "[64:ff9b::a01:203]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a01:203]",
        "[2002:a01:203::1]",
        "10.1.2.3",
        "100.64.0.1",
        "169.254.169.254",
        "192.168.0.1",
        "224.0.0.1",
    ],
)
def test_a_url_of_an_address_that_is_not_public_is_not_asked(
    scheme: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("a connection was made"))
    monkeypatch.setenv("http_proxy", "http://93.184.216.34:3128")
    monkeypatch.setenv("https_proxy", "http://93.184.216.34:3128")
    with pytest.raises(InvalidInputError, match=r"public addresses only; \S+ .*Downloads\(private=True\)"):
        load_image(f"{scheme}://{host}:1/picture", downloads=Downloads())


def test_a_public_address_is_asked_and_does_not_lead_to_another(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    here = int(site.rpartition(":")[2])
    connect = socket.create_connection

    def from_the_web(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address)
        return connect(("127.0.0.1", here), timeout)

    monkeypatch.setattr(socket, "create_connection", from_the_web)
    assert load_image("http://93.184.216.34:81/picture", downloads=Downloads()) == b"picture"
    with pytest.raises(InvalidInputError, match=r"127\.0\.0\.1 is not one"):
        load_image("http://93.184.216.34:82/to-here", downloads=Downloads())
    assert asked == [("93.184.216.34", 81), ("93.184.216.34", 82)]


def test_redirects_share_one_time_limit(site: str) -> None:
    with pytest.raises(UnavailableError, match=r"was not received within 0\.4 s"):
        load_image(f"{site}/slowly-to-itself", downloads=replace(HERE, timeout_s=0.4))


def test_a_url_without_server_is_unavailable() -> None:
    with serving() as url:
        pass
    with pytest.raises(UnavailableError, match=r"cannot fetch the image .*refused"):
        load_image(f"{url}/picture", downloads=HERE)
