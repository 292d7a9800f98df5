# SPDX-License-Identifier: Apache-2.0
"""The scripts of the check: split files are joined, and error messages name what is missing."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[3] / "perf" / "gpu_check"


def _run(script: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(SCRIPTS / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=60,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of a group, one of them split into three parts."""
    group = tmp_path / "wheels" / "default"
    group.mkdir(parents=True)
    (group / "small.whl").write_bytes(b"small")
    content = bytes(range(250))
    for index, letter in enumerate("abc"):
        (group / f"large.whl.part-a{letter}").write_bytes(content[100 * index : 100 * index + 100])
    (group / "large.whl.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  -\n")
    return tmp_path / "wheels"


def test_split_files_are_joined_and_others_linked(folder: Path, tmp_path: Path) -> None:
    assert _run("unpack.sh", str(folder), str(tmp_path / "carried")).returncode == 0

    group = tmp_path / "carried" / "default"
    assert sorted(path.name for path in group.iterdir()) == ["large.whl", "small.whl"]
    assert (group / "large.whl").read_bytes() == bytes(range(250))
    assert (group / "small.whl").is_symlink() and (group / "small.whl").read_bytes() == b"small"


@pytest.mark.parametrize("missing", ["aa", "ab", "ac"])
def test_a_missing_part_is_reported(folder: Path, tmp_path: Path, missing: str) -> None:
    (folder / "default" / f"large.whl.part-{missing}").unlink()

    ended = _run("unpack.sh", str(folder), str(tmp_path / "carried"))

    assert ended.returncode == 1
    assert "default/large.whl is not what was cut: a part is missing or damaged" in ended.stderr


@pytest.mark.parametrize("script", ["run.sh", "collect.sh"])
def test_a_call_without_a_folder_shows_the_usage(script: str) -> None:
    ended = _run(script)
    assert ended.returncode in (1, 2)
    assert f"usage: {script} WHEELS [--data DIR]" in ended.stderr
    assert "unknown option --nonsense" in _run(script, "--nonsense").stderr


def test_another_folder_is_refused(tmp_path: Path) -> None:
    ended = _run("run.sh", str(tmp_path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"{tmp_path} holds no folder 'default'; perf/gpu_check/collect.sh makes such a folder" in ended.stderr


def test_another_python_is_refused(folder: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "env"):
        (tools / name).symlink_to(next(path for path in _on_path(name)))
    ended = _run("run.sh", str(folder), PATH=str(tools), PYTHON="")
    assert ended.returncode == 2
    assert "Python 3.12 is needed" in ended.stderr


def test_groups_are_lists_of_requirements() -> None:
    groups = {path.stem: path.read_text("utf-8").splitlines() for path in (SCRIPTS / "requirements").iterdir()}
    assert {"default", "pycuda", "tensorrt", "tensorrt-rtx", "onnxruntime-gpu", "triton", "jpeg"} <= set(groups)
    for lines in groups.values():
        assert lines[0] == "# SPDX-License-Identifier: Apache-2.0"
        assert not any("://" in line or line.startswith("-") for line in lines)


def _on_path(name: str) -> list[Path]:
    return [path for folder in os.environ["PATH"].split(os.pathsep) if (path := Path(folder) / name).is_file()]
