# SPDX-License-Identifier: Apache-2.0
"""Plots of results, as SVG to put into a page."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ocdserve.perf.report.drawing import (
    CARD,
    COLOURS,
    MUTED,
    SERIES,
    Palette,
    from_zero,
    in_style,
    legend_above,
    new_axes,
    ticks_at,
    to_svg,
)
from ocdserve.perf.report.tables import baseline_of, number, title_of
from ocdserve.perf.series.estimates import Estimate, median, quantile, ratio
from ocdserve.perf.series.measurement import UNITS, Measurement
from ocdserve.perf.series.results import Results

__all__ = ["Plot", "plots"]


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        section: Section that it belongs to.
        title: What it shows.
        caption: How to read it.
        svg: The picture.
    """

    section: str
    title: str
    caption: str
    svg: str


def plots(results: Results) -> tuple[Plot, ...]:
    """All plots that the measurements allow, section by section."""
    with in_style():
        return tuple(_plots(results))


def _plots(results: Results) -> Iterator[Plot]:
    numbers = itertools.count()
    for section in results.sections:
        rows = results.section(section)
        palette = Palette(tuple(dict.fromkeys(row.subject for row in rows)))
        for draw in (
            _accuracy_over_speed,
            _ratios,
            _waterfalls,
            _over_load("concurrency"),
            _over_load("rate"),
            _curves,
        ):
            for title, caption, figure in draw(section, rows, palette):
                yield Plot(section, title, caption, to_svg(figure, f"plot-{next(numbers)}", title))


# Title, caption and figure.
_Drawn = tuple[str, str, Any]
_Draw = Callable[[str, Sequence[Measurement], Palette], Iterator[_Drawn]]


def _accuracy_over_speed(section: str, rows: Sequence[Measurement], palette: Palette) -> Iterator[_Drawn]:
    judged = [row for row in rows if row.unit == "ms" and "hmean" in row.facts and "stage" not in row.factors]
    for group in dict.fromkeys(row.group for row in judged):
        axes = new_axes(3.6)
        for row in (row for row in judged if row.group == group):
            time = median(row)
            low, high = (1000 / end if end else 1000 / time.value for end in (time.high, time.low))
            speed, hmean = 1000 / time.value, float(row.facts["hmean"])
            axes.errorbar(
                speed,
                hmean,
                xerr=[[max(0.0, speed - low)], [max(0.0, high - speed)]],
                fmt=palette.marker(row.subject),
                color=palette.colour(row.subject),
                markersize=8,
                capsize=3,
                label=row.subject,
            )
        axes.set_xlim(left=0)
        axes.margins(y=0.3)
        axes.set_xlabel("images a second")
        axes.set_ylabel("hmean")
        legend_above(axes)
        caption = "Up and to the right is better. Speed from the median time, with its 95 % interval."
        yield f"Accuracy over speed, {group}", caption, axes.figure


def _ratios(section: str, rows: Sequence[Measurement], palette: Palette) -> Iterator[_Drawn]:
    """A forest plot for each unit; ratios under load have plots of their own."""
    for unit in dict.fromkeys(row.unit for row in rows):
        pairs = [
            (row, ratio(row, base))
            for row in rows
            if row.unit == unit
            and (base := baseline_of(row, rows)) is not None
            and base is not row
            and not {"stage", "concurrency", "rate"} & row.factors.keys()
        ]
        if not pairs:
            continue
        baselines = " and ".join(dict.fromkeys(row.baseline for row, _ in pairs))
        axes = new_axes(0.9 + 0.36 * len(pairs), left=0.42)
        axes.axvline(1, color=MUTED, linewidth=1)
        for line, (row, estimate) in enumerate(pairs):
            axes.errorbar(
                estimate.value,
                line,
                xerr=_bars(estimate),
                fmt=palette.marker(row.subject),
                color=palette.colour(row.subject),
                capsize=3,
            )
            axes.annotate(
                f"{number(estimate.value)}",
                (estimate.high or estimate.value, line),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(pairs)), [_wrapped(f"{row.subject}, {row.group}") for row, _ in pairs])
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(left=0)
        axes.margins(x=0.12)
        better = "more" if UNITS[unit].higher_is_better else "less"
        axes.set_xlabel(f"times that of {baselines}")
        caption = f"Of the same cases, measured in turns; {better} is better, bars are 95 % intervals."
        yield f"{title_of(section, unit)} beside {baselines}", caption, axes.figure


def _waterfalls(section: str, rows: Sequence[Measurement], palette: Palette) -> Iterator[_Drawn]:
    staged = [row for row in rows if row.unit == "ms" and "stage" in row.factors]
    for group, subject in dict.fromkeys((row.group, row.subject) for row in staged):
        stages = [row for row in staged if (row.group, row.subject) == (group, subject)]
        lengths = [_middle(row) for row in stages]
        whole = sum(lengths)
        axes = new_axes(0.9 + 0.34 * len(stages), left=0.22)
        start = 0.0
        for line, length in enumerate(lengths):
            axes.barh(line, length, left=start, height=0.62, color=SERIES[line % COLOURS])
            label = f"{number(length)} ms, {100 * length / whole:.1f} %"
            if length > 0.45 * whole:
                axes.text(start + length / 2, line, label, ha="center", va="center", fontsize=9, color=CARD)
            else:
                # Beside the bar, on the side where there is room.
                is_late = start > 0.5 * whole
                axes.annotate(
                    label,
                    (start if is_late else start + length, line),
                    xytext=(-5 if is_late else 5, 0),
                    textcoords="offset points",
                    ha="right" if is_late else "left",
                    va="center",
                    fontsize=9,
                )
            start += length
        axes.set_yticks(range(len(stages)), [str(row.factors["stage"]) for row in stages])
        axes.set_ylim(len(stages) - 0.4, -0.6)
        axes.set_xlim(0, whole * 1.02)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("ms")
        caption = f"Median of each stage, one after the other; together {number(whole)} ms."
        yield f"Stages of {subject}, {group}", caption, axes.figure


def _over_load(factor: str) -> _Draw:
    names = {"concurrency": "requests under way (concurrency)", "rate": "arrivals a second"}

    def draw(section: str, rows: Sequence[Measurement], palette: Palette) -> Iterator[_Drawn]:
        loaded = [row for row in rows if row.unit == "ms" and factor in row.factors]
        for group in dict.fromkeys(row.group for row in loaded):
            lines = _lines([row for row in loaded if row.group == group], factor)
            if not any(len(line) > 1 for line in lines.values()):
                continue
            axes = new_axes(3.8)
            for style, (label, line) in zip(_line_styles(lines, palette), lines.items(), strict=True):
                levels = [float(row.factors[factor]) for row in line]
                medians = [_middle(row) for row in line]
                axes.plot(levels, medians, label=label, **style)
                tails = [quantile(row, 0.99) or quantile(row, 0.95) for row in line]
                if all(tail is not None for tail in tails):
                    faint = {**style, "marker": "", "linewidth": 1, "alpha": 0.55}
                    axes.plot(levels, tails, **faint)
            levels = sorted({float(row.factors[factor]) for line in lines.values() for row in line})
            from_zero(axes, [_middle(row) for line in lines.values() for row in line])
            if factor == "concurrency":
                axes.set_xscale("log", base=2)
            ticks_at(axes, levels)
            axes.set_xlabel(names[factor])
            axes.set_ylabel("ms")
            legend_above(axes)
            caption = "Strong lines: median. Faint lines: 99th percentile, or the 95th where requests are few."
            yield f"Latency over {names[factor].partition(' (')[0]}, {group}", caption, axes.figure

    return draw


def _curves(section: str, rows: Sequence[Measurement], palette: Palette) -> Iterator[_Drawn]:
    throughputs = {(row.subject, row.group, _frozen(row)): row for row in rows if UNITS[row.unit].higher_is_better}
    loaded = [
        row
        for row in rows
        if row.unit == "ms"
        and {"concurrency", "rate"} & row.factors.keys()
        and (row.subject, row.group, _frozen(row)) in throughputs
    ]
    for group in dict.fromkeys(row.group for row in loaded):
        lines = _lines([row for row in loaded if row.group == group], "concurrency", "rate")
        if not any(len(line) > 1 for line in lines.values()):
            continue
        axes = new_axes(3.8)
        for style, (label, line) in zip(_line_styles(lines, palette), lines.items(), strict=True):
            speeds = [_middle(throughputs[row.subject, row.group, _frozen(row)]) for row in line]
            latencies = [_middle(row) for row in line]
            axes.plot(speeds, latencies, label=label, **style)
            for row, speed, latency in zip(line, speeds, latencies, strict=True):
                level = row.factors.get("concurrency", row.factors.get("rate"))
                axes.annotate(
                    f"{level:g}" if isinstance(level, int | float) else f"{level}",
                    (speed, latency),
                    xytext=(5, 5),
                    textcoords="offset points",
                    fontsize=8,
                    color=MUTED,
                )
        axes.margins(x=0.1)
        from_zero(axes, [_middle(row) for line in lines.values() for row in line])
        axes.set_xlabel(next(iter(throughputs.values())).unit)
        axes.set_ylabel("median latency, ms")
        legend_above(axes)
        caption = "Down and to the right is better. Numbers at the points: concurrency, or arrivals a second."
        yield f"Latency over throughput, {group}", caption, axes.figure


def _lines(rows: Sequence[Measurement], *levels: str) -> dict[str, list[Measurement]]:
    """Rows that differ in the level of load only, by what tells them from the others."""
    # What a run is called tells nothing that its load does not.
    names = {name for row in rows for name in row.factors} - {*levels, "run", "at"}
    varying = sorted(name for name in names if len({row.factors.get(name) for row in rows}) > 1)
    loops = {"rate" in row.factors for row in rows}
    lines: dict[str, list[Measurement]] = {}
    for row in rows:
        parts = [row.subject, *(_told(name, row.factors[name]) for name in varying if name in row.factors)]
        if len(loops) > 1:
            parts.append("open loop" if "rate" in row.factors else "closed loop")
        lines.setdefault(", ".join(parts), []).append(row)
    for line in lines.values():
        line.sort(key=lambda row: next(float(row.factors[level]) for level in levels if level in row.factors))
    return lines


def _told(name: str, value: str | int | float) -> str:
    return value if isinstance(value, str) else f"{name} {value:g}"


def _line_styles(lines: dict[str, list[Measurement]], palette: Palette) -> Iterator[dict[str, Any]]:
    """A subject's colour and marker; a colour of its own for each line where subjects have several."""
    subjects = [line[0].subject for line in lines.values()]
    is_line_a_subject = len(set(subjects)) == len(subjects)
    for index, subject in enumerate(subjects):
        colour = palette.colour(subject) if is_line_a_subject else SERIES[index % COLOURS]
        dash = ("-", "--", ":", "-.")[subjects[:index].count(subject) % 4]
        yield {"color": colour, "marker": palette.marker(subject), "linestyle": dash}


def _frozen(row: Measurement) -> tuple[tuple[str, str | int | float], ...]:
    return tuple(sorted(row.factors.items()))


def _middle(row: Measurement) -> float:
    return quantile(row, 0.5) or 0.0


def _bars(estimate: Estimate) -> list[list[float]] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return [[estimate.value - estimate.low], [estimate.high - estimate.value]]


def _wrapped(label: str, width: int = 34) -> str:
    if len(label) <= width:
        return label
    head, _, tail = label.rpartition(", ")
    return f"{head},\n{tail}" if head else label
