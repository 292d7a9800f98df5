# SPDX-License-Identifier: Apache-2.0
"""Completion of command lines in the shell, by argcomplete: `eval "$(register-python-argcomplete ocdserve)"`."""

import argparse
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from glob import escape, glob
from importlib import import_module
from typing import Any

from ocdserve.cli import COMMANDS, Command, Parser, add_common_arguments


def completes(action: argparse.Action, names: Iterable[str], *, folders: bool = False) -> None:
    """Let the shell complete an option's values.

    Args:
        action: The option or argument.
        names: Its values.
        folders: Whether it also takes folders.
    """
    known = list(names)

    def completer(prefix: str, **_: Any) -> list[str]:
        found = [f"{path}/" for path in glob(f"{escape(prefix)}*") if os.path.isdir(path)] if folders else []
        return [name for name in known if name.startswith(prefix)] + sorted(found)

    vars(action)["completer"] = completer


def complete() -> None:
    """Answer the shell, which describes the line in the environment, and end the process."""
    try:
        import argcomplete
        from argcomplete.lexers import split_line
    except ModuleNotFoundError:  # it was registered by another Python's
        raise SystemExit(1) from None
    words = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3]
    skipped = int(os.environ["_ARGCOMPLETE"])
    parser = Parser(prog="ocdserve")
    parser.add_argument("--version", action="store_true", help="show the versions of ocdserve and what it uses")
    _add_commands(parser, COMMANDS, words[skipped:])
    argcomplete.autocomplete(parser, always_complete_options=False)


def _add_commands(parser: argparse.ArgumentParser, commands: Sequence[Command], words: Sequence[str]) -> None:
    """Add all commands, and the arguments of the one that the words name; the others are not imported."""
    choices = parser.add_subparsers()
    for command in commands:
        inner = choices.add_parser(command.name, help=command.help)
        if words[:1] == [command.name]:
            # Without the command's extra there is nothing to complete.
            with suppress(ModuleNotFoundError):
                module = import_module(command.module)
                own: Sequence[Command] = getattr(module, "COMMANDS", ())
                if words[1:2] and words[1] in [command.name for command in own]:
                    _add_commands(inner, own, words[1:])
                else:
                    module.add_arguments(inner)
                    add_common_arguments(inner)
