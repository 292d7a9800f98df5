# SPDX-License-Identifier: Apache-2.0
"""Tables of results: one for each section and unit, the same for the terminal, Markdown and HTML."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.estimates import Estimate, difference, is_paired, median, quantile, ratio
from ocdserve.perf.series.measurement import UNITS, Measurement
from ocdserve.perf.series.results import Results

__all__ = ["SECTION_TITLES", "Table", "baseline_of", "environment_rows", "number", "tables", "title_of"]

SECTION_TITLES = {
    "pipeline": "Encoded image to boxes",
    "postprocess": "Post-processing",
    "stages": "Stages in process",
    "serving": "What serving costs",
    "load": "Under load",
    "capacity": "Capacity",
    "client": "The client's cost",
    "memory": "Memory",
}
_UNIT_TITLES = {
    "ms": "time",
    "images/s": "throughput",
    "requests/s": "throughput",
    "instructions": "instructions",
    "calls": "calls",
    "MiB": "memory",
}
# Facts that have a place; others follow in alphabetical order.
_FACTS = ("boxes", "precision", "recall", "hmean", "errors")
# Sections that ask what something adds, rather than how many times as long it takes.
_ADDED = ("serving", "client")
# A fact longer than this has a line of its own.
_LONG = 60
_PERCENTAGES = ("share", "of ours")
_SHARES = ("precision", "recall", "hmean")

_ITSELF = Estimate(1.0, None, None, 0)


@dataclass(frozen=True)
class Table:
    """Cells to show.

    Attributes:
        section: Section that it belongs to.
        title: What it shows.
        notes: What holds for all rows.
        headers: Of the columns.
        rows: Cells, row by row.
        text_columns: How many columns, from the left, hold text; the others hold numbers.
    """

    section: str
    title: str
    notes: tuple[str, ...]
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int


@dataclass(frozen=True)
class _Column:
    header: str
    cells: tuple[str, ...]
    is_text: bool = False

    @property
    def is_constant(self) -> bool:
        return len(set(self.cells)) == 1


def tables(results: Results) -> tuple[Table, ...]:
    """One table for each section and unit, in the order of the measurements."""
    return tuple(
        _table(section, unit, [one for one in results.section(section) if one.unit == unit], results)
        for section in results.sections
        for unit in dict.fromkeys(one.unit for one in results.section(section))
    )


def baseline_of(measurement: Measurement, among: Iterable[Measurement]) -> Measurement | None:
    """The series that ratios of this one divide by; None where there is none."""
    if not measurement.baseline:
        return None
    key = measurement.key_of(measurement.baseline)
    return next((other for other in among if other.key == key), None)


def environment_rows(environment: Environment) -> tuple[tuple[str, str], ...]:
    """Names and values of all that is known."""
    before, after = environment.load_average, environment.load_average_after
    rows = [
        ("processor", environment.cpu),
        ("extensions", " ".join(environment.flags) or "none that matter"),
        ("cores", f"{environment.cores}"),
        ("limit of CPU time", "none" if environment.cpu_quota is None else f"{environment.cpu_quota:g} cores"),
        ("governor", environment.governor or "not known"),
        ("memory", f"{environment.memory_gib:g} GiB"),
        ("load average before", _load(before)),
        ("load average after", "not known" if after is None else _load(after)),
        ("system", environment.system),
        ("Python", environment.python),
        ("packages", ", ".join(f"{name} {version}" for name, version in environment.versions.items())),
        ("commit", environment.commit or "not known"),
    ]
    return tuple(rows)


def number(value: float) -> str:
    """About four digits, thousands apart, without an exponent."""
    if value == int(value):
        return f"{value:,.0f}"
    # Smallest size that is shown with so many decimals.
    steps = ((1000, 0), (100, 1), (10, 2), (0.1, 3), (0.01, 4))
    decimals = next((decimals for size, decimals in steps if abs(value) >= size), 6)
    return f"{value:,.{decimals}f}"


def title_of(section: str, unit: str | None = None) -> str:
    """What to call a section, or one of its units."""
    title = SECTION_TITLES.get(section, section.capitalize())
    return title if unit is None else f"{title}: {_UNIT_TITLES[unit]}"


def _load(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _table(section: str, unit: str, rows: Sequence[Measurement], results: Results) -> Table:
    factors = list(dict.fromkeys(name for row in rows for name in row.factors))
    described = [
        _Column("measured on", tuple(row.group for row in rows), is_text=True),
        _Column("subject", tuple(row.subject for row in rows), is_text=True),
        *(_Column(name, tuple(_value(row.factors.get(name)) for row in rows), is_text=True) for name in factors),
    ]
    figures = [
        _Column("samples", tuple(f"{len(row.samples)}" for row in rows)),
        *_quantile_columns(unit, rows),
        *_ratio_columns(rows, results.measurements),
        *(_added_columns(rows, results.measurements) if section in _ADDED and unit == "ms" else ()),
    ]
    names = {name for row in rows for name in row.facts}
    facts = [
        _Column(name, tuple(_fact(name, row.facts.get(name)) for row in rows))
        for name in sorted(names, key=lambda name: (_FACTS.index(name) if name in _FACTS else len(_FACTS), name))
    ]
    # What is the same in all rows is said once; the subject always has its column.
    said = [column for column in (*described, *facts) if column.is_constant and column.header != "subject"]
    said = said if len(rows) > 1 else []
    shown = [column for column in (*described, *figures, *facts) if column not in said]
    return Table(
        section=section,
        title=title_of(section, unit),
        notes=(
            *_said([column for column in said if len(column.cells[0]) <= _LONG]),
            *(line for column in said if len(column.cells[0]) > _LONG for line in _said([column])),
            *(("Intervals hold with 95 % confidence (bootstrap).",) if any("95 %" in c.header for c in shown) else ()),
        ),
        headers=tuple(column.header for column in shown),
        rows=tuple(zip(*(column.cells for column in shown), strict=True)),
        text_columns=sum(column.is_text for column in shown),
    )


def _said(columns: Sequence[_Column]) -> Iterable[str]:
    """Headers and their one value as a sentence, if there are any."""
    text = "; ".join(f"{column.header}: {column.cells[0]}" for column in columns)
    if text:
        yield f"{text[0].upper()}{text[1:].rstrip('.')}."


def _quantile_columns(unit: str, rows: Sequence[Measurement]) -> Iterable[_Column]:
    medians = [median(row) for row in rows]
    yield _Column(f"median {unit}", tuple(_plain(one) for one in medians))
    if any(one.low is not None for one in medians):
        yield _Column("95 % interval", tuple(_interval(one) for one in medians))
    if not UNITS[unit].higher_is_better:
        for name, fraction in (("p95", 0.95), ("p99", 0.99)):
            found = [quantile(row, fraction) for row in rows]
            if any(one is not None for one in found):
                yield _Column(name, tuple(_value(one) for one in found))


def _ratio_columns(rows: Sequence[Measurement], among: Sequence[Measurement]) -> Iterable[_Column]:
    baselines = [baseline_of(row, among) for row in rows]
    names = {baseline.subject for baseline in baselines if baseline}
    if not names:
        return
    ratios = [
        _ITSELF if row is baseline else ratio(row, baseline) if baseline else None
        for row, baseline in zip(rows, baselines, strict=True)
    ]
    if len(names) == 1:
        yield _Column(f"ratio to {names.pop()}", tuple(_estimated(one, _plain) for one in ratios))
    else:
        yield _Column(
            "ratio",
            tuple(
                f"{number(one.value)} to {base.subject}" if one and base else ""
                for one, base in zip(ratios, baselines, strict=True)
            ),
        )
    if any(one and one.low is not None for one in ratios):
        yield _Column("of the ratio, 95 %", tuple(_estimated(one, _interval) for one in ratios))


def _added_columns(rows: Sequence[Measurement], among: Sequence[Measurement]) -> Iterable[_Column]:
    baselines = [baseline_of(row, among) for row in rows]
    added = [
        difference(row, base) if base and base is not row and is_paired(row, base) else None
        for row, base in zip(rows, baselines, strict=True)
    ]
    if any(added):
        yield _Column("added ms", tuple(f"{one.value:+.3f}" if one else "" for one in added))
        yield _Column("of what is added, 95 %", tuple(_estimated(one, _interval) for one in added))


def _estimated(estimate: Estimate | None, show: Callable[[Estimate], str]) -> str:
    return show(estimate) if estimate else ""


def _plain(estimate: Estimate) -> str:
    return number(estimate.value)


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{number(estimate.low)} – {number(estimate.high)}"


def _fact(name: str, value: str | int | float | None) -> str:
    if name in _PERCENTAGES and isinstance(value, int | float):
        return f"{100 * value:.1f} %"
    return f"{value:.4f}" if name in _SHARES and isinstance(value, int | float) else _value(value)


def _value(value: str | int | float | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return number(value)
