# SPDX-License-Identifier: Apache-2.0
"""The server that a section starts for itself."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ocdserve.cli.bench.plan import say

if TYPE_CHECKING:
    from ocdserve.backend.serve import TritonServer


@contextmanager
def default_server(section: str) -> "Iterator[TritonServer]":
    """The real server with the default detector on free ports; `section` is told on stderr."""
    from ocdserve.backend.publish.repository import PublishOptions, publish
    from ocdserve.backend.serve import ServeOptions, private_directory, running_server

    # SIGTERM has to stop the server too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    workspace = private_directory()
    try:
        repository = publish(PublishOptions(repository=workspace / "repository"))
        options = ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0, workspace=workspace)
        say(f"{section}: starting Triton")
        with running_server(options, say) as server:
            yield server
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
