# SPDX-License-Identifier: Apache-2.0
"""One distribution from four source folders: the traps of that layout, and what a user installs from it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from ocdserve.backend.kernels.cpu.compile import CompilationError, find_compiler
from ocdserve.contract import install_command

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = ("builder", "client", "perf", "python_backend")
HEAVY = ("PIL", "cv2", "onnx", "onnxruntime", "openvino", "pyclipper", "rapidocr", "shapely", "tensorrt", "torch")


def _namespaces() -> list[Path]:
    return [folder for name in SOURCE_FOLDERS if (folder := REPOSITORY / name / "ocdserve").is_dir()]


def _packages() -> list[Path]:
    return sorted(init.parent for folder in _namespaces() for init in folder.glob("*/__init__.py"))


def _pyproject() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    return content


def _run(*command: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=240
    )


def _committed() -> list[str]:
    """Files that git tracks or would track; without git (an unpacked archive), none."""
    listing = _run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listing.returncode != 0:
        pytest.skip("not a git repository, so there is no list of committed files")
    return [name for name in listing.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def test_no_file_makes_a_source_folder_hide_the_others() -> None:
    assert [str(init) for name in SOURCE_FOLDERS for init in (REPOSITORY / name).glob("ocdserve/__init__.py*")] == []
    assert {"backend", "cli", "client", "contract"} <= {package.name for package in _packages()}


def test_no_source_folder_is_missing_from_the_configuration() -> None:
    # charts/ocdserve holds no Python.
    found = {file.parents[2].name for file in REPOSITORY.glob("*/ocdserve/*/*.py")}
    tool = _pyproject()["tool"]
    hatch = tool["hatch"]["build"]

    assert found == set(SOURCE_FOLDERS)
    assert hatch["dev-mode-dirs"] == list(SOURCE_FOLDERS)
    assert hatch["targets"]["wheel"]["sources"] == {
        "model_repository": "ocdserve/backend/model_repository",
        **{f"{name}/ocdserve": "ocdserve" for name in SOURCE_FOLDERS},
    }
    # The CUDA emulator is imported by a study of perf/.
    assert tool["mypy"]["mypy_path"] == [*SOURCE_FOLDERS, "tests/emulator"]
    assert tool["mypy"]["files"] == [f"{name}/ocdserve" for name in SOURCE_FOLDERS]
    assert tool["pyright"]["extraPaths"] == [*SOURCE_FOLDERS, "tests/emulator"]


def test_every_package_tells_type_checkers_that_it_is_typed() -> None:
    assert [str(package) for package in _packages() if not (package / "py.typed").is_file()] == []


def test_no_two_source_folders_hold_a_package_of_the_same_name() -> None:
    names = [package.name for package in _packages()]

    assert sorted(set(names)) == sorted(names)


def test_mypy_finds_a_type_error_in_each_source_folder(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes((REPOSITORY / "pyproject.toml").read_bytes())
    for name in SOURCE_FOLDERS:
        package = tmp_path / name / "ocdserve" / f"of_{name}"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "planted.py").write_text("planted: int = 'not a number'\n", encoding="utf-8")

    report = _run(sys.executable, "-m", "mypy", "--no-color-output", cwd=tmp_path)

    found = re.findall(r"^(.+): error: .* \[assignment\]$", report.stdout, re.MULTILINE)
    assert sorted(found) == [f"{name}/ocdserve/of_{name}/planted.py:1" for name in SOURCE_FOLDERS]


def test_mypy_checks_every_file() -> None:
    files = [file for folder in _namespaces() for file in folder.rglob("*.py")]

    report = _run(sys.executable, "-m", "mypy", "--no-color-output")

    assert re.search(rf"\b{len(files)} source files", report.stdout), report.stdout + report.stderr


@pytest.mark.parametrize(
    "module", ["ocdserve.contract", "ocdserve.results", "ocdserve.client", "ocdserve.client.adapters", "ocdserve.cli"]
)
def test_the_base_installation_imports_without_any_server_package(module: str) -> None:
    program = (
        f"import sys\n"
        f"heavy = {HEAVY!r}\n"
        f"sys.modules.update(dict.fromkeys(heavy))\n"  # None makes `import` raise ModuleNotFoundError
        f"import {module}\n"
        f"assert not any(sys.modules[name] for name in heavy)\n"
        f"assert 'ocdserve.backend' not in sys.modules, 'the server side was imported'\n"
    )

    result = _run(sys.executable, "-W", "error", "-c", program)

    assert result.returncode == 0, result.stderr


def test_the_command_line_is_installed() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="ocdserve")

    assert script.value == "ocdserve.cli:main"
    assert callable(script.load())


def _wheel(folder: Path, **environment: str) -> Path:
    """The wheel of this repository, built into a folder."""
    command = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    built = _run(*command, **environment)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_without_a_compiler_the_wheel_is_for_any_platform_and_a_warning_says_what_is_missing(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))

    built = _run(*command, CXX="/nowhere/c++")

    assert built.returncode == 0, built.stdout + built.stderr
    assert "post-processing stays with NumPy, which is slower: the compiler /nowhere/c++ does not work" in built.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["ocdserve-0.2.0-py3-none-any.whl"]
    assert [name for name in zipfile.ZipFile(*tmp_path.iterdir()).namelist() if name.endswith(".so")] == []


def test_with_a_compiler_the_wheel_is_for_this_platform_and_its_library_is_used(tmp_path: Path) -> None:
    try:
        find_compiler()
    except CompilationError as error:
        pytest.skip(str(error))
    wheel = _wheel(tmp_path)
    assert re.fullmatch(r"ocdserve-0\.2\.0-py3-none-(manylinux_2_\d\d|(?!linux)[a-z]+)_\w+\.whl", wheel.name), (
        wheel.name
    )
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    program = (
        "import ocdserve.backend.kernels.cpu.library as library\n"
        "assert 'unpacked' in library.__file__, library.__file__\n"
        "assert library.examine() is None, library.examine()\n"
    )

    result = _run(sys.executable, "-S", "-c", program, cwd=tmp_path, PYTHONPATH=_path_before_all(tmp_path / "unpacked"))

    assert result.returncode == 0, result.stderr


@pytest.mark.long
def test_a_release_has_cubins_for_every_gpu_in_a_reproducible_wheel_below_16_mb(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path / "first", OCDSERVE_CUBINS="1")
    assert wheel.read_bytes() == _wheel(tmp_path / "second", OCDSERVE_CUBINS="1").read_bytes()
    assert wheel.stat().st_size < 16_000_000
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    cubins = [file.read_bytes() for file in (tmp_path / "unpacked").rglob("gpu/cubins/*.cubin")]
    targets = [json.loads(cubin.partition(b"\n")[0])["target"] for cubin in cubins]
    assert {target: targets.count(target) for target in targets} == dict.fromkeys(
        ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121"), 4
    )
    program = (
        "from ocdserve.backend.kernels.gpu import nvrtc\n"
        "from ocdserve.backend.kernels.gpu.compile import architecture_of, compile_for\n"
        "nvrtc.load = None\n"
        "modules = [compile_for(f'{name}.cu', 'sm_90') for name in ('boxes', 'labels', 'order', 'preprocess')]\n"
        "assert all(module.kernels for module in modules), modules\n"
        "print(architecture_of(8, 9), architecture_of(12, 4))\n"
    )

    result = _run(sys.executable, "-S", "-c", program, cwd=tmp_path, PYTHONPATH=_path_before_all(tmp_path / "unpacked"))

    assert (result.stdout, result.stderr) == ("sm_89 sm_121\n", "")


def test_a_build_asks_for_the_locked_compiler_only_where_cubins_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hook = _hatch_build().CustomBuildHook(str(REPOSITORY), {}, None, None, "", "wheel")
    for value in (None, "", "0"):
        monkeypatch.delenv("OCDSERVE_CUBINS", raising=False)
        if value is not None:
            monkeypatch.setenv("OCDSERVE_CUBINS", value)
        assert hook.dependencies() == []
    monkeypatch.setenv("OCDSERVE_CUBINS", "1")

    numpy, *compiler = hook.dependencies()

    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    assert numpy == "numpy"
    assert [Requirement(line).name for line in compiler] == ["nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12"]
    assert all(f"\n{line} ;" in lock for line in compiler), compiler


def test_a_release_whose_cubins_cannot_be_made_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "python_backend" / "ocdserve" / "backend"
    for folder in (package, package / "kernels", package / "kernels" / "gpu", package / "kernels" / "cpu"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (package / "kernels" / "gpu" / "__main__.py").write_text("import sys; sys.exit('no NVRTC here')\n", "utf-8")
    (package / "kernels" / "cpu" / "compile.py").touch()
    monkeypatch.setenv("OCDSERVE_CUBINS", "1")
    hook = _hatch_build().CustomBuildHook(str(tmp_path), {}, None, None, "", "wheel")

    with pytest.raises(SystemExit, match="1"):
        hook.initialize("standard", {"force_include": {}})
    hook.finalize("standard", {}, "")

    assert "there are no cubins, which OCDSERVE_CUBINS asks for: no NVRTC here" in capsys.readouterr().err


def _path_before_all(folder: Path) -> str:
    """A PYTHONPATH of this folder and of all packages but the installed ocdserve, for a Python that reads no .pth."""
    return os.pathsep.join([str(folder), *(entry for entry in sys.path if entry.endswith("site-packages"))])


def test_the_wheel_holds_one_package_with_the_models_and_everything_typed(tmp_path: Path) -> None:
    wheel = zipfile.ZipFile(_wheel(tmp_path, CXX="/nowhere/c++", OCDSERVE_URL="https://host/us/ocdserve/"))
    names = wheel.namelist()

    assert {name.partition("/")[0] for name in names} == {"ocdserve", "ocdserve-0.2.0.dist-info"}
    metadata = wheel.read("ocdserve-0.2.0.dist-info/METADATA").decode("utf-8")
    head, _, readme = metadata.partition("\n\n")
    assert "Project-URL: Changelog, https://host/us/ocdserve/blob/v0.2.0/CHANGELOG.md\n" in head
    assert "Author: " in head and "Keywords: " in head and "Requires-Dist: aiohttp" in head
    targets = re.findall(r"\]\(([^)]*)\)", readme)
    assert "https://host/us/ocdserve/blob/v0.2.0/CONTRIBUTING.md" in targets
    assert [target for target in targets if not target.startswith("https://")] == []
    assert [name for name in names if "__pycache__" in name or name == "ocdserve/__init__.py"] == []
    modules = {
        file.relative_to(folder.parent).as_posix()
        for folder in _namespaces()
        for file in folder.rglob("*.py")
        if not {"gpu_check", "studies"} & {*file.parts}
    }
    assert modules == {
        name for name in names if name.endswith(".py") and not name.startswith("ocdserve/backend/model_repository/")
    }
    assert {f"ocdserve/{package.name}/py.typed" for package in _packages()} <= set(names)
    weights = [f"ocdserve/backend/weights/{name}" for name in ("fast", "lite")]
    files = ("detector.json", "manifest.json", "model.onnx", "report.json")
    assert {f"{folder}/{file}" for folder in weights for file in files} <= set(names)
    models = REPOSITORY / "model_repository"
    expected = {
        f"ocdserve/backend/model_repository/{file.relative_to(models).as_posix()}"
        for file in models.rglob("*")
        if file.is_file() and file.suffix not in (".plan", ".pyc")  # ignored by git, so by the wheel
    }
    assert expected
    assert expected == {name for name in names if name.startswith("ocdserve/backend/model_repository/")}


def _hatch_build() -> Any:
    specification = importlib.util.spec_from_file_location("hatch_build", REPOSITORY / "hatch_build.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_links_of_the_readme_lead_to_the_repository_or_are_left_out() -> None:
    text = (
        "[guide](docs/a.md) [below](#use\n) [below](#use) [web](https://x.org/y) ![plot](docs/p.png)\n"
        "[![badge](b.svg)](docs/c.md) [two\nlines](d.md)\n```sh\nf[0](x)\n```\n"
    )
    linked = _hatch_build().linked
    assert linked(text, "https://h/r", "v1.0") == (
        "[guide](https://h/r/blob/v1.0/docs/a.md) [below](#use\n) [below](https://h/r/blob/v1.0/README.md#use) "
        "[web](https://x.org/y) ![plot](https://h/r/raw/v1.0/docs/p.png)\n"
        "[![badge](https://h/r/raw/v1.0/b.svg)](https://h/r/blob/v1.0/docs/c.md) "
        "[two\nlines](https://h/r/blob/v1.0/d.md)\n```sh\nf[0](x)\n```\n"
    )
    assert linked(text, "", "v1.0") == (
        "guide [below](#use\n) below [web](https://x.org/y) plot\nbadge two\nlines\n```sh\nf[0](x)\n```\n"
    )


@pytest.mark.parametrize(
    ("strings", "platform", "tag"),
    [
        (("libm.so.6", "libc.so.6", "GLIBC_2.2.5"), "linux-x86_64", "manylinux_2_17_x86_64"),
        (("libc.so.6", "GLIBC_2.17", "GLIBC_2.34"), "linux-aarch64", "manylinux_2_34_aarch64"),
        (("libc.so.6", "libstdc++.so.6", "GLIBC_2.17"), "linux-x86_64", "linux_x86_64"),
        (("libc.musl-x86_64.so.1",), "linux-x86_64", "linux_x86_64"),
        (("libSystem.B.dylib",), "macosx-14.0-arm64", "macosx_14_0_arm64"),
    ],
)
def test_a_wheel_is_manylinux_if_its_library_needs_nothing_but_glibc(
    strings: tuple[str, ...], platform: str, tag: str
) -> None:
    library = b"\x7fELF\0" + b"".join(string.encode() + b"\0" for string in strings) + b"code\0"
    assert _hatch_build().platform_tag(library, platform) == tag


@pytest.mark.parametrize(
    ("extra", "package"),
    [
        ("", "aiohttp"),
        ("", "numpy"),
        ("", "tritonclient[grpc]"),
        ("images", "pillow"),
        ("images", "simplejpeg"),
        ("onnxtr", "onnxtr"),
        ("pdf", "pikepdf"),
        ("pdf", "pypdfium2"),
        ("rapidocr", "rapidocr"),
        ("tables", "pyarrow"),
        ("models", "numpy"),
        ("server", "nvidia-pytriton"),
        ("models", "onnx"),
        ("models", "opencv-python-headless"),
        ("models", "pyclipper"),
        ("models", "rapidocr"),
        ("models", "shapely"),
        ("models", "simplejpeg"),
        ("gpu", "cuda-bindings"),
        ("gpu", "nvidia-cuda-nvrtc-cu12"),
        ("gpu", "nvidia-cuda-runtime-cu12"),
        ("gpu", "pycuda"),
        ("gpu", "tensorrt"),
        ("gpu", "tritonclient[all]"),
        ("gpu-jpeg", "nvidia-nvimgcodec-cu12"),
        ("gpu-jpeg", "nvidia-nvjpeg-cu12"),
        ("builder", "polygraphy"),
        ("perf", "locust"),
        ("perf", "tritonclient[all]"),
        ("docs", "mkdocs-material"),
        ("docs", "mkdocstrings[python]"),
        ("dev", "nvidia-cuda-nvrtc-cu12"),
        ("dev", "nvidia-cuda-runtime-cu12"),
    ],
)
def test_each_extra_names_its_packages_with_a_lower_and_an_upper_bound(extra: str, package: str) -> None:
    project = _pyproject()["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    wanted = Requirement(package)

    (found,) = [line for line in map(Requirement, lines) if line.name == wanted.name]

    assert wanted.extras <= found.extras
    assert extra or "http" not in found.extras  # gevent and more, for a client that ours does not use
    operators = {specifier.operator for specifier in found.specifier}
    assert operators == {"~="} or operators == {">=", "<"}


def test_every_message_that_names_an_extra_names_one_that_exists_and_the_way_of_a_source_tree() -> None:
    extras = _pyproject()["project"]["optional-dependencies"].keys()
    sources = {file: file.read_text("utf-8") for folder in _namespaces() for file in folder.rglob("*.py")}
    named = {extra for text in sources.values() for extra in re.findall(r"ocdserve\[([a-z-]+)\]", text)}
    assert {"images", "server", "tables"} <= named <= extras
    # Docstrings, and commands for the Python of another installation, say it in their own words.
    written = {file.name for file, text in sources.items() if "pip install 'ocdserve[" in text}
    assert written <= {
        "__init__.py",
        "_detector.py",
        "_install.py",
        "detector.py",
        "publish.py",
        "rapidocr.py",
        "runtime_dir.py",
    }
    assert install_command("onnxruntime-gpu[cuda]") == "`pip install 'onnxruntime-gpu[cuda]'`"


@pytest.mark.parametrize(
    ("name", "reason"), [("", "name an extra: make extra NAME=tables"), ("tables,nosuch", "there is no extra nosuch")]
)
def test_make_refuses_an_unknown_extra_before_anything_is_installed(name: str, reason: str) -> None:
    done = _run("make", "extra", f"NAME={name}")

    assert done.returncode == 2
    assert f"ocdserve: {reason}; there are images " in done.stderr


def test_no_committed_file_names_a_folder_of_one_machine_or_a_package_registry() -> None:
    # Spelled in pieces, because this file is committed as well.
    folders = "|".join(["root", "work", "tmp/w", r"home/\w+", r"Users/\w+"])
    hosts = "|".join([r"pypi\.o" + "rg", r"pythonho" + r"sted\.org", r"registry\.npm" + r"js\.org"])
    forbidden = re.compile(rf"(?<![\w.${{}}<>-])/(?:{folders})(?![\w-])|{hosts}")

    offences = []
    for name in _committed():
        try:
            text = (REPOSITORY / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        offences += [
            f"{name}:{number}: {line.strip()[:120]}"
            for number, line in enumerate(text.splitlines(), start=1)
            if forbidden.search(line)
        ]

    assert offences == []


def _find_python(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the search for an interpreter on a machine whose PATH is `path` and the system's own tools."""
    return subprocess.run(
        ["/bin/bash", str(REPOSITORY / "scripts" / "find_python.sh")],
        env={"PATH": str(path), "HOME": str(path), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def bare_machine(tmp_path: Path) -> Path:
    """A PATH with no more than what the search itself needs: no Python, and a uv that can fetch nothing."""
    for tool in ("dirname", "sort"):
        (tmp_path / tool).symlink_to(Path("/usr/bin") / tool)
    _program(tmp_path / "uv", 'test "$1" = --version')
    return tmp_path


_THIS_PYTHON = f'exec "{sys.executable}" "$@"'
_TOO_NEW = f"""exec "{sys.executable}" -c "import sys; sys.version_info = (3, 13, 0); exec(sys.argv[1])" "$2\""""
_DEAD_SHIM = "exit 127"  # pyenv's, with no version selected


@pytest.mark.parametrize("name", ["python3", "python3.11", ".pyenv/versions/3.11.9/bin/python3"])
def test_the_search_passes_over_a_new_python_and_a_dead_shim(bare_machine: Path, name: str) -> None:
    _program(bare_machine / "python3", _TOO_NEW)
    _program(bare_machine / "python3.12", _DEAD_SHIM)
    _program(bare_machine / name, _THIS_PYTHON)

    found = _find_python(bare_machine)

    assert (found.returncode, found.stdout, found.stderr) == (0, f"{sys.executable}\n", "")


@pytest.mark.parametrize(
    ("python", "advice"),
    [
        (_TOO_NEW, "the server needs Python 3.10, 3.11 or 3.12"),
        (_DEAD_SHIM, "apt install python3.12-venv libpython3.12"),
        (
            "echo 3.11 /opt/py; exit 4",
            "/opt/py lacks Python's venv: install it (Debian, Ubuntu: apt install python3.11-venv)",
        ),
        ("echo 3.11 /opt/py; exit 5", "/opt/py lacks the shared library libpython3.11.so.1.0 that the server embeds"),
    ],
    ids=["too new", "dead shim", "no venv", "no shared library"],
)
def test_a_search_in_vain_says_in_one_sentence_what_to_install(bare_machine: Path, python: str, advice: str) -> None:
    _program(bare_machine / "python3", python)

    found = _find_python(bare_machine)

    assert (found.returncode, found.stdout) == (1, "")
    assert advice in found.stderr.splitlines()[-1]
    assert found.stderr.endswith(", or set PYTHON=/path/to/python, and run make again.\n")


def test_the_search_takes_the_python_that_uv_fetched(bare_machine: Path) -> None:
    _program(bare_machine / "fetched", _THIS_PYTHON)
    _program(
        bare_machine / "uv",
        f'case "$1 $2" in --version*) ;; "python install") echo "$UV_PYTHON_INSTALL_DIR" >"{bare_machine}/log" ;;\n'
        f'"python find") test -s "{bare_machine}/log" && echo "{bare_machine}/fetched" ;; esac',
    )

    found = _find_python(bare_machine)

    assert (found.returncode, found.stdout) == (0, f"{sys.executable}\n"), found.stderr
    assert (bare_machine / "log").read_text(encoding="utf-8") == f"{REPOSITORY}/.tools/python\n"
