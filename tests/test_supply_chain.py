# SPDX-License-Identifier: Apache-2.0
"""The packages that are installed are those of requirements.lock, and THIRD_PARTY.md lists them."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[1]
LOCK = (REPOSITORY / "requirements.lock").read_text("utf-8")
PYTHONS = ("3.10", "3.11", "3.12")


def entries() -> list[tuple[Requirement, list[str]]]:
    """The pinned requirements, each with its hashes."""
    blocks = re.findall(r"^([a-z0-9].*(?:\n    .*)*)", LOCK, re.M)
    return [(Requirement(block.partition("\\\n")[0].strip()), re.findall(r"--hash=(\S+)", block)) for block in blocks]


def holds(requirement: Requirement, python: str, extra: str = "") -> bool:
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": extra,
    }
    return requirement.marker is None or requirement.marker.evaluate(machine)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_one_version_within_the_range_of_each_requirement(python: str) -> None:
    content: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    project = content["project"]
    # They pin versions of other packages that the rest is not to be held at.
    extras = {name: one for name, one in project["optional-dependencies"].items() if name not in ("train", "modelopt")}
    lists = (
        project["dependencies"],
        content["build-system"]["requires"],
        *extras.values(),
        *content["dependency-groups"].values(),
    )
    locked: dict[str, list[Requirement]] = {}
    for one, _ in entries():
        if holds(one, python):
            locked.setdefault(one.name, []).append(one)
    for wanted in map(Requirement, (line for lines in lists for line in lines)):
        if wanted.name == "ocdserve" or not holds(wanted, python):
            continue
        (found,) = locked[wanted.name]
        (pin,) = found.specifier
        assert pin.operator == "==" and wanted.specifier.contains(pin.version, prereleases=True), (wanted, found)


def test_every_package_of_the_lock_has_hashes_and_no_address() -> None:
    assert len(entries()) > 200
    for requirement, hashes in entries():
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), requirement
    assert "://" not in LOCK


def test_entries_of_the_lock_can_be_given_to_pip() -> None:
    script = str(REPOSITORY / "scripts" / "locked.sh")
    one = subprocess.run([script, "uv", "numpy"], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^(\S+)==", one, re.M) == ["numpy", "uv"]
    assert one.count("--hash=sha256:") > 20 and not one.endswith("\\\n")
    pins = subprocess.run([script], capture_output=True, text=True, check=True).stdout
    assert [str(requirement) for requirement, _ in entries()] == [
        str(Requirement(line)) for line in pins.splitlines() if not line.startswith("#")
    ]


def make_venv(folder: Path, extras: str, message: str) -> "subprocess.CompletedProcess[str]":
    """Run make_venv.sh in a copy with a uv that fails with a message, and a pip; both note their arguments."""
    for name in ("scripts/make_venv.sh", "scripts/locked.sh", "requirements.lock", "pyproject.toml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((REPOSITORY / name).read_bytes())
        (folder / name).chmod(0o755)
    kernels = folder / "python_backend/ocdserve/backend/kernels"
    for name in ("cpu/a.cpp", "cpu/a.h", "cpu/a.py", "shared/a.cuh"):
        (kernels / name).parent.mkdir(parents=True, exist_ok=True)
        (kernels / name).touch()
    programs = {
        "uv": f'test "$1" = --version || {{ echo "$@" >>uv-ran; echo \'{message}\' >&2; exit 1; }}',
        "python": 'case "$*" in *"pip install"*) echo "$@" >>pip-ran ;; esac',
    }
    for name, script in programs.items():
        program = folder / ".venv/bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/bash\n{script}\n", "utf-8")
        program.chmod(0o755)
    (folder / ".venv/.ocdserve").touch()
    command = [folder / "scripts/make_venv.sh", extras]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("message", "ended", "tried"),
    [
        ("Hash mismatch for `numpy==1.26.4`", "a package is not the one that requirements.lock names", False),
        ("Could not connect", "uv could not install .[images], trying pip, which does not check hashes", True),
    ],
)
def test_a_package_with_a_wrong_hash_is_not_installed_by_pip_instead(
    tmp_path: Path, message: str, ended: str, tried: bool
) -> None:
    done = make_venv(tmp_path, "images", message)

    assert ended in done.stderr
    assert (done.returncode == 0, (tmp_path / "pip-ran").exists()) == (tried, tried)
    assert "--constraints requirements.lock --build-constraints requirements.lock" in (tmp_path / "uv-ran").read_text()
    if tried:
        assert "--constraint .venv/pins.txt" in (tmp_path / "pip-ran").read_text()


@pytest.mark.parametrize(
    ("extras", "free"),
    [("train", {"nvidia-cudnn-cu13"}), ("modelopt,builder", {"nvidia-cudnn-cu13", "onnx", "onnxruntime"})],
)
def test_pytorch_and_modelopt_choose_the_versions_that_they_pin(tmp_path: Path, extras: str, free: set[str]) -> None:
    assert make_venv(tmp_path, extras, "Could not connect").returncode == 0
    assert "--constraints .venv/requirements.lock " in (tmp_path / "uv-ran").read_text()
    for name in ("requirements.lock", "pins.txt"):
        text = (tmp_path / ".venv" / name).read_text()
        held = {line.partition("==")[0] for line in text.splitlines() if "==" in line}
        assert held >= {"numpy", "nvidia-pytriton", "onnx-graphsurgeon"}
        assert not held & free
    hashes = [
        (tmp_path / name).read_text().count("--hash") for name in ("requirements.lock", ".venv/requirements.lock")
    ]
    assert 0.9 * hashes[0] < hashes[1] < hashes[0]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 needs packages that the list's Python does not")
def test_the_list_of_third_party_packages_is_complete() -> None:
    specification = importlib.util.spec_from_file_location("third_party", REPOSITORY / "scripts" / "third_party.py")
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    text = (REPOSITORY / "THIRD_PARTY.md").read_text("utf-8")
    assert text.startswith(script.INTRODUCTION)
    listed = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+?) \|", text.partition("|---|---|---|")[2], re.M))
    assert listed["numpy"] == "BSD License" and listed["aiohttp"] == "Apache-2.0 AND MIT"
    assert "not declared" not in listed.values()
    locked = {requirement.name for requirement, _ in entries()}
    assert listed.keys() <= locked
    assert script.packages().keys() <= listed.keys()
