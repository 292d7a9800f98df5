# SPDX-License-Identifier: Apache-2.0
# PYTHON_ARGCOMPLETE_OK
"""The `ocdserve` command: dispatches to a sub-command, imports only that one, maps errors to exit codes.

A command is a module with `add_arguments(parser)` and `run(args) -> int`; its docstring is its description. It may have
sub-commands of its own in `COMMANDS`.
Exit codes: 0 success, 1 failure, 2 usage error, 3 a server that keeps failing, 130 interrupted.
"""

try:
    import argparse
    import io
    import logging
    import os
    import platform
    import re
    import sys
    import traceback
    from collections.abc import Callable, Collection, Sequence
    from contextlib import ExitStack, redirect_stdout, suppress
    from dataclasses import dataclass, replace
    from importlib import import_module, metadata
    from pathlib import Path
    from typing import Any, NoReturn

    from ocdserve.contract import (
        InvalidInputError,
        OcdserveError,
        ReadingParameters,
        UsageError,
        did_you_mean,
        install_command,
        is_image,
    )
except KeyboardInterrupt:  # Ctrl-C while Python starts
    raise SystemExit(130) from None

__all__ = [
    "COMMANDS",
    "Command",
    "Parser",
    "add_common_arguments",
    "main",
    "one_line",
    "one_of",
    "parameter",
    "printable",
    "resolution",
    "whole_number",
]

_DONE, _FAILED, _BAD_USAGE, _INTERRUPTED = 0, 1, 2, 130

# Reported by --version where they are installed.
_PACKAGES = (
    "numpy",
    "tritonclient",
    "pillow",
    "onnxruntime",
    "openvino",
    "nvidia-pytriton",
    "tensorrt",
    "tensorrt-rtx",
)


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
    Command("reload", "replace the detector of a running server", "ocdserve.cli.serve.reload"),
    Command("health", "ask a server whether it is healthy, for probes", "ocdserve.cli.serve.health", "images"),
    Command("detect", "detect text in images, in process or through a server", "ocdserve.cli.detect"),
    Command("read", "read the text in images and PDF files, in process or through a server", "ocdserve.cli.read"),
    Command("batch", "detect text in any number of images; continues where it was interrupted", "ocdserve.cli.batch"),
    Command("publish", "write a Triton model repository", "ocdserve.cli.publish"),
    Command("build", "make a bundle from an exported ONNX network", "ocdserve.cli.build"),
    Command("finetune", "train a detector further on your own pictures", "ocdserve.cli.finetune", "train"),
    Command("evaluate", "measure precision, recall and hmean on labelled images", "ocdserve.cli.evaluate"),
    Command("tao", "NVIDIA TAO's command line: tao deploy ocdnet ...", "ocdserve.cli.tao", "builder"),
    Command("bench", "measure speed, compared with other detectors", "ocdserve.cli.bench"),
    Command("doctor", "show what this machine can run and what to install", "ocdserve.cli.doctor"),
    Command("play", "serve a page to try detecting and reading on images", "ocdserve.cli.play"),
    Command("demo", "start a server, read text over gRPC and HTTP, show the results", "ocdserve.cli.demo"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: Arguments without the program's name; None: those of this process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A file name that is no UTF-8 is printed with its bytes escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    try:
        if "_ARGCOMPLETE" in os.environ:  # the shell asks how the line can go on
            import_module("ocdserve.cli.completion").complete()
        code = _dispatch(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else _FAILED if stop.code else _DONE
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:
        code = _FAILED
    error = _flush_stdout()
    if error is not None and code == _DONE:
        if not isinstance(error, BrokenPipeError):
            print(f"ocdserve: cannot write the output: {error.strerror}", file=sys.stderr)
        code = _FAILED
    return code


def _dispatch(arguments: Sequence[str]) -> int:
    command = next((command for command in COMMANDS if arguments[:1] == [command.name]), None)
    if command is not None:
        return _run(command, arguments[1:])
    parser = _top_parser()
    if arguments and not arguments[0].startswith("-"):
        names = [command.name for command in COMMANDS]
        near = did_you_mean(arguments[0], names) or f"; known are {', '.join(names)}"
        parser.error(f"unknown command {arguments[0]!r}{near}")
    parser.parse_args(arguments)
    parser.error("name a command")


def _run(command: Command, arguments: Sequence[str]) -> int:
    verbose, options = 0, frozenset[str]()
    try:
        module = import_module(command.module)
        for inner in getattr(module, "COMMANDS", ()):
            if arguments[:1] == [inner.name]:
                return _run(replace(inner, name=f"{command.name} {inner.name}"), arguments[1:])
        parser = Parser(
            prog=f"ocdserve {command.name}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(parser)
        add_common_arguments(parser)
        options = frozenset(parser._option_string_actions)
        args = parser.parse_args(arguments)
        verbose = args.verbose
        with ExitStack() as stack:
            # Warnings of libraries are for developers: logged, so that --verbose shows them, and not printed.
            logging.captureWarnings(True)
            stack.callback(logging.captureWarnings, False)
            if verbose:
                logging.basicConfig(level=logging.INFO if verbose == 1 else logging.DEBUG)
            if args.quiet and not _results_on_stdout(args):
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))
                stack.enter_context(redirect_stdout(nowhere))
            return int(module.run(args))
    except UsageError as error:
        return _report(command, _with_option(one_line(error), options), _BAD_USAGE, verbose)
    except OcdserveError as error:
        return _report(command, _with_option(one_line(error), options), _FAILED, verbose)
    except BrokenPipeError:
        raise
    except OSError as error:
        about = f"cannot use {error.filename!r}" if error.filename else "cannot read or write"
        return _report(command, f"{about}: {error.strerror or one_line(error)}", _FAILED, verbose)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "ocdserve"):
            raise
        remedy = f"needs {install_command(f'ocdserve[{command.extra}]')}"
        return _report(command, f"{remedy}: the package {package!r} is not installed", _FAILED, verbose)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that every command has."""
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print only errors, and results for programs on stdout"
    )
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="log what libraries report (-vv: all); trace errors"
    )


def _results_on_stdout(args: argparse.Namespace) -> bool:
    """Whether the options ask for results in a format for programs on stdout."""
    given = vars(args)
    to_stdout = bool(given.get("format")) and not given.get("output")
    return to_stdout or "-" in (given.get("json"), given.get("output")) or given.get("json") is True


class Parser(argparse.ArgumentParser):
    """Reports a usage error in two lines, with the option that was probably meant."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; keeps the arguments for the hints of `error`."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with 2."""
        text = (
            f"{self.prog}: error: {message}{self._hint()}\nusage: {self.prog} ...; `{self.prog} --help` describes it\n"
        )
        self.exit(_BAD_USAGE, text)

    def _hint(self) -> str:
        options = list(self._option_string_actions)
        for word in self._given:
            name = word.partition("=")[0]
            if word == "--":
                break
            if not word.startswith("-") or word == "-" or re.fullmatch(r"-[\d.e-]+|-[hqv]+", word):
                continue
            if any(option.startswith(name) for option in options):
                continue
            if os.path.exists(word) or is_image(Path(word)):
                return f"; a file whose name starts with - comes after --: -- {word}"
            if near := did_you_mean(name, options):
                return near
        return ""


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A type for argparse: whole numbers within these bounds, inclusive."""

    def convert(text: str) -> int:
        number = int(text) if re.fullmatch(r"[+-]?\d+", text.strip()) else None
        if number is None or number < minimum or (maximum is not None and number > maximum):
            span = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"must be a whole number, {span}; got {text!r}")
        return number

    return convert


def one_of(known: Collection[str]) -> Callable[[str], str]:
    """A type for argparse: one of these names."""

    def convert(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(known)}; got {text!r}{did_you_mean(text, known)}"
            )
        return text

    return convert


def resolution(text: str) -> float:
    """A type for argparse: pixels per inch of PDF pages."""
    from ocdserve.results.pdf import check_dpi

    try:
        check_dpi(value := float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 2400; got {text!r}") from None
    return value


def parameter(name: str) -> Callable[[str], Any]:
    """A type for argparse: values of a request parameter."""

    def convert(text: str) -> Any:
        try:
            return getattr(ReadingParameters.parse({name: text}), name)
        except InvalidInputError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"request parameter {name!r} ")) from None

    return convert


def _flush_stdout() -> OSError | None:
    """Write what is buffered; after a failure the rest is dropped, else Python reports it again at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def one_line(error: Exception) -> str:
    """The error's message without line breaks and other control characters, for terminals and JSON."""
    return printable(" ".join(str(error).split()))


def printable(text: str) -> str:
    """Text with control characters escaped: of a file name, they would break lines or reach the terminal."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _with_option(message: str, options: Collection[str]) -> str:
    """The message with the option where it begins with a Python name: "queue_size must be", "onnx: there is"."""
    named = re.match(r"(\w+)(?= must | \([^()]*\) must |: )", message)
    option = f"--{named[1].replace('_', '-')}" if named else ""
    return f"{option}{message[named.end() :]}" if named and option in options else message


def _report(command: Command, message: str, code: int, verbose: int) -> int:
    if verbose:
        traceback.print_exc()
    print(f"ocdserve {command.name}: {message}", file=sys.stderr)
    return code


def _top_parser() -> Parser:
    """The parser for --help, --version and unknown commands."""
    width = max(len(command.name) for command in COMMANDS)
    listing = "\n".join(f"  {command.name:{width}}  {command.help}" for command in COMMANDS)
    parser = Parser(
        prog="ocdserve",
        description="Text detection on NVIDIA Triton.",
        epilog=f"commands:\n{listing}\n\n`ocdserve COMMAND --help` describes one command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_versions())
    parser.add_argument("command", metavar="COMMAND")
    return parser


def _versions() -> str:
    """The versions that a report of a fault needs, in one line."""
    found = []
    for package in ("ocdserve", *_PACKAGES):
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    if not found or not found[0].startswith("ocdserve "):
        found.insert(0, "ocdserve (not installed)")
    return f"{found[0]} (Python {platform.python_version()}, {', '.join(found[1:])})"
