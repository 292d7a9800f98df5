# SPDX-License-Identifier: Apache-2.0
"""Results of a command of `ocdserve bench`, written to the file that --json names."""

from pathlib import Path
from typing import TYPE_CHECKING

from ocdserve.cli.bench.plan import say
from ocdserve.contract import InvalidInputError

if TYPE_CHECKING:
    from ocdserve.perf.series.results import Results


def check_target(target: str | None) -> None:
    """Whether the file can be written, asked before anything is measured.

    Raises:
        InvalidInputError: It exists, or its folder does not.
    """
    if target is None:
        return
    if not Path(target).absolute().parent.is_dir():
        raise InvalidInputError(f"--json {target}: its folder does not exist; make it, or name another file")
    if Path(target).exists():
        raise InvalidInputError(f"--json {target} exists, and results are never overwritten; name another file")


def write(target: str | None, results: "Results") -> None:
    """Write results there; None writes nothing."""
    from ocdserve.perf.series.results import save_results

    if target is not None:
        save_results(results, Path(target))
        say(f"raw samples are in {target}; `ocdserve bench report {target} --html PAGE` draws them")
