# SPDX-License-Identifier: Apache-2.0
"""The `ocdnet` command in the form of NVIDIA TAO's launcher: `ocdserve tao deploy ocdnet ACTION -e spec.yaml ...`.

Trains, builds engines, evaluates and runs OCDNet from TAO's specs; `ocdnet --help` lists the actions.
"""

import argparse
import sys
from collections.abc import Sequence

from ocdserve.contract import UsageError, install_command

_EXTRA = "builder"
_DONE, _FAILED, _INTERRUPTED = 0, 1, 130

# For the help where the builder, which declares them, is not installed.
OCDNET_COMMANDS = (
    *("gen_trt_engine", "evaluate", "inference", "default_specs"),
    *("train", "retrain", "export", "prune", "quantize", "automl"),
    *("schema", "resolve", "import-nvocdr"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="deploy|model ocdnet ACTION ...")


def run(args: argparse.Namespace) -> int:
    """Pass the rest of the command line to `ocdnet`."""
    words: list[str] = args.words
    if words[:2] not in (["deploy", "ocdnet"], ["model", "ocdnet"]):
        raise UsageError(
            f"`tao {' '.join(words[:2])}` is not supported: run `ocdserve tao deploy ocdnet ACTION -e spec.yaml`, or "
            "`ocdserve tao model ocdnet ACTION -e spec.yaml` for training; both have every action"
        )
    from ocdserve.builder.tao.cli import main as ocdnet

    return ocdnet(words[2:])


def main(argv: Sequence[str] | None = None) -> int:
    """The console script `ocdnet`; if the builder is not installed, it names the extra to install."""
    try:
        from ocdserve.builder.tao.cli import main as ocdnet
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "ocdserve"):
            raise
        needs = f"needs {install_command(f'ocdserve[{_EXTRA}]')}: the package {package!r} is not installed"
        if (sys.argv[1:] if argv is None else list(argv)) in (["-h"], ["--help"]):
            print(f"usage: ocdnet COMMAND ...\n\nTAO's commands: {', '.join(OCDNET_COMMANDS)}.\nEach {needs}.")
            return _DONE
        print(f"ocdnet: {needs}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    return ocdnet(argv)
