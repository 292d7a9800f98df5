# SPDX-License-Identifier: Apache-2.0
"""Compiling the library, rejecting unusable ones, and its code under other compilers and flags."""

import functools
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ocdserve.backend.kernels.cpu import __main__ as command
from ocdserve.backend.kernels.cpu import compile as compilation
from ocdserve.backend.kernels.cpu import library
from ocdserve.backend.kernels.cpu.compile import LIBRARY, CompilationError, compile_library, digest, find_compiler
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages.postprocess import detections_of_rows, postprocess
from ocdserve.perf.inputs import shapes

# To compile in less time.
FAST = ["-O0"]

FRAME = Frame((120, 200), (120, 200), (120, 200))


@pytest.fixture
def copied_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, compiled instead of the real ones, without a library yet; the folder of the C++."""
    kernels = LIBRARY.parents[1]
    for name in ("cpu", "shared"):
        shutil.copytree(kernels / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "*.py", "__pycache__"))
    monkeypatch.setattr(compilation, "FOLDER", tmp_path / "cpu")
    return tmp_path / "cpu"


@pytest.fixture
def fresh_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where `load` looks for the library in place of the installed one; nothing is there yet."""
    path = tmp_path / "postprocess.so"
    monkeypatch.setattr(library, "LIBRARY", path)
    monkeypatch.setattr(library, "load", functools.cache(library.load.__wrapped__))
    return path


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any compiler; the folder of its PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compilation, "find_spec", lambda name: None)
    return tmp_path / "bin"


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


class TestFindingACompiler:
    def test_the_first_of_the_usual_names_is_taken(self, no_compiler: Path) -> None:
        for name in ("clang++", "g++", "c++"):
            _program(no_compiler / name, "exit 0")
            assert find_compiler() == [str(no_compiler / name)]

    def test_cxx_comes_first_and_may_have_arguments(self, no_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _program(no_compiler / "c++", "exit 0")
        monkeypatch.setenv("CXX", "ccache 'my compiler' -m64")
        assert find_compiler() == ["ccache", "my compiler", "-m64"]

    def test_the_package_ziglang_is_the_fallback(self, no_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compilation, "find_spec", lambda name: object() if name == "ziglang" else None)
        assert find_compiler() == [sys.executable, "-m", "ziglang", "c++", "-nostdlib++"]

    def test_without_any_it_says_what_to_install(self, no_compiler: Path) -> None:
        with pytest.raises(CompilationError, match=r"apt install g\+\+; anywhere: pip install ziglang.*or set CXX"):
            find_compiler()


class TestCompiling:
    def test_the_library_holds_the_digest_of_its_sources(self, compiler: list[str], tmp_path: Path) -> None:
        path = compile_library(tmp_path / "made.so", FAST)
        assert digest().encode() in path.read_bytes()
        assert library.examine(path) is None
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("file", ["cpu/bits.h", "cpu/postprocess.cpp", "cpu/steps.cpp", "shared/growth.cuh"])
    def test_every_source_counts(self, copied_sources: Path, file: str) -> None:
        before = digest()
        with (copied_sources.parent / file).open("a", encoding="utf-8") as target:
            target.write("\n")
        assert digest() != before

    def test_every_included_file_is_among_the_sources(self, compiler: list[str]) -> None:
        mains = sorted(LIBRARY.parent.glob("*.cpp"))
        listing = subprocess.run(
            [*compiler, "-std=c++17", "-Wno-unknown-pragmas", "-MM", *map(str, mains)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        words = listing.replace("\\\n", " ").split()
        included = {Path(word).resolve() for word in words if not word.endswith(":")}
        assert included == {path.resolve() for path in compilation._sources()}

    def test_the_compilers_errors_are_reported(self, compiler: list[str], copied_sources: Path) -> None:
        (copied_sources / "hull.h").write_text("no C++ at all\n", encoding="utf-8")
        with pytest.raises(CompilationError, match=r"(?s)the compiler .* fails:.*hull\.h"):
            compile_library(copied_sources / "made.so")
        assert not [path for path in copied_sources.iterdir() if path.name.startswith((".compiling", "made"))]

    @pytest.mark.parametrize("compiler_", ["/nowhere/c++", "false"])
    def test_a_compiler_that_does_not_work_is_reported(
        self, compiler_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CXX", compiler_)
        with pytest.raises(CompilationError, match=rf"the compiler {re.escape(compiler_)} (fails|does not work)"):
            compile_library(tmp_path / "made.so")

    def test_no_library_of_c_plus_plus_is_needed_at_run_time(self, library: library.Library) -> None:
        if sys.platform != "linux" or not shutil.which("readelf"):
            pytest.skip("needs Linux and readelf")
        listing = subprocess.run(["readelf", "-d", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
        needed = {line.split("[")[1].rstrip("]") for line in listing.splitlines() if "(NEEDED)" in line}
        assert needed <= {"libc.so.6", "libm.so.6"}


class TestUnusableLibraries:
    def _answers(self) -> None:
        probability = shapes.words(np.random.default_rng(1), 120, 200)
        found = postprocess(probability, FRAME, PostprocessParams())
        assert len(found) > 0
        expected = postprocess(probability, FRAME, PostprocessParams(), compiled=False)
        assert found.quads.tolist() == expected.quads.tolist()

    def test_without_a_library_numpy_is_used_silently(self, fresh_load: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert library.examine(fresh_load) == "it is missing"
        assert library.load() is None
        self._answers()
        assert caplog.messages == []

    def test_one_of_other_sources_is_not_used(
        self, compiler: list[str], copied_sources: Path, fresh_load: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with (copied_sources / "hull.h").open("a", encoding="utf-8") as target:
            target.write("// changed\n")
        compile_library(fresh_load, FAST)
        assert library.examine(fresh_load) is None
        monkeypatch.undo()
        assert library.examine(fresh_load) == "it was compiled from other sources"

    @pytest.mark.parametrize(
        ("content", "problem"),
        [(b"", "it was compiled from other sources"), (b"not an ELF file {digest}", "it cannot be loaded: .*")],
    )
    def test_a_damaged_one_is_not_used_and_that_is_logged_once(
        self, fresh_load: Path, caplog: pytest.LogCaptureFixture, content: bytes, problem: str
    ) -> None:
        fresh_load.write_bytes(content.replace(b"{digest}", digest().encode()))
        with caplog.at_level(logging.WARNING):
            self._answers()
            self._answers()
        (message,) = caplog.messages
        assert message.startswith("post-processing uses NumPy, not postprocess.so: it ")
        assert message.endswith(library.REMEDY)
        assert re.search(problem, message)


class TestTheCommand:
    @pytest.fixture(autouse=True)
    def elsewhere(self, copied_sources: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = copied_sources / "postprocess.so"
        monkeypatch.setattr(command, "LIBRARY", path)
        monkeypatch.setattr(command, "compile_library", lambda: compile_library(path, FAST))
        return path

    def test_it_compiles_what_is_missing_or_old_and_nothing_else(self, compiler: list[str], elsewhere: Path) -> None:
        assert command.main() == 0
        assert library.examine(elsewhere) is None
        made = elsewhere.stat()
        assert command.main() == 0
        assert elsewhere.stat() == made
        with (elsewhere.parent / "bits.h").open("a", encoding="utf-8") as target:
            target.write("// changed\n")
        assert command.main() == 0
        assert library.examine(elsewhere) is None
        assert elsewhere.stat().st_ino != made.st_ino

    def test_without_a_compiler_it_says_so(self, no_compiler: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main() == 1
        message = capsys.readouterr().err
        assert message.startswith(
            "ocdserve: post-processing stays with NumPy, which is slower: there is no C++ compiler"
        )


class TestOtherCompilersAndFlags:
    @pytest.fixture
    def maps(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(5)
        return iter([shapes.noise(rng, 120, 200) for _ in range(20)] + [shapes.words(rng, 120, 200, 9)])

    def _compare(self, path: Path, maps: Iterator[np.ndarray]) -> None:
        other = library.Library(path)
        for index, probability in enumerate(maps):
            params = PostprocessParams(thresh=0.2 + 0.03 * index, box_thresh=0.2, dilation=bool(index % 2))
            rows = other.rows(probability, FRAME, params)
            assert rows is not None
            found = detections_of_rows(rows, 200, FRAME, params, list)
            expected = postprocess(probability, FRAME, params, compiled=False)
            assert found.quads.tolist() == expected.quads.tolist()
            assert found.scores.tolist() == expected.scores.tolist()

    def test_without_x86_vectors_the_results_are_equal(
        self, compiler: list[str], tmp_path: Path, maps: Iterator[np.ndarray]
    ) -> None:
        self._compare(compile_library(tmp_path / "portable.so", ["-U__SSE2__"]), maps)

    @pytest.mark.long
    def test_for_this_very_processor_it_answers_the_same(
        self, compiler: list[str], tmp_path: Path, maps: Iterator[np.ndarray]
    ) -> None:
        if platform.machine() != "x86_64":
            pytest.skip("-march=native is for x86-64")
        self._compare(compile_library(tmp_path / "native.so", ["-march=native"]), maps)

    @pytest.mark.long
    @pytest.mark.parametrize("program", ["checked_maps.py", "checked_lines.py"])
    def test_it_touches_no_memory_but_its_own_and_does_nothing_undefined(
        self, compiler: list[str], tmp_path: Path, program: str
    ) -> None:
        preload = subprocess.run(
            [*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
        ).stdout.strip()
        if not Path(preload).is_absolute():
            pytest.skip("the compiler has no AddressSanitizer")
        sanitizers = "-fsanitize=address,undefined"
        path = compile_library(tmp_path / "checked.so", [sanitizers, "-fno-sanitize-recover=all", "-g", "-O1"])
        result = subprocess.run(
            [sys.executable, str(Path(__file__).with_name(program)), str(path)],
            env=os.environ
            | {
                "LD_PRELOAD": preload,
                "ASAN_OPTIONS": "detect_leaks=0",
                "PYTHONMALLOC": "malloc",
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-4000:]
        assert int(result.stdout) > 10_000
