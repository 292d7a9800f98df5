# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend import files
from ocdserve.backend.files import cache_folder, draft_folder, install_folder, write_atomically
from ocdserve.contract import UnavailableError


class TestWriteAtomically:
    def test_replaces_a_file_that_others_may_read(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")
        write_atomically(path, b"new")
        assert path.read_bytes() == b"new"
        assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
        assert list(tmp_path.iterdir()) == [path]

    def test_writes_to_what_is_no_file(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            write_atomically(pipe, b"new")
            assert os.read(reader, 10) == b"new"
        finally:
            os.close(reader)
        assert pipe.is_fifo()

    def test_names_the_file_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as raised:
            write_atomically(tmp_path / "none" / "file", b"new")
        assert raised.value.filename == str(tmp_path / "none" / "file")

    def test_keeps_the_old_file_when_interrupted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        path = tmp_path / "file"
        path.write_bytes(b"old")
        monkeypatch.setattr(files.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"new")
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


class TestDraftFolder:
    def test_becomes_its_target(self, tmp_path: Path) -> None:
        with draft_folder(tmp_path / "parent", ".new-") as draft:
            (draft / "file").write_text("content")
            install_folder(draft, tmp_path / "parent" / "target")
        assert [path.name for path in (tmp_path / "parent").iterdir()] == ["target"]
        assert (tmp_path / "parent" / "target" / "file").read_text() == "content"
        assert (tmp_path / "parent" / "target").stat().st_mode & 0o777 == 0o755

    def test_is_removed_when_it_was_not_installed(self, tmp_path: Path) -> None:
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "file").write_text("old")
        with pytest.raises(OSError, match="taken"), draft_folder(tmp_path, ".new-") as draft:
            install_folder(draft, tmp_path / "taken")
        assert [path.name for path in tmp_path.iterdir()] == ["taken"]
        assert (tmp_path / "taken" / "file").read_text() == "old"


class TestCacheFolder:
    def test_is_what_the_environment_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/somewhere/me")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert cache_folder() == Path("/somewhere/me/.cache/ocdserve")
        monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
        assert cache_folder("kernels", "SOME_FOLDER") == Path("/var/cache/me/ocdserve/kernels")
        monkeypatch.setenv("SOME_FOLDER", "~/kernels")
        assert cache_folder("kernels", "SOME_FOLDER") == Path("/somewhere/me/kernels")

    def test_is_a_temporary_one_for_a_user_without_a_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", homeless)
        monkeypatch.setattr(files.tempfile, "gettempdir", lambda: "/somewhere")
        assert cache_folder("kernels") == Path(f"/somewhere/ocdserve-{os.getuid()}/kernels")

    @pytest.mark.parametrize("others", ["may write", "made a link"])
    def test_is_not_one_that_others_could_fill(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, others: str
    ) -> None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
        monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
        own = tmp_path / f"ocdserve-{os.getuid()}"
        assert cache_folder("kernels") == own / "kernels"
        assert own.stat().st_mode & 0o777 == 0o700
        if others == "may write":
            own.chmod(0o777)
        else:
            own.rmdir()
            own.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UnavailableError, match="is not this user's alone"):
            cache_folder("kernels")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


def test_stdout_is_written_to_also_when_the_shell_has_opened_a_file(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from ocdserve.backend.files import write_atomically\n"
        "write_atomically(Path('/proc/self/fd/1'), b'x')\n"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True, timeout=60)
    assert (tmp_path / "out").read_bytes() == b"x"
