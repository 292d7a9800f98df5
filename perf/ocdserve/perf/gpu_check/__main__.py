# SPDX-License-Identifier: Apache-2.0
"""`python -m ocdserve.perf.gpu_check`, which `perf/gpu_check/run.sh` starts."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ocdserve.backend.device.probe import present_gpu
from ocdserve.backend.device.protocol import Device
from ocdserve.contract import OcdserveError, UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext, Deadline, Files
from ocdserve.perf.gpu_check.exactness import check_exactness
from ocdserve.perf.gpu_check.networks import check_networks
from ocdserve.perf.gpu_check.running import (
    Check,
    check_sanitizer,
    result_path,
    run_apart,
    run_here,
    run_parts,
    write_results,
)
from ocdserve.perf.gpu_check.served import check_end_to_end, check_served
from ocdserve.perf.gpu_check.stages import check_stages
from ocdserve.perf.gpu_check.timing import Effort
from ocdserve.perf.report.targets import exactness_targets
from ocdserve.perf.series.environment import Environment, Gpu
from ocdserve.perf.series.results import Part, Results, load_results, save_results

_SECONDS = 460.0

EXACTNESS = Check("exactness", check_exactness, 90)
# The most important first: the last ones are left out if there is no time.
CHECKS = (
    EXACTNESS,
    Check("stages", check_stages, 90),
    Check("networks", check_networks, 110),
    Check("end-to-end", check_end_to_end, 60),
    Check("served", check_served, 70),
    Check("sanitizer", lambda context: None, 60),
)

# Under a sanitizer everything is slow.
_SHORT = Effort(cases=90, size=(160, 224), resizes=40, copy_bytes=1 << 20)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: all parts ran and all answers are exact; 1: otherwise; 2: there is no GPU, or the usage is wrong."""
    parser = argparse.ArgumentParser(prog="python -m ocdserve.perf.gpu_check", description=__doc__)
    parser.add_argument("--carried", metavar="DIR", type=Path, help="folder of wheels with prebuilt maps and networks")
    parser.add_argument("--data", metavar="DIR", type=Path, help="photographs: img/, or folders that have one")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("perf/results"), help="(default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="time limit of the run (default: %(default)s)")
    parser.add_argument("--parts", metavar="NAME", nargs="+", help=f"of {', '.join(check.name for check in CHECKS)}")
    parser.add_argument("--baseline-python", metavar="FILE", help="a Python with PyTorch or CuPy, for comparison")
    parser.add_argument("--notes", metavar="FILE", type=Path, help="lines about the installation, for the report")
    parser.add_argument("--work", metavar="DIR", type=Path, help="folder for records and engines (default: a new one)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--short", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.parts or ()) - {check.name for check in CHECKS}
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
    checks = [check for check in CHECKS if not options.parts or check.name in options.parts]
    notes = options.notes.read_text("utf-8").splitlines() if options.notes else []
    installation = [Part("gpu-installation", "complete", findings=notes)] if notes else []

    def run(check: Check, seconds: float, record: Path) -> Results:
        sys.stderr.write(f"gpu_check: {check.name}, at most {seconds:.0f} s\n")
        found = run_apart(check, seconds, record, _arguments(options))
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
    files = Files(options.carried, options.data, options.work, options.baseline_python)
    if options.short:
        files = Files(None, None, options.work)
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
    given = {
        "--carried": options.carried,
        "--data": options.data,
        "--work": options.work,
        "--baseline-python": options.baseline_python,
    }
    return [text for name, value in given.items() if value is not None for text in (name, str(value))]


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
