# SPDX-License-Identifier: Apache-2.0
"""Runs the parts, each within its own time and process, and writes the results after each."""

import contextlib
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import traceback
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ocdserve.contract import OcdserveError, UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext, Deadline, OutOfTimeError, Values
from ocdserve.perf.report.text import markdown
from ocdserve.perf.series.environment import Environment, Gpu
from ocdserve.perf.series.measurement import find
from ocdserve.perf.series.results import Part, Results, load_results, replace_file, save_results

# Grace period after a part's time limit before it is killed, and the minimum time to start a part.
_GRACE_S = 20.0
_MIN_S = 5.0
_ERROR_LINES = 6
_LOG_CHARACTERS = 4000

_SANITIZER = "compute-sanitizer"
_SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck")
_SANITIZER_FOLDER = "/usr/local/cuda/bin"
_SANITIZER_SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")
_SANITIZER_LINES = 10


@dataclass(frozen=True)
class Check:
    """One part of the check.

    Attributes:
        name: Name on the command line.
        run: Runs it; raises OutOfTimeError when its time is up.
        max_s: Its time limit in seconds.
    """

    name: str
    run: Callable[[CheckContext], None]
    max_s: float

    @property
    def section(self) -> str:
        """Section of its series."""
        return f"gpu-{self.name}"


# Runs a part within some seconds, writes results to a file, and returns them.
RunPart = Callable[[Check, float, Path], Results]


def run_parts(
    checks: Sequence[Check], total: Deadline, work: Path, run: RunPart, keep: Callable[[Sequence[Results]], None]
) -> list[Results]:
    """Run the parts in order while there is time.

    Args:
        checks: The parts, the most important first.
        total: Time limit of all of them.
        work: Folder for their results.
        run: Runs a part.
        keep: Called with all results after each part.
    """
    found: list[Results] = []
    for check in checks:
        seconds = min(check.max_s, total.left_s - _GRACE_S)
        if seconds < _MIN_S:
            found.append(without_series(Part(check.section, "stopped", "no time was left for it")))
        else:
            found.append(run(check, seconds, work / f"{check.name}.json"))
        keep(found)
    return found


def run_here(check: Check, context: CheckContext) -> None:
    """Run a part in this process; any exception becomes its state."""
    part = context.part
    try:
        check.run(context)
        part.state = "complete"
    except OutOfTimeError as error:
        part.state, part.reason = "stopped", f"its {context.deadline.seconds:.0f} s were over before: {error}"
    except UnavailableError as error:
        part.state, part.reason = "not available", str(error)
    except OcdserveError as error:
        part.state, part.reason = "failed", str(error)
    except Exception as error:  # a part that fails must not hide the others
        place = traceback.extract_tb(error.__traceback__)[-1]
        part.state = "failed"
        part.reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
    part.seconds = context.deadline.spent_s
    context.save()


def run_apart(
    check: Check,
    seconds: float,
    path: Path,
    arguments: Sequence[str],
    prefix: Sequence[str] = (),
    python: Path | None = None,
) -> Results:
    """Run a part in a process of its own, which is killed when it hangs.

    Args:
        check: The part.
        seconds: Its time limit.
        path: File that it writes its results to; what it has written counts, however it ends.
        arguments: Command line arguments of all parts.
        prefix: Command that runs the process, such as compute-sanitizer.
        python: Another Python, which has all packages without PYTHONPATH; None takes this one.
    """
    path.unlink(missing_ok=True)
    command = [*prefix, str(python or sys.executable), "-m", "ocdserve.perf.gpu_check", *arguments]
    command += ["--part", check.name, "--seconds", f"{seconds:.1f}", "--record", str(path)]
    log = path.with_suffix(".log")
    environment = {**os.environ, "PYTHONPATH": ""} if python else os.environ
    code = _exit_code(command, log, seconds + _GRACE_S, environment)
    found = load_results(path) if path.is_file() else without_series(Part(check.section))
    part = found.parts[0]
    if part.state == "running":
        end = f"killed: it hung for {_GRACE_S:.0f} s after its time" if code is None else _ending(code)
        part.state, part.reason = "failed", f"{end}; {_last_lines(log)}"
    part.log = log.read_text("utf-8", "replace")[-_LOG_CHARACTERS:]
    save_results(found, path, overwrite=True)
    return found


def python_with(folder: Path, sites: Sequence[Path]) -> Path:
    """Make a Python that has packages without PYTHONPATH, which Triton's embedded Python ignores.

    Args:
        folder: Folder to make; what it holds is replaced.
        sites: Folders with packages that come before this Python's: those of PYTHONPATH, then its installed ones.

    Returns:
        Its executable.
    """
    venv.EnvBuilder(clear=True, symlinks=True).create(folder)
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    lines = [*map(str, sites), *filter(None, own)]
    # Installed packages may have .pth files of their own.
    lines += [f"import site; site.addsitedir({installed!r})" for installed in site.getsitepackages()]
    target = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (target / "gpu_check.pth").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "bin" / "python3"


def completed(checks: Sequence[Check], work: Path) -> dict[str, Results]:
    """Results of the parts that an earlier run with this folder completed, by name."""
    paths = {check.name: work / f"{check.name}.json" for check in checks}
    found = {name: load_results(path) for name, path in paths.items() if path.is_file()}
    return {name: results for name, results in found.items() if results.parts[0].state == "complete"}


def without_series(part: Part) -> Results:
    """Results of a part that has written none."""
    return Results("", Environment.current(), (), parts=(part,))


def write_results(path: Path, environment: Environment, found: Sequence[Results], others: Iterable[Part]) -> None:
    """Write the results so far as JSON to a file, and as Markdown next to it.

    Args:
        path: The JSON file.
        environment: Environment of the run.
        found: Results of parts.
        others: More parts, without series.
    """
    measurements = tuple(one for results in found for one in results.measurements)
    parts = (*(part for results in found for part in results.parts), *others)
    results = Results.now(environment, measurements, parts=parts)
    save_results(results, path, overwrite=True)
    replace_file(path.with_suffix(".md"), markdown(results))


def result_path(folder: Path, gpu: Gpu) -> Path:
    """The JSON file of today's results for a GPU, `gpu-check-<date>-<gpu>.json`."""
    words = "".join(letter.lower() if letter.isalnum() else " " for letter in gpu.model).split()
    return folder / f"gpu-check-{date.today().isoformat()}-{'-'.join(words)}.json"


def check_sanitizer(context: CheckContext, check: Check, arguments: Sequence[str]) -> None:
    """Run a part under the tools of compute-sanitizer, which find errors that correct answers may hide.

    Raises:
        UnavailableError: compute-sanitizer is not installed.
    """
    program = shutil.which(_SANITIZER) or shutil.which(_SANITIZER, path=_SANITIZER_FOLDER)
    if program is None:
        raise UnavailableError(
            f"{_SANITIZER} is neither on the PATH nor in {_SANITIZER_FOLDER}; it comes with the CUDA toolkit"
        )
    work = context.files.work
    for index, tool in enumerate(_SANITIZER_TOOLS):
        context.checkpoint(f"{tool} and later tools")
        seconds = context.deadline.left_s / (len(_SANITIZER_TOOLS) - index)
        log = work / f"{tool}.txt"
        prefix = [program, "--tool", tool, "--log-file", str(log)]
        found = run_apart(check, seconds, work / f"{tool}.json", arguments, prefix)
        _add_tool(context, tool, found, log.read_text("utf-8", "replace") if log.is_file() else "")


def _add_tool(context: CheckContext, tool: str, found: Results, log: str) -> None:
    reason = found.parts[0].reason
    summary = _SANITIZER_SUMMARY.search(log)
    compared = find(found.measurements, group="generated maps", unit="cases")
    if compared:
        facts: Values = {"errors found": int(summary[1] or summary[2]), "note": reason} if summary else {}
        context.add(tool, "generated maps", "cases", compared[0].samples, facts=facts)
    else:
        context.absent(f"{tool}: cases", reason or "none was compared")
    if summary is None:
        context.absent(tool, f"it wrote no summary; {reason or log[-500:] or 'it wrote nothing'}")
    elif int(summary[1] or summary[2]):
        lines = [line.lstrip("= ") for line in log.splitlines() if line.startswith("=========")]
        context.part.findings += [f"{tool}: {line}" for line in lines if line][:_SANITIZER_LINES]


def _exit_code(command: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str]) -> int | None:
    """Exit code of a process; None if it was killed, with all its children, because its time was up."""
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=environment)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Children that it left behind would disturb the next part.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ending(code: int) -> str:
    return f"its process was ended by signal {-code}" if code < 0 else f"its process ended with exit code {code}"


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return " / ".join(lines[-_ERROR_LINES:]) or "it wrote nothing"
