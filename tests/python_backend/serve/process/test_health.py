# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from ocdserve.backend.serve.process.health import DIRECTORY_VARIABLE, report_failure, take_failures
from ocdserve.backend.serve.process.processes import Stub
from ocdserve.backend.serve.supervisor import Supervisor


def test_a_note_is_taken_once(tmp_path: Path) -> None:
    assert report_failure("the GPU failed: é", {DIRECTORY_VARIABLE: str(tmp_path)})
    assert take_failures(tmp_path) == {os.getpid(): "the GPU failed: é"}
    assert take_failures(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_note_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "17.draft").write_text("half a sen")
    assert take_failures(tmp_path) == {}


def test_without_a_launcher_nobody_is_notified(tmp_path: Path) -> None:
    assert not report_failure("the GPU failed", {})
    assert not report_failure("the GPU failed", {DIRECTORY_VARIABLE: str(tmp_path / "gone")})
    assert take_failures(tmp_path / "gone") == {}


class TestSupervisor:
    """What it does with a note; the real server is in tests/integration."""

    @pytest.fixture
    def killed(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        killed: list[int] = []
        monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
        return killed

    @pytest.mark.parametrize(("alive", "expected"), [(True, [11]), (False, [])])
    def test_only_a_living_stub_that_failed_is_ended(
        self, tmp_path: Path, killed: list[int], monkeypatch: pytest.MonkeyPatch, alive: bool, expected: list[int]
    ) -> None:
        class Server:
            health_directory = tmp_path

            def stubs(self) -> tuple[Stub, ...]:
                return Stub(10, 1, "ocdnet_network", "a"), Stub(11, 1, "ocdnet_fused", "b")

        monkeypatch.setattr(Stub, "alive", lambda self: alive)
        messages: list[str] = []
        supervisor = Supervisor(Server(), messages.append)  # type: ignore[arg-type]
        supervisor._end_failed_stubs()
        assert (killed, messages) == ([], [])
        (tmp_path / "11").write_text("the GPU failed")
        (tmp_path / "99").write_text("a process of an earlier server")
        supervisor._end_failed_stubs()
        supervisor._end_failed_stubs()
        assert killed == expected
        assert messages == ["ocdnet_fused: the GPU failed; its process 11 is ended"] * alive
