# SPDX-License-Identifier: Apache-2.0
"""The error for a server that does not start; a real one is started in tests/integration."""

from pathlib import Path

import pytest

from ocdserve.contract import UnavailableError
from ocdserve.perf.load.served import Served, serving


def test_a_server_that_does_not_start_is_an_error_with_its_last_output(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"did not become ready: .*is not a directory"), serving(tmp_path / "no"):
        pass


def test_each_protocol_has_its_url() -> None:
    served = Served("http://127.0.0.1:1", "grpc://127.0.0.1:2")
    assert served.url("grpc") == "grpc://127.0.0.1:2" and served.url("http") == "http://127.0.0.1:1"
