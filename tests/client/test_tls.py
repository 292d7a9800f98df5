# SPDX-License-Identifier: Apache-2.0
"""TLS, with server and client certificates."""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kserve_fakes import FOUND, grpc_server, http_server

from ocdserve.client import Downloads, InvalidInputError, Retry, Tls, UnavailableError
from ocdserve.results.images import load_image

pytestmark = pytest.mark.usefixtures("no_socket_left")

ONCE = Retry(attempts=1)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and certificates for the servers 127.0.0.1 and 93.184.216.34, and for a client."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs the program openssl to make certificates")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*arguments: str) -> None:
        subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,IP:93.184.216.34\n")
    for name in ("server", "client"):
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    return folder


@pytest.fixture(params=["grpc", "http"])
def secure_server(request: pytest.FixtureRequest, certificates: Path) -> Iterator[str]:
    """A server that requires client certificates."""
    if request.param == "grpc":
        pair = ((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())
        authority = (certificates / "ca.pem").read_bytes()
        credentials = grpc.ssl_server_credentials([pair], authority, require_client_auth=True)
        with grpc_server(credentials=credentials) as (url, _):
            yield url
    else:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.pem"))
        context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        context.verify_mode = ssl.CERT_REQUIRED
        with http_server(context=context) as (url, _):
            yield url


def test_mutual_tls(secure_server: str, certificates: Path, call: Callable[..., Any]) -> None:
    ca, cert, key = (certificates / name for name in ("ca.pem", "client.pem", "client.key"))
    assert call(secure_server, tls=Tls(ca, cert, key)).to_dict() == FOUND


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_untrusted_server_and_a_client_without_certificate_are_refused(
    secure_server: str, certificates: Path, call: Callable[..., Any]
) -> None:
    with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED") as untrusted:
        call(secure_server, timeout_s=5)
    assert not untrusted.value.retryable
    with pytest.raises(UnavailableError):
        call(secure_server, tls=Tls(certificates / "ca.pem"), retry=ONCE, timeout_s=5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_image_is_downloaded_from_a_trusted_server_only(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    connect = socket.create_connection
    with http_server(context=context) as (url, server):
        here = ("127.0.0.1", server.server_port)
        monkeypatch.setattr(socket, "create_connection", lambda _, timeout, *source: connect(here, timeout))
        for address, downloads in ((url, Downloads(private=True)), ("https://93.184.216.34", Downloads())):
            with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
                load_image(f"{address}/picture", downloads=downloads)
            with monkeypatch.context() as trusting:
                trusting.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
                with pytest.raises(InvalidInputError, match="HTTP 400"):
                    load_image(f"{address}/picture", downloads=downloads)
                with pytest.raises(UnavailableError, match="IP address mismatch"):
                    load_image("https://93.184.216.35/picture", downloads=Downloads())
