# SPDX-License-Identifier: Apache-2.0
"""Sources are compiled once, even if two processes want the same library."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cuda_emulator import EmulatedDevice, building, package_sources, require_compiler

from ocdserve.contract import UnavailableError

SOURCE = 'extern "C" __global__ void kernel(int* out) { *out = 1; }\n'
REPOSITORY = Path(__file__).resolve().parents[2]
CPP = Path(building.__file__).parent / "cpp"


@pytest.fixture
def cache(cuda_compiler: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache."""
    monkeypatch.setattr(building, "_CACHE", tmp_path / "cache")
    building._cache_folder.cache_clear()
    yield tmp_path / "cache"
    building._cache_folder.cache_clear()


def _module(**sources: str) -> None:
    EmulatedDevice(sources={f"{name}.cu": text for name, text in sources.items()}).module("x.cu")


def test_a_content_is_compiled_once(cache: Path) -> None:
    _module(x=SOURCE)
    before = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
    _module(x=SOURCE, unrelated="// another")
    assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == before

    _module(x=SOURCE.replace("1", "2"))

    assert len(before) == 2
    assert len(list(cache.iterdir())) == 3


def test_only_one_of_several_processes_builds_a_library(cache: Path, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    compiler = programs / "g++"
    compiler.write_text(f'#!/bin/sh\necho "$*" >>"{tmp_path}/calls"\nexec "{shutil.which("g++")}" "$@"\n')
    compiler.chmod(0o755)
    code = (
        "import pathlib; from cuda_emulator import EmulatedDevice, building; "
        f"building._CACHE = pathlib.Path({str(cache)!r}); "
        f"EmulatedDevice(sources={{'x.cu': {SOURCE!r}}}).module('x.cu')"
    )
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY / "tests" / "emulator"),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]

    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert len(list(cache.iterdir())) == 2
    outputs = re.findall(r" -o (\S+)$", (tmp_path / "calls").read_text(), re.MULTILINE)
    assert sorted(Path(output).name for output in outputs) == ["built", "built", "module.o", "shared.o"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__syncthread();", r"x.cu:2:\d+: error: .*__syncthread.* was not declared"),
        ("int a = 0;", r"x.cu:2:\d+: error: unused variable"),
        ("int a; *out = a;", r"x.cu:2:\d+: error: .*uninitialized"),
        ("*out = __activemask();", "__activemask.* was not declared"),
        ("out[0] = min(1ul, 2);", "call of overloaded .*min.* is ambiguous"),
    ],
)
def test_what_is_wrong_is_in_the_compilers_words(cache: Path, text: str, message: str) -> None:
    source = f'extern "C" __global__ void kernel(int* out) {{\n    {text}\n}}\n'

    with pytest.raises(UnavailableError, match=message) as caught:
        _module(x=source)

    assert str(cache) not in str(caught.value)
    assert not [file for file in cache.iterdir() if "x.cu" in file.name]


def test_where_the_cache_cannot_be_written_another_folder_is_used(cache: Path) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("not a folder")

    _module(x=SOURCE)

    assert cache.is_file()


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    building._compiler.cache_clear()
    monkeypatch.setenv("PATH", "")

    with pytest.raises(UnavailableError, match=r"needs g\+\+, which is not installed"):
        require_compiler()
    building._compiler.cache_clear()


def test_every_header_compiles_alone_and_without_warnings(cuda_compiler: None) -> None:
    for header in sorted(CPP.glob("*.h")):
        command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++", str(header)]
        # A header on its own is a "main file", in which `#pragma once` is worth a warning.
        text = f'#include "{header.name}"\n'
        command[-1:] = ["-I", str(CPP), "-"]
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert result.stderr == "", header.name


@pytest.mark.parametrize("name", sorted(name for name in package_sources() if name.endswith(".cu")))
def test_the_packages_sources_compile_and_have_kernels(cuda_compiler: None, name: str) -> None:
    assert EmulatedDevice().module(name).kernels


def test_the_emulator_is_typed() -> None:
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "tests/emulator", "tests/conftest.py"]
    environment = os.environ | {"MYPYPATH": "tests/emulator"}
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=240
    )

    assert result.returncode == 0, result.stdout + result.stderr
