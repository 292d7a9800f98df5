# SPDX-License-Identifier: Apache-2.0
"""Show results as one self-contained HTML page with plots, or as Markdown; without either, as tables in the terminal.

The page is reproducible byte for byte. Several files, such as those of `bench`, `bench load` and `bench capacity`
on one machine, are shown together.
"""

import argparse
from pathlib import Path

from ocdserve.backend.files import write_atomically
from ocdserve.contract import InvalidInputError
from ocdserve.perf.report import text
from ocdserve.perf.sections.plan import say
from ocdserve.perf.series.results import load_results, merged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "results", metavar="RESULTS.json", type=Path, nargs="+", help="a file of `ocdserve bench --json`, or several"
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the page there")
    parser.add_argument("--markdown", metavar="FILE", help="write Markdown there; - for stdout")


def run(args: argparse.Namespace) -> int:
    """Write what was asked for."""
    results = merged([load_results(path) for path in args.results])
    if args.html:
        # Needs matplotlib.
        from ocdserve.perf.report.page import page

        _write(args.html, page(results))
    if args.markdown == "-":
        print(text.markdown(results), end="")
    elif args.markdown:
        _write(Path(args.markdown), text.markdown(results))
    if not args.html and not args.markdown:
        print(text.text(results))
    return 0


def _write(path: Path, content: str) -> None:
    try:
        write_atomically(path, content.encode())
    except OSError as error:
        raise InvalidInputError(f"cannot write {str(path)!r}: {error.strerror}") from error
    say(f"wrote {path}")
