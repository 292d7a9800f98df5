# SPDX-License-Identifier: Apache-2.0
"""The command `ocdserve bench`: sections that are measured one after the other, and commands of its own.

A section is a module with `measure(plan) -> measurements`; it may declare options of its own with
`add_arguments(parser)`. A command is a module as in `ocdserve.cli`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ocdserve.cli import Command
from ocdserve.cli.bench.plan import Plan, load_data_sets
from ocdserve.cli.bench.written import check_target, write
from ocdserve.contract import UsageError

__all__ = ["COMMANDS", "SECTIONS", "Section", "add_arguments", "run", "sections_of"]


@dataclass(frozen=True)
class Section:
    """One row of the registry of sections.

    Attributes:
        name: What the user types.
        help: What it measures, one line.
        by_default: Whether it is measured where no section is named.
    """

    name: str
    help: str
    by_default: bool = True

    def module(self) -> ModuleType:
        """Where `measure` is."""
        return import_module(f"{__name__}.{self.name}")

    def options(self) -> dict[str, Any]:
        """Defaults of its own options, by their name in the namespace."""
        parser = argparse.ArgumentParser()
        self.add_arguments(parser)
        return vars(parser.parse_args([]))

    def add_arguments(self, parser: "argparse._ActionsContainer") -> None:
        """Declare its own options, if it has any."""
        declare = getattr(self.module(), "add_arguments", None)
        if declare:
            declare(parser)


SECTIONS: tuple[Section, ...] = (
    Section("pipeline", "encoded image to boxes beside other detectors, on the same threads"),
    Section("postprocess", "post-processing beside that of others: pages of words, and real maps"),
    Section("stages", "where the time of one image goes: in process, on the GPU, in a server", by_default=False),
    Section("serving", "a server started for it beside the detector in this process, and many clients"),
    Section("client", "the SDK beside bare tritonclient and NVIDIA's perf_analyzer", by_default=False),
)

COMMANDS: tuple[Command, ...] = (
    Command("load", "a server under load: scenarios, three drivers, memory", f"{__name__}.load"),
    Command("capacity", "what this machine can serve, and how to set it up for that", f"{__name__}.capacity"),
    Command("report", "results as one HTML page with plots, or as Markdown", f"{__name__}.report", extra="perf"),
    Command(
        "compare", "whether one run is faster than another, and whether that is significant", f"{__name__}.compare"
    ),
    Command("guard", "instructions, calls and memory of the hot loops against their budgets", f"{__name__}.guard"),
    Command("analyzer", "NVIDIA's perf_analyzer (fetched the first time) against a server", f"{__name__}.analyzer"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = _description()
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="what to measure, see above")
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        nargs="+",
        action="extend",
        help="data sets (img/ and gt/), or folders of data sets (default: pictures that are drawn for it)",
    )
    parser.add_argument("--rounds", metavar="N", type=int, default=1, help="measure N times as much (default: 1)")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="also write raw samples to this new file, for compare and report; - for stdout, instead of the tables",
    )
    for section in SECTIONS:
        if section.options():
            section.add_arguments(parser.add_argument_group(f"only for the section {section.name}"))


def run(args: argparse.Namespace) -> int:
    """Measure the sections and show tables; an error, and exit code 1, where ways that must agree do not."""
    sections = sections_of(args.sections)
    for section in SECTIONS:
        given = [name for name, default in section.options().items() if getattr(args, name) != default]
        if given and section not in sections:
            option = given[0].replace("_", "-")
            raise UsageError(f"--{option} goes only with the section {section.name}; name it, or leave the option out")
    if args.rounds < 1:
        raise UsageError(f"--rounds must be at least 1; got {args.rounds}")
    return _measure(sections, args)


def sections_of(names: Sequence[str]) -> tuple[Section, ...]:
    """The sections to measure, in their fixed order; the default ones where none is named.

    Raises:
        UsageError: A name is unknown, or that of a command.
    """
    known = [section.name for section in SECTIONS]
    for name in names:
        if name in [command.name for command in COMMANDS]:
            raise UsageError(f"{name} is a command, not a section; it comes first: ocdserve bench {name} --help")
        if name not in known:
            raise UsageError(f"unknown section {name!r}; known are {', '.join(known)}")
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


def _command(args: argparse.Namespace, sections: Sequence[Section]) -> str:
    """The command line as it can be given again, without paths of this machine."""
    words = ["bench", *(section.name for section in sections)]
    if args.data:
        words += ["--data", *(folder.resolve().name for folder in args.data)]
    if args.rounds != 1:
        words += ["--rounds", str(args.rounds)]
    for section in sections:
        for name, default in section.options().items():
            if (value := getattr(args, name)) != default:
                words += [f"--{name.replace('_', '-')}", str(value)]
    return " ".join(words)


def _description() -> str:
    width = max(len(name) for name in (*(row.name for row in SECTIONS), *(row.name for row in COMMANDS)))
    sections = "\n".join(f"  {section.name:{width}}  {section.help}" for section in SECTIONS)
    commands = "\n".join(f"  {command.name:{width}}  {command.help}" for command in COMMANDS)
    defaults = " ".join(section.name for section in SECTIONS if section.by_default)
    return (
        "Measure speed, side by side with other ways to do the same.\n\n"
        f"sections (default: {defaults}):\n{sections}\n\n"
        f"commands (`ocdserve bench COMMAND --help` describes one):\n{commands}\n\n"
        "All that is compared is measured in turns, so a busy machine changes the times more than the ratios."
    )
