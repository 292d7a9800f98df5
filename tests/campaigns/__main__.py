# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.campaigns NAME`: run a campaign against a real server, print what it found, exit with 1 if a rule
does not hold."""

import argparse
import importlib
import sys
from pathlib import Path

from ocdserve.perf.load.served import sigterm_interrupts
from tests.campaigns.report import Report

# A module of this folder each, with `add_arguments(parser)` and `run(args, report)`.
CAMPAIGNS = (
    "attacks",
    "batch_ray",
    "chaos",
    "deploy",
    "fuzz",
    "overload",
    "reload",
    "soak",
)


def main(arguments: list[str]) -> int:
    """Run the campaign that the arguments name; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name in CAMPAIGNS:
        module = importlib.import_module(f"tests.campaigns.{name}")
        text = module.__doc__ or ""
        summary = text.partition("\n\n")[0]
        command = names.add_parser(name, help=summary.replace("%", "%%"), description=text.replace("%", "%%"))
        command.add_argument("--short", action="store_true", help="a form of seconds instead of minutes")
        command.add_argument("--output", type=Path, metavar="DIR", help="also write campaign-NAME-DATE.md there")
        module.add_arguments(command)
        command.set_defaults(run=module.run, summary=summary)
    args = parser.parse_args(arguments)
    report = Report(args.name, args.summary, " ".join(arguments))
    with sigterm_interrupts():
        args.run(args, report)
    print(report.text())
    if args.output is not None:
        print(f"written: {report.write(args.output)}")
    return 0 if report.held else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
