# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from types import ModuleType

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
    assert listed == ["serve", "detect", "publish", "build", "evaluate", "tao", "bench", "doctor", "play", "demo"]
    assert done.stdout.endswith("imported: []\n")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ocdserve.cli", "detect", "--help"], capture_output=True, text=True, check=False
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


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ocdserve ")


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
        (
            ModuleNotFoundError("No module named 'locust.env'", name="locust.env"),
            1,
            "ocdserve probe: needs `pip install 'ocdserve[perf]'`: the package 'locust' is not installed\n",
        ),
        (KeyboardInterrupt(), 130, ""),
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
