# SPDX-License-Identifier: Apache-2.0
"""Report whether one run was faster than another, series by series, and whether that is significant.

Runs on different machines or with different package versions are refused. On a shared machine every series varies with
its load: a --yardstick that was measured in alternation with the others cancels that out. One in twenty series that
did not change is called significant by chance.

Exit code 0; 1 with --fail-if-slower if a series is significantly worse; 2 for bad usage.
"""

import argparse
import math
from pathlib import Path

from ocdserve.contract import UsageError
from ocdserve.perf.report.compare import compare, comparison_text
from ocdserve.perf.sections.plan import say
from ocdserve.perf.series.results import load_results

_STATISTICS = {"median": 0.5, "p95": 0.95, "p99": 0.99}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("before", metavar="A.json", type=Path, help="results of `ocdserve bench --json`")
    parser.add_argument("after", metavar="B.json", type=Path, help="results to compare with those")
    parser.add_argument(
        "--statistic", choices=_STATISTICS, default="median", help="what to compare (default: %(default)s)"
    )
    parser.add_argument(
        "--yardstick", metavar="SUBJECT", help="divide every sample by that of this subject in the same run and case"
    )
    parser.add_argument("--anyway", action="store_true", help="compare runs of different machines or versions")
    parser.add_argument(
        "--fail-if-slower",
        metavar="FRACTION",
        type=float,
        nargs="?",
        const=0.0,
        help="exit with 1 if a series is significantly worse, by more than FRACTION (such as 0.05) if given",
    )


def run(args: argparse.Namespace) -> int:
    """Compare, and print one line per series."""
    limit = args.fail_if_slower
    if limit is not None and not (math.isfinite(limit) and limit >= 0):
        raise UsageError(f"--fail-if-slower must be a fraction from 0 up, such as 0.05; got {limit}")
    before, after = load_results(args.before), load_results(args.after)
    comparison = compare(
        before, after, fraction=_STATISTICS[args.statistic], yardstick=args.yardstick, anyway=args.anyway
    )
    for notice in comparison.notices:
        say(f"notice: {notice}")
    print(comparison_text(comparison, args.statistic))
    return 1 if limit is not None and comparison.worse(limit) else 0
