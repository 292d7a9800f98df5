# SPDX-License-Identifier: Apache-2.0
"""The layout's limits, and the paths that users and published repositories import."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = [REPOSITORY / name for name in ("builder", "client", "perf", "python_backend", "model_repository")]
SUFFIXES = (".py", ".cu", ".cuh", ".h", ".cpp", ".js", ".css", ".html")

MOST_FILES = 16
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60

# Named in the documentation, or written into the `model.py` of repositories that earlier versions published.
PUBLIC = {
    "ocdserve.backend": (
        "PRESETS",
        "Bundle",
        "Detector",
        "DetectorSpec",
        "NetworkSpec",
        "PostprocessParams",
        "ResizePolicy",
    ),
    "ocdserve.backend.cuda.detector": ("GpuDetector",),
    "ocdserve.backend.gpu.detector": ("GpuDetector",),
    "ocdserve.backend.triton": ("ServedFused", "ServedNetwork", "ServedPostprocess", "ServedPreprocess"),
    "ocdserve.batch": ("DetectBatch",),
    "ocdserve.builder": ("BuildConfig", "build"),
    "ocdserve.client": (
        "AsyncTextDetector",
        "AsyncTextReader",
        "Detections",
        "MockTransport",
        "Reading",
        "SharedMemory",
        "TextDetector",
        "TextReader",
        "Timeout",
    ),
    "ocdserve.contract": ("InvalidInputError", "OcdserveError", "UnavailableError"),
    "ocdserve.results": ("coco_dataset",),
}
RUN_AS_MODULE = (
    "ocdserve.backend.native",
    "ocdserve.backend.kernels.cpu",
    "ocdserve.builder.tao",
    "ocdserve.cli",
    "ocdserve.perf.gpu_check",
)

# Modules that are imported by a name in a string: neither the linter nor an editor finds these.
BY_STRING = (
    "ocdserve.backend.triton.gpu_fused",
    "ocdserve.backend.triton.gpu_steps",
    "ocdserve.cli.completion",
    "ocdserve.perf.counting.instructions",
)


def source_files() -> list[Path]:
    files = [file for folder in SOURCES for file in folder.rglob("*") if file.suffix in SUFFIXES]
    return [file for file in files if "__pycache__" not in file.parts]


def test_no_folder_holds_too_many_files() -> None:
    counts: dict[Path, int] = {}
    for file in source_files():
        counts[file.parent] = counts.get(file.parent, 0) + 1
    assert {str(folder.relative_to(REPOSITORY)): count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_no_file_is_too_long() -> None:
    lengths = {str(file.relative_to(REPOSITORY)): file.read_text("utf-8").count("\n") for file in source_files()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_no_function_is_too_long() -> None:
    found = {}
    for file in source_files():
        if file.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = _length(node)
                if length > MOST_LINES_OF_A_FUNCTION:
                    found[f"{file.relative_to(REPOSITORY)}:{node.name}"] = length
    assert found == {}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_paths_are_importable(module: str) -> None:
    if module == "ocdserve.backend.triton":  # it can be imported inside of Triton only
        file = _file_of(module)
        assert file is not None
        imports = [node for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.ImportFrom)]
        found = {alias.name for node in imports for alias in node.names}
    else:
        found = set(dir(import_module(module)))
    assert set(PUBLIC[module]) - found == set()


@pytest.mark.parametrize("module", RUN_AS_MODULE)
def test_public_commands_are_modules_with_a_main(module: str) -> None:
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({module + '.__main__'!r}) is None)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_modules_named_in_strings_exist() -> None:
    from ocdserve.backend.network.options import RUNTIMES
    from ocdserve.builder.tao.actions import ACTIONS
    from ocdserve.cli import COMMANDS, bench
    from ocdserve.perf.sections import SECTIONS

    named = [*BY_STRING, *(command.module for command in (*COMMANDS, *bench.COMMANDS))]
    named += [f"ocdserve.backend.network.{row.network.partition(':')[0]}" for row in RUNTIMES.values()]
    named += [f"ocdserve.builder.tao.{action.module}" for action in ACTIONS.values()]
    named += [f"ocdserve.perf.sections.{section.name}" for section in SECTIONS]
    assert len(named) > 30
    assert [name for name in named if _file_of(name) is None] == []


def test_the_documentation_names_only_modules_that_exist() -> None:
    pages = [REPOSITORY / "README.md", REPOSITORY / "builder" / "MIGRATION.md", *(REPOSITORY / "docs").glob("*.md")]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    named = set(re.findall(r"(?:from|-m) (ocdserve(?:\.\w+)+)", text))
    assert named
    assert [name for name in named if _file_of(name) is None] == []


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring and decorators."""
    length = (node.end_lineno or 0) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        length -= (first.end_lineno or 0) - first.lineno + 1
    return length


def _file_of(module: str) -> Path | None:
    for folder in SOURCES:
        path = folder.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None
