# SPDX-License-Identifier: Apache-2.0
"""`python -m ocdserve.perf.gpu_check`, which `perf/gpu_check/run.sh` starts."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ocdserve.backend.device.probe import present_gpu
from ocdserve.backend.device.protocol import Device
from ocdserve.contract import OcdserveError, UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext, Deadline, Files
from ocdserve.perf.gpu_check.exactness import check_exactness
from ocdserve.perf.gpu_check.facts import check_facts
from ocdserve.perf.gpu_check.load.end_to_end import check_end_to_end
from ocdserve.perf.gpu_check.load.networks import check_networks
from ocdserve.perf.gpu_check.load.served import check_served
from ocdserve.perf.gpu_check.plan import INSTALLATION_S, PARTS, TOTAL_S, TRITON
from ocdserve.perf.gpu_check.reading import check_reading
from ocdserve.perf.gpu_check.running import (
    Check,
    check_sanitizer,
    completed,
    python_with,
    result_path,
    run_apart,
    run_here,
    run_parts,
    without_series,
    write_results,
)
from ocdserve.perf.gpu_check.stages import check_stages
from ocdserve.perf.gpu_check.timing import Effort
from ocdserve.perf.report.targets import exactness_targets
from ocdserve.perf.series.environment import Environment, Gpu
from ocdserve.perf.series.results import Part, Results, load_results, save_results

_RUN: dict[str, Callable[[CheckContext], None]] = {
    "facts": check_facts,
    "exactness": check_exactness,
    "stages": check_stages,
    "end-to-end": check_end_to_end,
    "networks": check_networks,
    "reading": check_reading,
    "served": check_served,
    "sanitizer": lambda context: None,
}
CHECKS = tuple(Check(part.name, _RUN[part.name], part.max_s) for part in PARTS)
EXACTNESS = next(check for check in CHECKS if check.name == "exactness")
_PLANNED = {part.name: part for part in PARTS}

# Under a sanitizer everything is slow.
_SHORT = Effort(cases=90, size=(160, 224), resizes=40, copy_bytes=1 << 20)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: all parts ran and all answers are exact; 1: otherwise; 2: there is no GPU, or the usage is wrong."""
    parser = argparse.ArgumentParser(prog="python -m ocdserve.perf.gpu_check", description=__doc__)
    parser.add_argument("--carried", metavar="DIR", type=Path, help="the group base: photographs, maps and networks")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("perf/results"), help="(default: %(default)s)"
    )
    limit = TOTAL_S - INSTALLATION_S
    parser.add_argument("--seconds", type=float, default=limit, help="time limit of the run (default: %(default)s)")
    parser.add_argument("--parts", metavar="NAME", nargs="+", help=f"of {', '.join(_PLANNED)}; also complete ones")
    parser.add_argument("--groups", metavar="NAME", nargs="+", help="groups of files that are there (default: all)")
    parser.add_argument(
        "--triton-site", metavar="DIR", type=Path, help="packages of the part served, ahead of all others"
    )
    parser.add_argument("--notes", metavar="FILE", type=Path, help="lines about the installation, for the report")
    parser.add_argument(
        "--work", metavar="DIR", type=Path, help="records and engines; a run continues that of its folder"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--short", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.parts or ()) - _PLANNED.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if options.part:
        return _one_part(options)
    try:
        gpu = Gpu.current()
        _open_gpu().close()
    except UnavailableError as error:
        sys.stderr.write(f"gpu_check: {error}\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="ocdserve-gpu-check-") as folder:
        options.work = options.work or Path(folder)
        return _all_parts(options, gpu)


def _all_parts(options: argparse.Namespace, gpu: Gpu) -> int:
    options.work.mkdir(parents=True, exist_ok=True)
    path, environment = result_path(options.output, gpu), Environment.current(gpu)
    chosen = options.parts or [part.name for part in PARTS if part.by_default]
    # Complete ones of an earlier call are kept, whether they are chosen now or not.
    earlier = {} if options.parts else completed(CHECKS, options.work)
    checks = [check for check in CHECKS if check.name in chosen or check.name in earlier]
    notes = options.notes.read_text("utf-8").splitlines() if options.notes else []
    installation = [Part("gpu-installation", "complete", findings=notes)] if notes else []

    def run(check: Check, seconds: float, record: Path) -> Results:
        if check.name in earlier:
            return earlier[check.name]
        absent = set(_PLANNED[check.name].groups) - set(options.groups or _PLANNED[check.name].groups)
        if absent:
            reason = f"the group {', '.join(sorted(absent))} has not come yet: call again with the next folder"
            return without_series(Part(check.section, "not available", reason))
        sys.stderr.write(f"gpu_check: {check.name}, at most {seconds:.0f} s\n")
        found = run_apart(check, seconds, record, _arguments(options), python=_python(check, options))
        part = found.parts[0]
        sys.stderr.write(f"gpu_check: {check.name} {part.state} after {part.seconds:.0f} s {part.reason}\n")
        return found

    def keep(found: Sequence[Results]) -> None:
        missing = (Part(check.section, "stopped", "the run was cut off before") for check in checks[len(found) :])
        write_results(path, environment, found, [*missing, *installation])

    run_parts(checks, Deadline(options.seconds), options.work, run, keep)
    results = load_results(path)
    sys.stdout.write(path.with_suffix(".md").read_text("utf-8"))
    sys.stderr.write(f"gpu_check: written to {path.with_suffix('')}.md and .json\n")
    failed = any(part.state in ("failed", "running") for part in results.parts)
    return 1 if failed or any(target.verdict == "missed" for target in exactness_targets(results)) else 0


def _one_part(options: argparse.Namespace) -> int:
    """Run a part in the process that `run_apart` has started."""
    check = next(check for check in CHECKS if check.name == options.part)
    if check.name == "sanitizer":
        arguments = [*_arguments(options), "--short"]
        check = replace(check, run=partial(check_sanitizer, check=EXACTNESS, arguments=arguments))
    carried = None if options.short else options.carried
    data = carried / "data" if carried is not None and (carried / "data").is_dir() else None
    files = Files(carried, data, options.work)
    effort = _SHORT if options.short else Effort()
    context = CheckContext(_open_gpu, files, Deadline(options.seconds), effort, Part(check.section))
    environment = Environment.current()

    def save() -> None:
        results = Results.now(environment, tuple(context.measurements.values()), parts=(context.part,))
        save_results(results, options.record, overwrite=True)

    context.save = save
    run_here(check, context)
    return 0


def _arguments(options: argparse.Namespace) -> list[str]:
    """Arguments that all parts get."""
    given = {"--carried": options.carried, "--work": options.work}
    return [text for name, value in given.items() if value is not None for text in (name, str(value))]


def _python(check: Check, options: argparse.Namespace) -> Path | None:
    """Python of a part that needs another than this."""
    if TRITON not in _PLANNED[check.name].groups or options.triton_site is None:
        return None
    return python_with(options.work / "python", [options.triton_site])


def _open_gpu() -> Device:
    present_gpu()
    from ocdserve.backend.device.cuda import open_device

    return open_device(0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OcdserveError as error:
        sys.stderr.write(f"gpu_check: {error}\n")
        sys.exit(2)
