# SPDX-License-Identifier: Apache-2.0
"""The command `ocdserve bench`: measure sections, one after the other; it also has subcommands.

Its sections are declared in `ocdserve.perf.sections`; a command is a module as described in `ocdserve.cli`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ocdserve.cli import Command
from ocdserve.cli.completion import completes
from ocdserve.contract import UsageError, did_you_mean
from ocdserve.perf.sections import SECTIONS, Section
from ocdserve.perf.sections.plan import Plan, check_target, load_data_sets, write

_FOLDER = "ocdserve.perf.commands"

COMMANDS: tuple[Command, ...] = (
    Command("quick", "what this processor gives with each built-in detector, in 10 seconds", f"{_FOLDER}.quick"),
    Command("load", "a server under load: scenarios, three drivers, memory", f"{_FOLDER}.load"),
    Command("capacity", "what this machine can serve, and the best tuning for it", f"{_FOLDER}.capacity"),
    Command("report", "results as one HTML page with plots, or as Markdown", f"{_FOLDER}.report", extra="perf"),
    Command("compare", "whether one run is faster than another, and whether significantly", f"{_FOLDER}.compare"),
    Command("guard", "instructions, calls and memory of the hot loops against their budgets", f"{_FOLDER}.guard"),
    Command("analyzer", "NVIDIA's perf_analyzer (fetched the first time) against a server", f"{_FOLDER}.analyzer"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = _description()
    sections = parser.add_argument("sections", nargs="*", metavar="SECTION", help="what to measure, see above")
    completes(sections, [*(row.name for row in SECTIONS), *(row.name for row in COMMANDS)])
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        nargs="+",
        action="extend",
        help="data sets (img/ and gt/), or folders of data sets (default: drawn pictures)",
    )
    parser.add_argument("--rounds", metavar="N", type=int, default=1, help="measure N times as much (default: 1)")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="also write raw samples to this new file, for compare and report; - for stdout, instead of the tables",
    )
    for section in SECTIONS:
        if section.options:
            group = parser.add_argument_group(f"only for the section {section.name}")
            for flag, settings in section.options.items():
                group.add_argument(flag, **settings)


def run(args: argparse.Namespace) -> int:
    """Measure the sections and show tables.

    Raises:
        UsageError: Arguments contradict each other.
        OcdserveError: A section failed, or implementations that must agree do not.
    """
    sections = sections_of(args.sections)
    for section in SECTIONS:
        given = _given(section, args)
        if given and section not in sections:
            raise UsageError(f"{given[0]} goes only with the section {section.name}; name it, or leave the option out")
    if args.rounds < 1:
        raise UsageError(f"--rounds must be at least 1; got {args.rounds}")
    return _measure(sections, args)


def sections_of(names: Sequence[str]) -> tuple[Section, ...]:
    """The sections to measure, in the order of the registry; the default ones if none is named.

    Raises:
        UsageError: A name is unknown, or that of a command.
    """
    known = [section.name for section in SECTIONS]
    for name in names:
        if name in [command.name for command in COMMANDS]:
            raise UsageError(f"{name} is a command, not a section; it comes first: ocdserve bench {name} --help")
        if name not in known:
            near = did_you_mean(name, [*known, *(command.name for command in COMMANDS)])
            raise UsageError(f"unknown section {name!r}; known are {', '.join(known)}{near}")
    return tuple(section for section in SECTIONS if (section.name in names if names else section.by_default))


def _measure(sections: Sequence[Section], args: argparse.Namespace) -> int:
    from ocdserve.perf.report import text
    from ocdserve.perf.series.environment import Environment
    from ocdserve.perf.series.results import Results, to_json

    to_stdout = args.json == "-"
    target = None if to_stdout else args.json
    check_target(target)
    environment = Environment.current()
    plan = Plan(load_data_sets(args.data), args.rounds, args)
    measurements = [measurement for section in sections for measurement in section.module().measure(plan)]
    results = Results.now(environment, tuple(measurements), _command(args, sections))
    print(json.dumps(to_json(results)) if to_stdout else text.text(results))
    write(target, results)
    return 0


def _given(section: Section, args: argparse.Namespace) -> list[str]:
    """Words of the section's own options whose values are not the default."""
    words = []
    for flag, settings in section.options.items():
        value = getattr(args, flag.removeprefix("--").replace("-", "_"))
        if value != settings.get("default", False if "action" in settings else None):
            words += [flag] if value is True else [flag, str(value)]
    return words


def _command(args: argparse.Namespace, sections: Sequence[Section]) -> str:
    """The command line to measure the same again, without paths of this machine."""
    words = ["bench", *(section.name for section in sections)]
    if args.data:
        words += ["--data", *(folder.resolve().name for folder in args.data)]
    if args.rounds != 1:
        words += ["--rounds", str(args.rounds)]
    return " ".join([*words, *(word for section in sections for word in _given(section, args))])


def _description() -> str:
    rows = [(row.name, row.help) for row in SECTIONS], [(row.name, row.help) for row in COMMANDS]
    width = max(len(name) for table in rows for name, _ in table)
    sections, commands = ("\n".join(f"  {name:{width}}  {text}" for name, text in table) for table in rows)
    defaults = " ".join(section.name for section in SECTIONS if section.by_default)
    return (
        "Measure speed, compared with competitors and baselines.\n\n"
        f"sections (default: {defaults}):\n{sections}\n\n"
        f"commands (`ocdserve bench COMMAND --help` describes one):\n{commands}\n\n"
        "Compared subjects are measured in alternation, so a busy machine changes the times more than the ratios."
    )
