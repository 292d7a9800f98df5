# SPDX-License-Identifier: Apache-2.0
"""Check instructions, calls and memory of the hot loops against their budgets, independently of the machine's load.

Instructions need Valgrind. Exit code 1 if a budget is exceeded.
"""

import argparse

from ocdserve.perf.sections.plan import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Count, and print one line per figure."""
    from ocdserve.perf.counting.guard import counted_checks, instruction_checks
    from ocdserve.perf.counting.instructions import why_not

    checks = [*counted_checks()]
    reason = why_not("callgrind")
    if reason is None:
        checks += instruction_checks()
    else:
        say(f"instructions are not counted: valgrind: {reason}")
    for check in checks:
        print(check)
    return 0 if all(check.is_met for check in checks) else 1
