# SPDX-License-Identifier: Apache-2.0
"""The `ocdserve` command: dispatches to a sub-command, imports only that one, maps errors to exit codes.

A command is a module with `add_arguments(parser)` and `run(args) -> int`; its docstring is its description. It may have
sub-commands of its own in `COMMANDS`.
Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module, metadata

from ocdserve.contract import OcdserveError, UsageError

__all__ = ["COMMANDS", "Command", "main", "one_line"]

_DONE, _FAILED, _BAD_USAGE, _INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Command:
    """One row of the registry.

    Attributes:
        name: What the user types.
        help: One line for `ocdserve --help`.
        module: The command's module; imported only when it is chosen.
        extra: The extra that installs the packages of the command.
    """

    name: str
    help: str
    module: str
    extra: str = "server"


COMMANDS: tuple[Command, ...] = (
    Command("serve", "start a Triton server that detects text", "ocdserve.cli.serve"),
    Command("detect", "detect text in images, in process or through a server", "ocdserve.cli.detect"),
    Command("publish", "write a Triton model repository", "ocdserve.cli.publish"),
    Command("build", "make a bundle from an exported ONNX network", "ocdserve.cli.build"),
    Command("evaluate", "measure precision, recall and hmean on labelled images", "ocdserve.cli.evaluate"),
    Command("tao", "NVIDIA TAO's command line: tao deploy ocdnet ...", "ocdserve.cli.tao", "builder"),
    Command("bench", "measure speed, compared with other detectors", "ocdserve.cli.bench"),
    Command("doctor", "show what this machine can run and what to install", "ocdserve.cli.doctor"),
    Command("play", "serve a page to try the detector on images", "ocdserve.cli.play"),
    Command("demo", "start a server, detect text over gRPC and HTTP, show the results", "ocdserve.cli.demo"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: Arguments without the program's name; None: those of this process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((command for command in COMMANDS if arguments[:1] == [command.name]), None)
    try:
        if command is None:
            parser = _top_parser()
            parser.parse_args(arguments)
            parser.error("name a command")
        return _run(command, arguments[1:])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else _FAILED if stop.code else _DONE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout is gone; without this, Python reports another error when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED


def _run(command: Command, arguments: Sequence[str]) -> int:
    try:
        module = import_module(command.module)
        for inner in getattr(module, "COMMANDS", ()):
            if arguments[:1] == [inner.name]:
                return _run(replace(inner, name=f"{command.name} {inner.name}"), arguments[1:])
        parser = argparse.ArgumentParser(
            prog=f"ocdserve {command.name}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(arguments)))
    except UsageError as error:
        return _report(command, one_line(error), _BAD_USAGE)
    except OcdserveError as error:
        return _report(command, one_line(error), _FAILED)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "ocdserve"):
            raise
        remedy = f"needs `pip install 'ocdserve[{command.extra}]'`"
        return _report(command, f"{remedy}: the package {package!r} is not installed", _FAILED)


def one_line(error: Exception) -> str:
    """The error's message without line breaks, for terminals and JSON."""
    return " ".join(str(error).split())


def _report(command: Command, message: str, code: int) -> int:
    print(f"ocdserve {command.name}: {message}", file=sys.stderr)
    return code


def _top_parser() -> argparse.ArgumentParser:
    """The parser for --help, --version and unknown commands."""
    width = max(len(command.name) for command in COMMANDS)
    listing = "\n".join(f"  {command.name:{width}}  {command.help}" for command in COMMANDS)
    parser = argparse.ArgumentParser(
        prog="ocdserve",
        description="Text detection on NVIDIA Triton.",
        epilog=f"commands:\n{listing}\n\n`ocdserve COMMAND --help` describes one command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ocdserve {_version()}")
    parser.add_argument("command", metavar="COMMAND", choices=[command.name for command in COMMANDS])
    return parser


def _version() -> str:
    try:
        return metadata.version("ocdserve")
    except metadata.PackageNotFoundError:
        return "(not installed)"
