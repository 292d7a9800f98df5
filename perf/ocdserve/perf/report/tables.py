# SPDX-License-Identifier: Apache-2.0
"""Tables of results: one per section and unit, the same for the terminal, Markdown and HTML."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from ocdserve.perf.report.front import judged
from ocdserve.perf.sections import SECTIONS, Section
from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.estimates import Estimate, difference, is_paired, mean_difference, median, quantile, ratio
from ocdserve.perf.series.measurement import LEFT_OVER, LICENCE, UNITS, Measurement
from ocdserve.perf.series.results import Part, Results

_SECTIONS = {section.name: section for section in SECTIONS}
# Titles of results that are not of a section of `ocdserve bench`, if not their capitalised name.
_TITLES = {
    "load": "Under load",
    "gpu-installation": "Installation of the GPU check",
    "gpu-facts": "The GPU's machine",
    "gpu-exactness": "Exactness on the GPU",
    "gpu-stages": "Stages on the GPU",
    "gpu-steps": "Steps of the post-processing on the GPU",
    "gpu-networks": "Networks on the GPU",
    "gpu-reading": "Reading on the GPU",
    "gpu-end-to-end": "End to end on the GPU, in process",
    "gpu-served": "End to end on the GPU, through Triton",
    "gpu-sanitizer": "compute-sanitizer",
}
# First columns of facts; others follow in alphabetical order.
_FACTS = ("boxes", "precision", "recall", "hmean", "errors")
# A longer fact has a line of its own.
_LONG = 60
_SHARES = ("precision", "recall", "hmean")

# Findings and lines of its log that are shown of a part.
_FINDINGS = 50
_LOG_LINES = 20

_PAINTED_OVER = (
    "Times are on the images with their texts painted over, decoding included, so that nothing is read; the accuracy "
    "is that on the images as they are."
)
_ITSELF = Estimate(1.0, None, None, 0)


@dataclass(frozen=True)
class Table:
    """A table to show.

    Attributes:
        section: Name of its section.
        title: Heading.
        notes: Sentences above the table, such as what all rows share.
        headers: Headers of the columns.
        rows: Cells, row by row.
        text_columns: Number of columns, from the left, that hold text; the others hold numbers.
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
    """A table per section and unit, in the order of the measurements, front lines, and one per part of the run."""
    shown = []
    for section in results.sections:
        rows = results.section(section)
        for unit in dict.fromkeys(one.unit for one in rows):
            chosen = [one for one in rows if one.unit == unit]
            shown.append((_share_table if UNITS[unit].is_share else _table)(section, unit, chosen, results))
        shown += _front_tables(section, rows)
        if part := results.part(section):
            shown.append(_part_table(part))
    return tuple(shown)


def baseline_of(measurement: Measurement, among: Iterable[Measurement]) -> Measurement | None:
    """The series that ratios of this one divide by; None if there is none."""
    if not measurement.baseline:
        return None
    key = measurement.key_of(measurement.baseline)
    return next((other for other in among if other.key == key), None)


def environment_rows(environment: Environment) -> tuple[tuple[str, str], ...]:
    """Names and values of what is known of the environment."""
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
        ("packages", _listed(environment.all_versions)),
        ("commit", environment.commit or "not known"),
    ]
    if gpu := environment.gpu:
        rows += [
            ("GPU", f"{gpu.model} ({gpu.architecture}), driver {gpu.driver}"),
            ("GPU before", _listed(gpu.state) or "not known"),
            ("GPU after", _listed(gpu.state_after) or "not known"),
        ]
    return tuple(rows)


def number(value: float) -> str:
    """About four digits, with thousands separators, without an exponent."""
    if value == int(value):
        return f"{value:,.0f}"
    # Smallest size that is shown with this number of decimals.
    steps = ((1000, 0), (100, 1), (10, 2), (0.1, 3), (0.01, 4))
    decimals = next((decimals for size, decimals in steps if abs(value) >= size), 6)
    return f"{value:,.{decimals}f}"


def title_of(section: str, unit: str | None = None) -> str:
    """Title of a section, or of one of its units."""
    title = _section(section).title
    return title if unit is None else f"{title}: {UNITS[unit].title}"


def _section(name: str) -> Section:
    """The section's declaration; the defaults for results of commands or of another version."""
    return _SECTIONS.get(name) or Section(name, "", _TITLES.get(name, name.capitalize()))


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _part_table(part: Part) -> Table:
    """How a part ended, what it did not measure and what it found; its log only if something is missing."""
    state = {"running": "cut off", "stopped": "stopped early"}.get(part.state, part.state)
    rows = [("state", f"{state} after {part.seconds:.0f} s{f': {part.reason}' if part.reason else ''}")]
    rows += [(f"{what}: not measured", reason) for what, reason in part.absences.items()]
    rows += [("found", finding) for finding in part.findings[:_FINDINGS]]
    if more := len(part.findings[_FINDINGS:]):
        rows.append(("found", f"{more} more, see the JSON"))
    if part.state != "complete" or part.absences:
        rows += [("log", line) for line in part.log.splitlines()[-_LOG_LINES:]]
    return Table(part.section, f"{title_of(part.section)}: the run", (), ("", ""), tuple(rows), text_columns=2)


def _load(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _table(section: str, unit: str, rows: Sequence[Measurement], results: Results) -> Table:
    declared = _section(section)
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
        *(_added_columns(rows, results.measurements) if declared.shows_added and unit == "ms" else ()),
    ]
    names = {name for row in rows for name in row.facts} - {LICENCE}
    facts = [
        _Column(name, tuple(_fact(name, row.facts.get(name), declared.percentages) for row in rows))
        for name in sorted(names, key=lambda name: (_FACTS.index(name) if name in _FACTS else len(_FACTS), name))
    ]
    # What all rows share is a note; the subject always has its column.
    shared = [column for column in (*described, *facts) if column.is_constant and column.header != "subject"]
    shared = shared if len(rows) > 1 else []
    shown = [column for column in (*described, *figures, *facts) if column not in shared]
    return Table(
        section=section,
        title=title_of(section, unit),
        notes=(
            *_sentence([column for column in shared if len(column.cells[0]) <= _LONG]),
            *(line for column in shared if len(column.cells[0]) > _LONG for line in _sentence([column])),
            *(("Intervals hold with 95 % confidence (bootstrap).",) if any("95 %" in c.header for c in shown) else ()),
        ),
        headers=tuple(column.header for column in shown),
        rows=tuple(zip(*(column.cells for column in shown), strict=True)),
        text_columns=sum(column.is_text for column in shown),
    )


def _front_tables(section: str, rows: Sequence[Measurement]) -> Iterable[Table]:
    """A table for each group in which several subjects were timed and judged, from the fastest on."""
    for group, found, front in judged(rows):
        if len(found) < 2:
            continue
        painted_over = any(LEFT_OVER in row.facts for row in found)
        columns = [
            _Column("", tuple("front" if row.subject in front else "" for row in found), is_text=True),
            _Column("subject", tuple(row.subject for row in found), is_text=True),
            _Column("licence", tuple(_value(row.facts.get(LICENCE)) for row in found), is_text=True),
            *itertools.islice(_quantile_columns("ms", found), 2),
            *_ratio_columns(found, found),
            _Column("hmean", tuple(_fact("hmean", row.facts["hmean"], ()) for row in found)),
            _Column(LEFT_OVER, tuple(_value(row.facts.get(LEFT_OVER)) for row in found)),
        ]
        shown = [column for column in columns if any(column.cells) or not column.header]
        yield Table(
            section=section,
            title=f"{title_of(section)}: front line, {group}",
            notes=(
                "On the front no other is both at least as fast, by the medians, and at least as accurate; differences "
                "within the noise count too.",
                *((_PAINTED_OVER,) if painted_over else ()),
            ),
            headers=tuple(column.header for column in shown),
            rows=tuple(zip(*(column.cells for column in shown), strict=True)),
            text_columns=sum(column.is_text for column in shown),
        )


def _share_table(section: str, unit: str, rows: Sequence[Measurement], results: Results) -> Table:
    """Shares compared with those of the baseline, a line per group."""
    pairs = [(row, base) for row in rows if (base := baseline_of(row, results.measurements)) is not None]
    other = ", ".join(dict.fromkeys(base.subject for _, base in pairs))
    deficits = [mean_difference([(base, row)]) for row, base in pairs]
    names = sorted({name for row, _ in pairs for name in row.facts})
    columns = [
        _Column("measured on", tuple(row.group for row, _ in pairs), is_text=True),
        *(_Column(name, tuple(_value(row.facts.get(name)) for row, _ in pairs)) for name in names),
        _Column(f"errors of {other}", tuple(_value(base.facts.get("errors")) for _, base in pairs)),
        _Column("ours", tuple(f"{mean(row.samples):.3f}" for row, _ in pairs)),
        _Column(other, tuple(f"{mean(base.samples):.3f}" for _, base in pairs)),
        _Column("deficit", tuple(f"{one.value:+.3f}" for one in deficits)),
        _Column("95 % interval", tuple(f"{one.low or 0.0:+.3f} – {one.high or 0.0:+.3f}" for one in deficits)),
    ]
    shared = [column for column in columns if column.is_constant and len(column.cells[0]) > _LONG]
    shown = [column for column in columns if column not in shared]
    return Table(
        section=section,
        title=title_of(section, unit),
        notes=(
            f"The deficit is what {other} finds more; intervals hold with 95 % confidence (bootstrap over pages).",
            *_sentence(shared),
        ),
        headers=tuple(column.header for column in shown),
        rows=tuple(zip(*(column.cells for column in shown), strict=True)),
        text_columns=1,
    )


def _sentence(columns: Sequence[_Column]) -> Iterable[str]:
    """A sentence of the columns' headers and their one value; nothing without columns."""
    text = "; ".join(f"{column.header}: {column.cells[0]}" for column in columns)
    if text:
        yield f"{text[0].upper()}{text[1:].rstrip('.')}."


def _quantile_columns(unit: str, rows: Sequence[Measurement]) -> Iterable[_Column]:
    medians = [median(row) for row in rows]
    yield _Column(f"median {unit}", tuple(number(one.value) for one in medians))
    if any(one.low is not None for one in medians):
        yield _Column("95 % interval", tuple(map(_interval, medians)))
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
        yield _Column(f"ratio to {names.pop()}", tuple(number(one.value) if one else "" for one in ratios))
    else:
        yield _Column(
            "ratio",
            tuple(
                f"{number(one.value)} to {base.subject}" if one and base else ""
                for one, base in zip(ratios, baselines, strict=True)
            ),
        )
    if any(one and one.low is not None for one in ratios):
        yield _Column("of the ratio, 95 %", tuple(map(_interval, ratios)))


def _added_columns(rows: Sequence[Measurement], among: Sequence[Measurement]) -> Iterable[_Column]:
    baselines = [baseline_of(row, among) for row in rows]
    added = [
        difference(row, base) if base and base is not row and is_paired(row, base) else None
        for row, base in zip(rows, baselines, strict=True)
    ]
    if any(added):
        yield _Column("added ms", tuple(f"{one.value:+.3f}" if one else "" for one in added))
        yield _Column("of what is added, 95 %", tuple(map(_interval, added)))


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{number(estimate.low)} – {number(estimate.high)}"


def _fact(name: str, value: str | int | float | None, percentages: Sequence[str]) -> str:
    if name in percentages and isinstance(value, int | float):
        return f"{100 * value:.1f} %"
    return f"{value:.4f}" if name in _SHARES and isinstance(value, int | float) else _value(value)


def _value(value: str | int | float | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return number(value)
