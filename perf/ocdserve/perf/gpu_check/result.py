# SPDX-License-Identifier: Apache-2.0
"""The result of a check, as JSON with all raw times and as Markdown to read."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ocdserve.perf.gpu_check.machine import Gpu
from ocdserve.perf.gpu_check.record import Figure, Record, write_json, write_text
from ocdserve.perf.gpu_check.running import Part
from ocdserve.perf.gpu_check.targets import Target, targets
from ocdserve.perf.series.environment import Environment

# 1: first version.
FORMAT_VERSION = 1

_LISTED_DEVIATIONS = 50
_LOG_LINES = 20


@dataclass
class Result:
    """All that is known, after each part.

    Attributes:
        gpu: The GPU before the parts.
        environment: The rest of the machine.
        parts: All parts that were asked for.
        notes: What the installation could not do, one sentence each.
        gpu_state_after: What nvidia-smi said at the end.
    """

    gpu: Gpu
    environment: Environment
    parts: Sequence[Part]
    notes: Sequence[str] = ()
    gpu_state_after: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path, records: Sequence[Record]) -> Path:
        """Write both files; returns the Markdown's path without its suffix."""
        stem = folder / f"gpu-check-{date.today().isoformat()}-{_slug(self.gpu.model)}"
        write_json(stem.with_name(f"{stem.name}.json"), self.to_json(records))
        write_text(stem.with_name(f"{stem.name}.md"), self.to_markdown(records))
        return stem

    def to_json(self, records: Sequence[Record]) -> dict[str, Any]:
        """Figures, raw samples and where they come from."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": "gpu-check",
            "gpu": asdict(self.gpu),
            "gpu_state_after": self.gpu_state_after,
            "environment": asdict(self.environment),
            "installation": list(self.notes),
            "targets": [asdict(target) for target in targets(records)],
            "parts": [record.to_json() for record in records],
            "not_run": [part.name for part in self.parts[len(records) :]],
        }

    def to_markdown(self, records: Sequence[Record]) -> str:
        """The report."""
        lines = [f"# GPU check, {self.gpu.time[:10]}: {self.gpu.model}", "", *self._machine(), ""]
        lines += ["## Promises", "", *_target_rows(targets(records)), ""]
        titles = {part.name: part.title for part in self.parts}
        for record in records:
            lines += [f"## {titles.get(record.part, record.part)}", "", *_part_lines(record), ""]
        missing = [part.title for part in self.parts[len(records) :]]
        if missing:
            lines += [f"Not measured: {', '.join(missing)}: the run was cut off before.", ""]
        return "\n".join(lines)

    def _machine(self) -> Iterable[str]:
        gpu, here = self.gpu, self.environment
        state = ", ".join(f"{name} {value}" for name, value in gpu.state.items())
        yield f"{gpu.model} ({gpu.architecture}), CUDA {gpu.cuda}; {state or 'nvidia-smi did not answer'}."
        if self.gpu_state_after:
            yield f"At the end: {', '.join(f'{name} {value}' for name, value in self.gpu_state_after.items())}."
        yield f"{here.cpu}, {here.cores} cores, {here.memory_gib:g} GiB; {here.system}; Python {here.python}."
        yield ", ".join(f"{name} {version}" for name, version in {**here.versions, **gpu.versions}.items()) + "."
        if self.notes:
            yield from ("", *(f"- Installation: {note}" for note in self.notes))


def _target_rows(found: Sequence[Target]) -> Iterable[str]:
    yield from ("| what | promised | measured | |", "|---|---|---|---|")
    for target in found:
        measured = "not measured" if target.measured is None else f"{_number(target.measured)} {target.unit}".strip()
        verdict = f"{target.verdict}: {target.note}" if target.note else target.verdict
        yield f"| {target.what} | {target.promised} | {measured} | {_cell(verdict)} |"


def _part_lines(record: Record) -> Iterable[str]:
    state = {"running": "cut off", "stopped": "stopped before its end"}.get(record.state, record.state)
    yield f"{state[0].upper()}{state[1:]}, {record.seconds:.0f} s.{f' {_cell(record.reason)}' if record.reason else ''}"
    if record.figures:
        yield from ("", "| what | with | value | 10 % to 90 % | |", "|---|---|---|---|---|")
        yield from map(_figure_row, record.figures)
    if record.steps:
        yield from ("", *_step_rows(record.steps))
    if record.deviations:
        shown = record.deviations[:_LISTED_DEVIATIONS]
        more = len(record.deviations) - len(shown)
        yield from ("", "Outside:", "", *(f"- {_cell(name)}" for name in shown))
        if more:
            yield f"- and {more} more, in the JSON"
    if record.log and (record.state != "complete" or record.absences):
        yield from ("", "<details><summary>its log</summary>", "", *_indented(record.log), "", "</details>")
    if record.absences:
        yield from (
            "",
            *(f"- {_cell(absence.what)}: not measured: {_cell(absence.reason)}" for absence in record.absences),
        )


def _indented(text: str) -> Iterable[str]:
    return (f"    {line}" for line in text.splitlines()[-_LOG_LINES:])


def _step_rows(steps: Sequence[Figure]) -> Iterable[str]:
    """One row a step, one column a case."""
    cases = list(dict.fromkeys(step.case for step in steps))
    values = {(step.subject, step.case): step.value for step in steps}
    yield from ("What each step adds, µs a batch, buffers in the cache:", "")
    yield f"| step | {' | '.join(map(_cell, cases))} |"
    yield "|---" * (len(cases) + 1) + "|"
    for name in dict.fromkeys(step.subject for step in steps):
        cells = (f"{values[name, case]:.2f}" if (name, case) in values else "" for case in cases)
        yield f"| {_cell(name)} | {' | '.join(cells)} |"


def _figure_row(figure: Figure) -> str:
    spread = "" if figure.low is None or figure.high is None else f"{_number(figure.low)} to {_number(figure.high)}"
    value = f"{_number(figure.value)} {figure.unit}".strip()
    return f"| {_cell(figure.subject)} | {_cell(figure.case)} | {value} | {spread} | {_cell(figure.note)} |"


def _number(value: float) -> str:
    """Three or more digits that count, without an exponent where one can do without."""
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _slug(model: str) -> str:
    letters = "".join(letter.lower() if letter.isalnum() else "-" for letter in model)
    return "-".join(part for part in letters.split("-") if part)
