# SPDX-License-Identifier: Apache-2.0
"""What only a machine with a GPU can check, in one command: `python -m ocdserve.perf.gpu_check --data DIR`.

Each check stands for itself; a failing one does not stop the others. The report is Markdown.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ocdserve.contract import OcdserveError, UnavailableError


@dataclass(frozen=True)
class Result:
    """Outcome of a check: what it found, and whether that is as it should be."""

    name: str
    passed: bool
    figures: str
    seconds: float


@dataclass(frozen=True)
class Check:
    """A check: its name, and a function of the data folder that returns figures or raises."""

    name: str
    run: Callable[[Path], str]


def _built(precision: str, data: Path) -> str:
    """Build an engine of the default network; the build itself holds it against FP32 on the GPU."""
    import json

    from ocdserve.backend import Bundle
    from ocdserve.builder import BuildConfig, DataConfig, EngineConfig, build
    from ocdserve.builder.explain import explain

    with tempfile.TemporaryDirectory() as folder:
        bundle = build(
            BuildConfig(
                Bundle.load().model_path,
                Path(folder) / "bundle",
                precision=precision,  # type: ignore[arg-type]  # validated there
                runtime="tensorrt",
                data=DataConfig(evaluation=data),
                engine=EngineConfig(store=Path(folder) / "engines"),
            )
        )
        report = json.loads(bundle.model_path.with_name("report.json").read_text("utf-8"))
        layers = explain(bundle).partition("layers as built")[2].count("\n")
    gate, engine = report["gate"], report["engine"]
    if gate["executed_by"] != "the target":
        raise UnavailableError(f"the gate was executed by {gate['executed_by']}, not by the engine")
    hmean = "" if gate["hmean"] is None else f"hmean {gate['hmean_fp32']:.4f} -> {gate['hmean']:.4f}, "
    return (
        f"{hmean}agreement {gate['agreement']:.4f}, map error {gate['map_error']:.6f}, "
        f"{report['quantised_macs']:.0%} of MACs in 8 bits, {engine['bytes']} bytes, built in {engine['build_s']} s, "
        f"{layers} lines of types and times"
    )


CHECKS = (
    Check("TensorRT engine, fp32", lambda data: _built("fp32", data)),
    Check("TensorRT engine, fp16", lambda data: _built("fp16", data)),
    Check("TensorRT engine, int8", lambda data: _built("int8", data)),
)


def run_checks(data: Path, checks: Sequence[Check] = CHECKS) -> list[Result]:
    """Run all checks; an exception is a failure, its text the figure."""
    results = []
    for check in checks:
        started = time.perf_counter()
        try:
            passed, figures = True, check.run(data)
        except OcdserveError as error:
            passed, figures = False, str(error)
        except Exception as error:  # a check that breaks must not hide the others
            place = traceback.extract_tb(error.__traceback__)[-1]
            figures = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
            passed = False
        results.append(Result(check.name, passed, figures, time.perf_counter() - started))
    return results


def to_markdown(results: Sequence[Result], machine: str) -> str:
    """The report."""
    rows = [
        f"| {result.name} | {'passed' if result.passed else 'FAILED'} | {result.seconds:.0f} | "
        f"{' '.join(result.figures.split())} |"
        for result in results
    ]
    head = ["| check | result | s | figures |", "|---|---|---|---|"]
    return "\n".join([f"# GPU check, {date.today().isoformat()}", "", machine, "", *head, *rows, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: all passed, 1: some failed, 2: there is no GPU or the usage is bad."""
    from ocdserve.builder.engine_runtime import present_gpu, runtime_version

    parser = argparse.ArgumentParser(prog="python -m ocdserve.perf.gpu_check", description=__doc__)
    parser.add_argument("--data", metavar="DIR", type=Path, required=True, help="photographs, best with img/ and gt/")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: perf/results/gpu-check-<date>.md")
    options = parser.parse_args(arguments)
    try:
        architecture, model = present_gpu()
        machine = f"{model} ({architecture}), TensorRT {runtime_version('tensorrt')}"
    except UnavailableError as error:
        sys.stderr.write(f"gpu_check: {error}\n")
        return 2
    results = run_checks(options.data)
    report = to_markdown(results, machine)
    output = options.output or Path("perf/results") / f"gpu-check-{date.today().isoformat()}.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(report, "utf-8")
    sys.stdout.write(report)
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
