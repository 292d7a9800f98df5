# SPDX-License-Identifier: Apache-2.0
"""`python -m ocdserve.perf.gpu_check`: the part that runs inside; `perf/gpu_check/run.sh` starts it."""

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
from ocdserve.perf.gpu_check.check_context import Deadline, Files, Setting
from ocdserve.perf.gpu_check.end_to_end import check_end_to_end
from ocdserve.perf.gpu_check.exactness import check_exactness
from ocdserve.perf.gpu_check.machine import Gpu, read_state
from ocdserve.perf.gpu_check.networks import check_networks
from ocdserve.perf.gpu_check.record import Record, write_json
from ocdserve.perf.gpu_check.result import Result
from ocdserve.perf.gpu_check.running import Part, run_apart, run_here, run_parts
from ocdserve.perf.gpu_check.sanitizer import check_sanitizer
from ocdserve.perf.gpu_check.served import check_served
from ocdserve.perf.gpu_check.stages import check_stages
from ocdserve.perf.gpu_check.targets import targets
from ocdserve.perf.gpu_check.timing import Effort
from ocdserve.perf.series.environment import Environment

_SECONDS = 460.0

EXACTNESS = Part("exactness", "Exactness", check_exactness, 90)
# The most important first: what there is no time for is left out.
PARTS = (
    EXACTNESS,
    Part("stages", "Times of the stages", check_stages, 90),
    Part("networks", "Networks", check_networks, 110),
    Part("end-to-end", "End to end, in process", check_end_to_end, 60),
    Part("served", "End to end, through Triton", check_served, 70),
    Part("sanitizer", "compute-sanitizer", lambda setting: None, 60),
)

# Under a sanitizer everything is slow.
_SHORT = Effort(cases=90, size=(160, 224), resizes=40, copy_bytes=1 << 20)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: all parts ran and all is exact; 1: something is not; 2: there is no GPU, or the usage is bad."""
    parser = argparse.ArgumentParser(prog="python -m ocdserve.perf.gpu_check", description=__doc__)
    parser.add_argument(
        "--carried", metavar="DIR", type=Path, help="folder of wheels with maps and networks made ahead"
    )
    parser.add_argument("--data", metavar="DIR", type=Path, help="photographs: img/, or folders that have one")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("perf/results"), help="(default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="time of it all (default: %(default)s)")
    parser.add_argument("--parts", metavar="NAME", nargs="+", help=f"of {', '.join(part.name for part in PARTS)}")
    parser.add_argument("--baseline-python", metavar="FILE", help="a Python that has PyTorch or CuPy, for comparison")
    parser.add_argument("--notes", metavar="FILE", type=Path, help="lines about the installation, for the report")
    parser.add_argument("--work", metavar="DIR", type=Path, help="folder for records and engines (default: a new one)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--short", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.parts or ()) - {part.name for part in PARTS}
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
    parts = [part for part in PARTS if not options.parts or part.name in options.parts]
    notes = options.notes.read_text("utf-8").splitlines() if options.notes else ()
    result = Result(gpu, Environment.current(), parts, notes)

    def run(part: Part, seconds: float, path: Path) -> Record:
        sys.stderr.write(f"gpu_check: {part.name}, at most {seconds:.0f} s\n")
        record = run_apart(part, seconds, path, _arguments(options))
        sys.stderr.write(f"gpu_check: {part.name} {record.state} after {record.seconds:.0f} s {record.reason}\n")
        return record

    def keep(records: Sequence[Record]) -> None:
        result.gpu_state_after = read_state()
        result.write(options.output, records)

    records = run_parts(parts, Deadline(options.seconds), options.work, run, keep)
    stem = result.write(options.output, records)
    sys.stdout.write(result.to_markdown(records))
    sys.stderr.write(f"gpu_check: written to {stem}.md and .json\n")
    failed = any(record.state in ("failed", "running") for record in records)
    inexact = any(target.verdict == "not met" for target in targets(records) if target.promised.startswith("<= 0"))
    return 1 if failed or inexact else 0


def _one_part(options: argparse.Namespace) -> int:
    """Run in the process that `run_apart` has made."""
    part = next(part for part in PARTS if part.name == options.part)
    if part.name == "sanitizer":
        part = replace(part, run=partial(_sanitizer, arguments=[*_arguments(options), "--short"]))
    record = Record(part.name)
    files = Files(options.carried, options.data, options.work, options.baseline_python)
    if options.short:
        files = Files(None, None, options.work)
    effort = _SHORT if options.short else Effort()
    setting = Setting(_open_gpu, files, Deadline(options.seconds), effort, record)
    setting.keep = lambda: write_json(options.record, record.to_json())
    run_here(part, setting)
    return 0


def _sanitizer(setting: Setting, arguments: Sequence[str]) -> None:
    check_sanitizer(setting, EXACTNESS, arguments)


def _arguments(options: argparse.Namespace) -> list[str]:
    """What every part is told."""
    given = {
        "--carried": options.carried,
        "--data": options.data,
        "--work": options.work,
        "--baseline-python": options.baseline_python,
    }
    return [text for name, value in given.items() if value is not None for text in (name, str(value))]


def _open_gpu() -> Device:
    present_gpu()
    from ocdserve.backend.device.opening import open_gpu

    return open_gpu(0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OcdserveError as error:
        sys.stderr.write(f"gpu_check: {error}\n")
        sys.exit(2)
