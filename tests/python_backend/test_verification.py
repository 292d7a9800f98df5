# SPDX-License-Identifier: Apache-2.0
"""What a verification does when Triton does not load; tests/integration/test_verification.py has the real one."""

import re
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ocdserve.backend.publish.environment import PackedEnvironment
from ocdserve.backend.verification import verify
from ocdserve.contract import InvalidInputError, UnavailableError

LOADS_NEVER = "trap '' TERM\nwhile :; do sleep 0.1; done"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / "ocdnet").mkdir(parents=True)
    (folder / "ocdnet" / "config.pbtxt").write_text('name: "ocdnet"')
    return folder


def triton(folder: Path, script: str) -> Path:
    """A Triton whose binary is this script."""
    (folder / "triton" / "backends" / "python").mkdir(parents=True)
    binary = folder / "triton" / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    return binary


def test_a_triton_that_ends_is_reported_with_the_reason_of_its_log(repository: Path, tmp_path: Path) -> None:
    error = "E1129 08:00:00.000000 1 model_lifecycle.cc:641] failed to load 'ocdnet': No module named 'shapely'"
    binary = triton(tmp_path, f'echo "{error}" >&2; exit 1')
    with pytest.raises(UnavailableError, match=r"does not work in another Triton: .*exit status 1") as caught:
        verify(repository, tritonserver=binary)
    assert "No module named 'shapely'" in str(caught.value)


def test_a_triton_that_loads_for_ever_is_ended_after_the_limit(repository: Path, tmp_path: Path) -> None:
    binary = triton(tmp_path, f"echo $$ > {tmp_path}/pid; echo waiting; {LOADS_NEVER}")
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match=r"not ready within 1 s:\nwaiting"):
        verify(repository, tritonserver=binary, timeout_s=1.0)
    assert time.monotonic() - begin < 30
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_what_a_triton_has_unpacked_is_removed_when_it_has_to_be_killed(repository: Path, tmp_path: Path) -> None:
    """As Triton does it: it unpacks in the folder itself, and the shell that activates the environment names it."""
    unpacking, other = (Path(tempfile.mkdtemp(prefix="python_env_", dir="/tmp")) for _ in range(2))
    try:
        # mkdtemp's names have eight characters at their end, Triton's six.
        names = [folder.rename(folder.with_name(folder.name[:-2])) for folder in (unpacking, other)]
        shell = f"sh -c '{LOADS_NEVER} # {names[1]}/0/bin/activate'"
        binary = triton(tmp_path, f"cd {names[0]}; {shell} & {LOADS_NEVER}")
        with pytest.raises(UnavailableError, match="not ready within 1 s"):
            verify(repository, tritonserver=binary, timeout_s=1.0)
        assert [name.exists() for name in names] == [False, False]
    finally:
        for name in names:
            shutil.rmtree(name, ignore_errors=True)


def test_the_environment_of_this_process_is_not_that_of_the_second_triton(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "SECRET"):
        monkeypatch.setenv(name, "here")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    binary = triton(tmp_path, f"env > {tmp_path}/environment; exit 1")
    with pytest.raises(UnavailableError):
        verify(repository, tritonserver=binary)
    names = set(re.findall(r"^(\w+)=", (tmp_path / "environment").read_text(), re.M))
    assert {"PATH", "CUDA_VISIBLE_DEVICES"} <= names
    assert not names & {"PYTHONPATH", "VIRTUAL_ENV", "SECRET", "HOME"}


def test_an_environment_for_another_python_is_verified_elsewhere(repository: Path) -> None:
    environment = PackedEnvironment(Path("packed.tar.gz"), "3.7", "/usr/bin/python3", 1)
    with pytest.raises(InvalidInputError, match=r"packed\.tar\.gz is for Python 3\.7 at /usr/bin/python3, and this is"):
        verify(repository, environment)
    here = replace(environment, python="3.11", interpreter="/nowhere/python3")
    with pytest.raises(InvalidInputError, match=r"at /nowhere/python3, .* inside the container"):
        verify(repository, here)
