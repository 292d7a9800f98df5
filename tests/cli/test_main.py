# SPDX-License-Identifier: Apache-2.0
import json
import os
import platform
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy
import pytest

from ocdserve import cli
from ocdserve.cli import Command, main
from ocdserve.contract import InvalidInputError, UsageError

Install = Callable[[Callable[[Namespace], int]], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Register a command `probe` with one option, which runs the given function."""

    def put(run: Callable[[Namespace], int]) -> None:
        module = ModuleType("ocdserve_probe", "Probe something.")

        def add_arguments(parser: ArgumentParser) -> None:
            parser.add_argument("--level", type=int, default=1)

        vars(module).update(run=run, add_arguments=add_arguments)
        monkeypatch.setitem(sys.modules, "ocdserve_probe", module)
        monkeypatch.setattr(cli, "COMMANDS", (Command("probe", "probe something", "ocdserve_probe", extra="perf"),))

    return put


def test_help_lists_every_command_and_imports_no_heavy_package() -> None:
    code = (
        "import sys\n"
        "from ocdserve.cli import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = ('tritonclient', 'grpc', 'gevent', 'PIL', 'cv2', 'openvino', 'onnxruntime', 'ocdserve.client',"
        " 'ocdserve.backend')\n"
        "print('imported:', [name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed = [line.split()[0] for line in done.stdout.partition("commands:\n")[2].splitlines() if line[:2] == "  "]
    assert listed == [
        "serve",
        "reload",
        "health",
        "detect",
        "read",
        "batch",
        "publish",
        "build",
        "finetune",
        "evaluate",
        "tao",
        "bench",
        "doctor",
        "play",
        "demo",
    ]
    assert done.stdout.endswith("imported: []\n")


@pytest.mark.parametrize("module", ["ocdserve", "ocdserve.cli"])
def test_the_package_runs_as_a_module(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "detect", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ocdserve detect ")
    assert "--unclip-ratio" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["detekt"], ["--colour"]])
def test_a_missing_or_unknown_command_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "usage: ocdserve" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["prob"], "ocdserve: error: unknown command 'prob'; did you mean probe?\n"),
        (["xyz"], "ocdserve: error: unknown command 'xyz'; known are probe\n"),
        (["probe", "--levle", "1"], "; did you mean --level?\n"),
        (["probe", "--levle=1"], "; did you mean --level?\n"),
        (["probe", "-dash.jpg"], "; a file whose name starts with - comes after --: -- -dash.jpg\n"),
        (["probe", "-none.jpg"], "; a file whose name starts with - comes after --: -- -none.jpg\n"),
        (["probe", "--", "--levle"], "--levle\n"),
        (["probe", "--xyzxyz"], "unrecognized arguments: --xyzxyz\n"),
        (["probe", "-qv", "extra"], "unrecognized arguments: extra\n"),
    ],
)
def test_a_misspelt_word_is_reported_in_two_lines_with_the_one_that_was_probably_meant(
    arguments: list[str],
    hint: str,
    install: Install,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-dash.jpg").touch()
    install(lambda args: 0)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 2


def test_version_names_python_and_the_packages_that_matter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ocdserve ")
    assert f"(Python {platform.python_version()}, numpy {numpy.__version__}" in out


def test_help_is_also_a_word(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(lambda args: 0)
    assert main(["help"]) == 0
    assert "probe something" in capsys.readouterr().out
    assert main(["help", "probe"]) == 0
    assert "--level" in capsys.readouterr().out


def test_quiet_drops_the_output_and_verbose_shows_where_an_error_comes_from(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Namespace) -> int:
        print("a table")
        if args.level == 2:
            raise InvalidInputError("no such level")
        return 0

    install(run)
    assert main(["probe", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["probe", "-q", "--level", "2"]) == 1
    assert capsys.readouterr().err == "ocdserve probe: no such level\n"
    assert main(["probe", "-v", "--level", "2"]) == 1
    assert 'raise InvalidInputError("no such level")' in capsys.readouterr().err


@pytest.mark.parametrize(("options", "shown"), [([], False), (["-v"], True)])
def test_warnings_of_libraries_are_shown_by_verbose_only(options: list[str], shown: bool) -> None:
    code = (
        "import sys, types, warnings\n"
        "from ocdserve import cli\n"
        "def run(args):\n"
        "    warnings.warn('of a library', RuntimeWarning)\n"
        "    return 0\n"
        "sys.modules['probe'] = types.SimpleNamespace(run=run, add_arguments=lambda parser: None)\n"
        "cli.COMMANDS = (cli.Command('probe', '', 'probe'),)\n"
        "sys.exit(cli.main(['probe', *sys.argv[1:]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert ("RuntimeWarning: of a library" in done.stderr) is shown
    assert shown or done.stderr == ""


def test_the_command_receives_its_arguments_and_returns_the_exit_code(install: Install) -> None:
    install(lambda args: int(args.level))
    assert main(["probe"]) == 1
    assert main(["probe", "--level", "0"]) == 0


def test_an_invalid_argument_of_a_command_is_a_usage_error(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(lambda args: 0)
    assert main(["probe", "--level", "high"]) == 2
    assert "ocdserve probe: error: argument --level: invalid int value: 'high'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InvalidInputError("the bundle\n is broken"), 1, "ocdserve probe: the bundle is broken\n"),
        (UsageError("leave out --model"), 2, "ocdserve probe: leave out --model\n"),
        (InvalidInputError("level must be 1; got 2"), 1, "ocdserve probe: --level must be 1; got 2\n"),
        (InvalidInputError("colour must be red"), 1, "ocdserve probe: colour must be red\n"),
        (
            ModuleNotFoundError("No module named 'locust.env'", name="locust.env"),
            1,
            "ocdserve probe: needs `pip install 'ocdserve[perf]'` (in a source tree: `make extra NAME=perf`): the "
            "package 'locust' is not installed\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device"), 1, "ocdserve probe: cannot read or write: No space left on device\n"),
        (
            OSError(30, "Read-only file system", "/a/b"),
            1,
            "ocdserve probe: cannot use '/a/b': Read-only file system\n",
        ),
    ],
)
def test_an_error_becomes_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: Namespace) -> int:
        raise error

    install(fail)
    assert main(["probe"]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["detect", "--bundle", "fsat", "x.png"],
            "or a built-in detector: default, fast, lite, default-fp32, fast-fp32, lite-fp32; did you mean fast?",
        ),
        (["detect", "--runtime", "openvno", "x.png"], "; got 'openvno'; did you mean openvino?"),
        (["publish", "--repository", "r", "--runtime", "onnxrutime"], "; did you mean onnxruntime?"),
        (["publish", "--repository", "r", "--runtime", "OpenVINO"], "; got 'OpenVINO'; did you mean openvino?"),
        (["bench", "SERVING"], "; did you mean serving?"),
        (["publish", "--repository", "r", "--network", "pyhton"], "; got 'pyhton'; did you mean python?"),
        (
            ["build", "--onnx", "defualt", "--output", "b"],
            "build: --onnx: there is no file 'defualt'; did you mean default?",
        ),
        (["build", "--onnx", "default", "--output", "b", "--preset", "ocdnt"], "; got 'ocdnt'; did you mean ocdnet?"),
        (["build", "--onnx", "default", "--output", "b", "--precision", "fp61"], "; did you mean fp16?"),
        (["build", "--onnx", "default", "--output", "b", "--calibration-method", "minmx"], "; did you mean minmax?"),
        (
            ["bench", "servng"],
            "; known are pipeline, reading, postprocess, stages, networks, serving, client, robustness; did you mean "
            "serving?",
        ),
        (["bench", "capacty"], "; did you mean capacity?"),
    ],
)
def test_a_misspelt_value_is_reported_with_the_one_that_was_probably_meant(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").touch()
    assert main(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert error.endswith(f"{line}\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["bench", "load", "--url", "nonsense"], "bench load: --url must be grpc://HOST:PORT or http://HOST:PORT"),
        (
            ["build", "--onnx", "default", "--output", "b", "--threads", "0"],
            "argument --threads: must be a whole number",
        ),
    ],
)
def test_a_value_out_of_its_range_is_reported_with_its_option(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) in (1, 2)
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("error", [ModuleNotFoundError("no", name="ocdserve.backend.missing"), ZeroDivisionError()])
def test_a_programming_error_is_not_hidden(error: Exception, install: Install) -> None:
    def fail(args: Namespace) -> int:
        raise error

    install(fail)
    with pytest.raises(type(error)):
        main(["probe"])


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    code = (
        "import sys, types\n"
        "from ocdserve import cli\n"
        "def run(args):\n"
        "    for _ in range(100000):\n"
        "        print('line', flush=True)\n"
        "    return 0\n"
        "sys.modules['probe'] = types.SimpleNamespace(run=run, add_arguments=lambda parser: None)\n"
        "cli.COMMANDS = (cli.Command('probe', '', 'probe'),)\n"
        "sys.exit(cli.main(['probe']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("flush", ["True", "False"])
def test_a_full_disk_behind_stdout_is_one_line(flush: str) -> None:
    code = (
        "import sys, types\n"
        "from ocdserve import cli\n"
        "def run(args):\n"
        f"    print('line', flush={flush})\n"
        "    return 0\n"
        "sys.modules['probe'] = types.SimpleNamespace(run=run, add_arguments=lambda parser: None)\n"
        "cli.COMMANDS = (cli.Command('probe', '', 'probe'),)\n"
        "sys.exit(cli.main(['probe']))\n"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.endswith(": No space left on device\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("interrupted", ["argparse", "ocdserve.contract", "ocdserve.cli.detect", "numpy"])
def test_ctrl_c_during_any_import_ends_quietly(interrupted: str) -> None:
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {interrupted!r}:\n"
        "            raise KeyboardInterrupt\n"
        "sys.modules.pop('argparse', None)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from ocdserve.cli import main\n"
        "sys.exit(main(['detect', 'none.png']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# Answers lines from stdin one by one, in a process of its own: argcomplete takes over file descriptors.
COMPLETING = """
import functools, io, json, os, sys
import argcomplete
from ocdserve.cli import main
def stop(code):
    raise SystemExit(code)
answer = argcomplete.autocomplete
os.environ["_ARGCOMPLETE"] = "1"
for line in sys.stdin.read().splitlines():
    written = io.StringIO()
    argcomplete.autocomplete = functools.partial(answer, exit_method=stop, output_stream=written)
    os.environ.update(COMP_LINE=line, COMP_POINT=str(len(line)))
    assert main([]) == 0
    print(json.dumps([word.strip() for word in written.getvalue().split("\\v")]))
"""


def test_the_shell_completes_commands_options_and_values(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete", reason="argcomplete is not installed")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.png").touch()
    expected = {
        "ocdserve de": ["demo", "detect"],
        "ocdserve detect --bundle fa": ["fast", "fast-fp32"],
        "ocdserve detect --bundle s": ["scans/"],
        "ocdserve detect --runtime op": ["openvino"],
        "ocdserve detect --model ocdnet": ["ocdnet", "ocdnet_fused"],
        "ocdserve detect --format c": ["coco", "csv"],
        "ocdserve detect --box": ["--box-thresh"],
        "ocdserve detect sc": ["scans/"],
        "ocdserve detect scans/": ["scans/a.png"],
        "ocdserve build --preset pp": ["ppocr", "ppocr-fast"],
        "ocdserve build --precision fp1": ["fp16"],
        "ocdserve serve --grpc-keepalive-t": ["--grpc-keepalive-time", "--grpc-keepalive-timeout"],
        "ocdserve serve --bundle de": ["default", "default-fp32"],
        "ocdserve bench ser": ["serving"],
        "ocdserve bench load --li": ["--list"],
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPLETING],
        input="\n".join(expected),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=60,
    )
    found = [sorted(json.loads(line)) for line in done.stdout.splitlines()]
    assert dict(zip(expected, found, strict=True)) == expected


def test_bash_completes_what_the_documented_line_registers(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete", reason="argcomplete is not installed")
    scripts = Path(sys.executable).parent
    if not (scripts / "ocdserve").exists():
        pytest.skip("the console script is not installed")
    code = (
        'eval "$(register-python-argcomplete ocdserve)"\n'
        'COMP_LINE="ocdserve dem"; COMP_POINT=${#COMP_LINE}; COMP_WORDS=(ocdserve dem); COMP_CWORD=1; COMP_TYPE=9\n'
        "_python_argcomplete ocdserve dem ocdserve\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=60, cwd=tmp_path
    )
    assert (done.stdout.strip(), done.stderr) == ("demo", "")
