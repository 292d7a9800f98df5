# SPDX-License-Identifier: Apache-2.0
"""Hold instructions, calls and memory of the hot loops against their budgets, which no busy machine changes.

Instructions need Valgrind. Exit code 1 where a budget is broken.
"""

import argparse

from ocdserve.cli.bench.plan import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Count, and print a line a figure."""
    from ocdserve.perf.counting.guard import counted_checks, instruction_checks, why_no_instructions

    checks = [*counted_checks()]
    reason = why_no_instructions()
    if reason is None:
        checks += instruction_checks()
    else:
        say(f"instructions are not counted: valgrind: {reason}")
    for check in checks:
        print(check)
    return 0 if all(check.is_kept for check in checks) else 1
