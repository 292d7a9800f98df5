# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from ocdserve.backend.serve.process.guard import remove_segments
from ocdserve.backend.serve.process.ownership import (
    is_stale,
    new_prefix,
    private_directory,
    remove_stale,
    shared_directory,
)
from ocdserve.contract import UnavailableError

NAMESPACE = os.stat("/proc/self/ns/pid").st_ino


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    return child.pid


def test_names_of_this_process_are_not_stale_and_all_differ() -> None:
    first, second = new_prefix(), new_prefix()
    assert first != second
    assert not is_stale(first + "segment")


def test_names_of_a_process_that_is_gone_are_stale(dead_pid: int) -> None:
    assert is_stale(f"ocdserve-{NAMESPACE}-{dead_pid}-5-0123abcd-segment")


def test_names_of_an_earlier_process_with_the_same_pid_are_stale() -> None:
    assert is_stale(f"ocdserve-{NAMESPACE}-{os.getpid()}-5-0123abcd-segment")


def test_names_of_another_pid_namespace_are_left_alone(dead_pid: int) -> None:
    assert not is_stale(f"ocdserve-{NAMESPACE + 1}-{dead_pid}-5-0123abcd-segment")


@pytest.mark.parametrize("name", ["triton_python_backend_shm_region_1", "ocdserve-mine", "ocdserve-1-2-3-xyz-", "x"])
def test_names_of_others_are_never_stale(name: str) -> None:
    assert not is_stale(name)


def test_segments_of_one_prefix_are_removed_and_others_stay(tmp_path: Path) -> None:
    for name in ("own-1", "own-2", "other-1", "x-own-1"):
        (tmp_path / name).write_bytes(b"")
    assert remove_segments("own-", tmp_path) == ["own-1", "own-2"]
    assert sorted(os.listdir(tmp_path)) == ["other-1", "x-own-1"]


def test_an_empty_prefix_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"")
    assert remove_segments("", tmp_path) == []
    assert os.listdir(tmp_path) == ["other"]


def test_what_a_dead_launcher_left_is_removed_and_the_rest_stays(tmp_path: Path, dead_pid: int) -> None:
    segments, directories, elsewhere = (tmp_path / name for name in ("shm", "tmp", "elsewhere"))
    for directory in (segments, directories, elsewhere):
        directory.mkdir()
    dead = f"ocdserve-{NAMESPACE}-{dead_pid}-5-0123abcd-"
    own = new_prefix()
    for name in (f"{dead}a", f"{own}a", "psm_other"):
        (segments / name).write_bytes(b"x")
    for name in (f"{dead}b", f"{own}b", "ocdserve-notes"):
        (directories / name).mkdir()
        (directories / name / "file").write_bytes(b"x")
    (elsewhere / "kept").write_bytes(b"x")
    (directories / f"{dead}c").symlink_to(elsewhere)

    assert remove_stale(segments, directories) == [f"{dead}a", f"{dead}b", f"{dead}c"]
    assert sorted(os.listdir(segments)) == sorted([f"{own}a", "psm_other"])
    assert sorted(os.listdir(directories)) == sorted([f"{own}b", "ocdserve-notes"])
    assert os.listdir(elsewhere) == ["kept"]


def test_a_private_directory_is_private_and_names_its_owner() -> None:
    directory = private_directory()
    try:
        assert directory.stat().st_mode & 0o777 == 0o700
        assert f"-{os.getpid()}-" in directory.name
        assert not is_stale(directory.name)
    finally:
        directory.rmdir()


def test_children_of_a_process_share_a_private_directory_that_goes_when_it_is_gone(
    tmp_path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = shared_directory(os.getpid())
    assert directory is not None
    assert shared_directory(os.getpid()) == directory
    assert (directory.parent, directory.stat().st_mode & 0o777) == (tmp_path, 0o700)
    assert not is_stale(directory.name)
    assert shared_directory(os.getppid()) != directory
    assert shared_directory(dead_pid) is None


def test_a_shared_directory_that_others_could_write_or_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = shared_directory(os.getpid())
    assert directory is not None
    directory.chmod(0o770)
    assert shared_directory(os.getpid()) is None
    directory.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    directory.symlink_to(elsewhere)
    assert shared_directory(os.getpid()) is None
    directory.unlink()
    directory.write_bytes(b"")
    assert shared_directory(os.getpid()) is None
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert shared_directory(os.getpid()) is None


def test_without_a_directory_of_temporary_files_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(UnavailableError, match=r"no temporary directory can be made .*or set TMPDIR"):
        private_directory()
