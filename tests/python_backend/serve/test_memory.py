# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from ocdserve.backend.serve import memory
from ocdserve.backend.serve.process.processes import ProcessStat, Stub
from ocdserve.contract import UnavailableError

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    4000000 kB\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/kube/pod\n")
    return tmp_path / "proc"


def group(tmp_path: Path, limit: str) -> Path:
    folder = tmp_path / "cgroup" / "kube" / "pod"
    folder.mkdir(parents=True)
    for name, text in (("max", limit), ("current", "900000000"), ("stat", "anon 5\ninactive_file 100000000\n")):
        (folder / f"memory.{name}").write_text(text + "\n")
    return tmp_path / "cgroup"


def test_free_is_what_the_machine_has_and_the_control_group_allows(proc: Path, tmp_path: Path) -> None:
    assert memory.free_bytes(proc, tmp_path / "none") == 4_096_000_000
    assert memory.free_bytes(proc, group(tmp_path, "1000000000")) == 200_000_000


def test_a_control_group_without_a_limit_allows_all(proc: Path, tmp_path: Path) -> None:
    assert memory.free_bytes(proc, group(tmp_path, "max")) == 4_096_000_000


def test_a_process_needs_what_it_does_not_share_with_files(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text(
        "Name:\tx\nVmRSS:\t  9000 kB\nRssAnon:\t    2000 kB\nRssFile:\t    6000 kB\nRssShmem:\t    1000 kB\n"
    )
    assert memory.used_bytes(7, tmp_path) == 3_072_000
    assert memory.used_bytes(8, tmp_path) == 0


@pytest.fixture
def own() -> Stub:
    stat = ProcessStat.read(os.getpid())
    assert stat is not None
    return Stub(stat.pid, stat.start_time, "ocdnet_network", "segment")


def test_too_little_memory_is_refused_with_both_figures(own: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "used_bytes", lambda pid: 300 << 20)
    monkeypatch.setattr(memory, "free_bytes", lambda: 600 << 20)
    memory.check_memory([own, own], gpus=False)
    monkeypatch.setattr(memory, "free_bytes", lambda: (600 << 20) - 1)
    with pytest.raises(UnavailableError, match="needs 600 MiB of memory while the first one serves, and 599 MiB are"):
        memory.check_memory([own, own], gpus=False)


@pytest.mark.parametrize(("pid", "needed"), [("own", 3000), ("1", 5000)], ids=["own processes", "unknown ones"])
def test_memory_of_each_gpu_counts_too(
    own: Stub, pid: str, needed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    known = str(own.pid) if pid == "own" else pid
    tool.write_text(
        "#!/bin/sh\n"
        f'case "$2" in *compute-apps*) echo "GPU-b, {known}, 3000"; echo "GPU-b, 2, 2000";;\n'
        '*) echo "GPU-a, 0, 9000"; echo "GPU-b, 5000, 2500";; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UnavailableError, match=f"needs {needed} MiB of memory of GPU 1 .* and 2500 MiB are free"):
        memory.check_memory([own], gpus=True)
