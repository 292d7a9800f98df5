# SPDX-License-Identifier: Apache-2.0
"""One server behind the front doors of these tests, and certificates."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from front_doors import LARGEST, door

from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import TritonServer
from ocdserve.backend.serve.public.front_door import FrontDoor


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, red_bundle: Path) -> Path:
    """A detector of red areas."""
    return publish(PublishOptions(tmp_path_factory.mktemp("public") / "models", red_bundle, threads=1))


@pytest.fixture(scope="session")
def server(
    repository: Path, running_server: Callable[..., AbstractContextManager[TritonServer]]
) -> Iterator[TritonServer]:
    """A server of it."""
    with running_server(repository) as running:
        yield running


@pytest.fixture(scope="session")
def plain(server: TritonServer) -> Iterator[FrontDoor]:
    """A front door with neither TLS nor tokens."""
    with door(server, no_uploads=False, max_body_bytes=LARGEST) as opened:
        yield opened


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two certificates for 127.0.0.1, each its own authority."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs the program openssl to make certificates")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("old", "new"):
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
        subject = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-out", f"{name}.pem")
        subprocess.run(
            [program, "req", "-x509", "-days", "2", *key, *subject], cwd=folder, check=True, capture_output=True
        )
    return folder
