# SPDX-License-Identifier: Apache-2.0
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ocdserve.backend.serve.control import Control, RunningServer, ask_to_reload, find_server
from ocdserve.backend.serve.process.ownership import new_prefix
from ocdserve.contract import InvalidInputError, UnavailableError


class Reloads:
    """Stands for `Reloader`: remembers what it was asked for."""

    def __init__(self) -> None:
        self.bundles: list[Path | None] = []
        self.recognisers: list[Path | None] = []
        self.error: Exception | None = None
        self.may_end = threading.Event()
        self.may_end.set()

    def reload(self, bundle: Path | None, recogniser: Path | None) -> str:
        self.bundles.append(bundle)
        self.recognisers.append(recogniser)
        assert self.may_end.wait(10)
        if self.error:
            raise self.error
        return "the detector b serves"


@pytest.fixture
def reloads() -> Reloads:
    return Reloads()


@pytest.fixture
def launcher(tmp_path: Path, reloads: Reloads, monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    """A launcher in this process, whose main loop polls."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    workspace = tmp_path / f"{new_prefix()}x"
    workspace.mkdir()
    server: Any = SimpleNamespace(workspace=workspace, http_url="http://127.0.0.1:8000")
    control = Control(server, reloads, lambda message: None)  # type: ignore[arg-type]
    control.poll()
    ending = threading.Event()

    def loop() -> None:
        while not ending.wait(0.01):
            control.poll()

    thread = threading.Thread(target=loop)
    thread.start()
    yield control
    ending.set()
    thread.join()


def left(server: RunningServer) -> list[str]:
    return [path.name for path in server.directory.iterdir()]


def test_a_server_is_found_asked_and_answers(launcher: Control, reloads: Reloads, tmp_path: Path) -> None:
    server = find_server()
    assert server.url == "http://127.0.0.1:8000"
    (tmp_path / "bundle").mkdir()
    assert ask_to_reload(server, tmp_path / "bundle") == "the detector b serves"
    assert ask_to_reload(server, Path("fast")) == "the detector b serves"
    assert ask_to_reload(server, None) == "the detector b serves"
    assert ask_to_reload(server, None, tmp_path / "bundle") == "the detector b serves"
    assert reloads.bundles == [tmp_path / "bundle", Path("fast"), None, None]
    assert reloads.recognisers == [None, None, None, tmp_path / "bundle"]
    assert left(server) == ["server.json"]


@pytest.mark.parametrize("error", [UnavailableError("no memory"), KeyError("x")])
def test_a_failure_is_an_error_there_too(launcher: Control, reloads: Reloads, error: Exception) -> None:
    reloads.error = error
    expected = "no memory" if isinstance(error, UnavailableError) else "the server's output has the details"
    with pytest.raises(UnavailableError, match=rf"the detector that was served before goes on: .*{expected}"):
        ask_to_reload(find_server(), None)


def test_requests_wait_for_each_other(launcher: Control, reloads: Reloads) -> None:
    reloads.may_end.clear()
    threads = [threading.Thread(target=ask_to_reload, args=(find_server(), Path(f"/{n}"))) for n in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while not reloads.bundles and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(reloads.bundles) == 1 and launcher.busy
    reloads.may_end.set()
    for thread in threads:
        thread.join()
    assert sorted(map(str, reloads.bundles)) == ["/0", "/1"]


def test_without_a_server_or_with_several_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"no server of yours runs here\. `ocdserve serve` starts one"):
        find_server()
    for port in (1, 2):
        folder = tmp_path / f"{new_prefix()}x" / "control"
        folder.mkdir(parents=True)
        (folder / "server.json").write_text(f'{{"http": "http://127.0.0.1:{port}"}}')
    with pytest.raises(InvalidInputError, match=r"name one of these with --pid: \d+ \(http://127\.0\.0\.1:1\), \d+"):
        find_server()
    with pytest.raises(UnavailableError, match="with the process id 1 runs here"):
        find_server(1)


def test_a_directory_of_another_user_is_no_server(
    launcher: Control, reloads: Reloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"{new_prefix()}of-another" / "control"
    folder.mkdir(parents=True)
    (folder / "server.json").write_text("not JSON")
    own, real = find_own(tmp_path), Path.lstat

    def lstat(path: Path) -> os.stat_result:
        found = real(path)
        return found if path.name == own.name else os.stat_result([*found[:4], found.st_uid + 1, *found[5:]])

    monkeypatch.setattr(Path, "lstat", lstat)
    assert find_server().directory.parent.name == own.name


def find_own(folder: Path) -> Path:
    (found,) = [path for path in folder.glob("ocdserve-*") if not path.name.endswith("of-another")]
    return found


def test_nobody_waits_for_a_request_that_was_lost(launcher: Control, reloads: Reloads) -> None:
    server = find_server()
    reloads.may_end.clear()
    first = threading.Thread(target=launcher.reload)
    first.start()
    first.join()
    outcome: list[str] = []

    def ask() -> None:
        try:
            outcome.append(ask_to_reload(server, None))
        except UnavailableError as error:
            outcome.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    deadline = time.monotonic() + 10
    while not (found := list(server.directory.glob("*.request"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    # As a cleaner of temporary directories does.
    found[0].unlink()
    asking.join(10)
    assert not asking.is_alive()
    reloads.may_end.set()
    assert outcome == ["the server's answer was lost; its output says what became of the reload"]
