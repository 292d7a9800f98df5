# SPDX-License-Identifier: Apache-2.0
"""Plots of results, as SVG elements to put into one page."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ocdserve.perf.report.front import judged
from ocdserve.perf.report.tables import baseline_of, number, title_of
from ocdserve.perf.series.estimates import Estimate, median, quantile, ratio
from ocdserve.perf.series.measurement import UNITS, Measurement
from ocdserve.perf.series.results import Results

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.4,
    "legend.frameon": False,
}
_MARKERS = "osD^vPX*"
# Factors of the level of load, and their labels.
_LOADS = {"concurrency": "requests in flight (concurrency)", "rate": "arrivals per second"}
# Values that differ by a larger factor get a logarithmic axis.
_LOGARITHMIC_FROM = 30

# Title, caption and figure.
_Drawn = tuple[str, str, Figure]
# Colour and marker of each subject, the same in all plots of a section.
_Styles = dict[str, dict[str, Any]]
_Draw = Callable[[str, Sequence[Measurement], _Styles], Iterator[_Drawn]]


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        section: Section that it belongs to.
        title: What it shows.
        caption: How to read it.
        svg: An SVG element whose ids differ from those of the other plots.
    """

    section: str
    title: str
    caption: str
    svg: str


def plots(results: Results) -> tuple[Plot, ...]:
    """All plots that the measurements allow, section by section."""
    drawn: list[Plot] = []
    with matplotlib.rc_context(_STYLE):
        for section in results.sections:
            rows = results.section(section)
            subjects = dict.fromkeys(row.subject for row in rows)
            styles = {
                subject: {"color": f"C{index % 10}", "marker": _MARKERS[index % len(_MARKERS)]}
                for index, subject in enumerate(subjects)
            }
            for draw in _PLOTS:
                for title, caption, figure in draw(section, rows, styles):
                    drawn.append(Plot(section, title, caption, _svg(figure, f"plot-{len(drawn)}")))
    return tuple(drawn)


def _accuracy_over_time(section: str, rows: Sequence[Measurement], styles: _Styles) -> Iterator[_Drawn]:
    for group, found, front in judged(rows):
        axes = _axes(3.4)
        for row in found:
            time = median(row)
            points = {"linestyle": "", "markersize": 8, "capsize": 3, "label": row.subject, **styles[row.subject]}
            axes.errorbar(time.value, float(row.facts["hmean"]), xerr=_bars(time), **points)
        line = [(_middle(row), float(row.facts["hmean"])) for row in found if row.subject in front]
        axes.step(*zip(*line, strict=True), where="post", color="gray", linewidth=1, zorder=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.minorticks_off()
        axes.margins(x=0.1, y=0.3)
        axes.set(xlabel="ms", ylabel="hmean")
        _add_legend(axes)
        caption = "Up and to the left is better. The line joins those that no other beats. Bars are 95 % intervals."
        yield f"Accuracy over time, {group}", caption, axes.figure


def _ratios(section: str, rows: Sequence[Measurement], styles: _Styles) -> Iterator[_Drawn]:
    """A forest plot for each unit; ratios under load have plots of their own."""
    for unit in dict.fromkeys(row.unit for row in rows if not UNITS[row.unit].is_share):
        pairs = [
            (row, ratio(row, base))
            for row in rows
            if row.unit == unit
            and (base := baseline_of(row, rows)) is not None
            and base is not row
            and not {"stage", *_LOADS} & row.factors.keys()
        ]
        if not pairs:
            continue
        axes = _axes(0.8 + 0.4 * len(pairs))
        axes.axvline(1, color="gray", linewidth=1)
        for line, (row, estimate) in enumerate(pairs):
            axes.errorbar(estimate.value, line, xerr=_bars(estimate), capsize=3, **styles[row.subject])
            end = estimate.high or estimate.value, line
            axes.annotate(number(estimate.value), end, xytext=(7, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(pairs)), [f"{row.subject}\n{row.group}" for row, _ in pairs])
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(left=0)
        axes.margins(x=0.12)
        baselines = " and ".join(dict.fromkeys(row.baseline for row, _ in pairs))
        axes.set_xlabel(f"ratio to {baselines}")
        better = "more" if UNITS[unit].higher_is_better else "less"
        caption = f"On the same cases, measured in alternation; {better} is better, bars are 95 % intervals."
        yield f"{title_of(section, unit)} compared with {baselines}", caption, axes.figure


def _waterfalls(section: str, rows: Sequence[Measurement], styles: _Styles) -> Iterator[_Drawn]:
    staged = [row for row in rows if row.unit == "ms" and "stage" in row.factors]
    for group, subject in dict.fromkeys((row.group, row.subject) for row in staged):
        stages = [row for row in staged if (row.group, row.subject) == (group, subject)]
        lengths = [_middle(row) for row in stages]
        whole = sum(lengths)
        starts = [sum(lengths[:line]) for line in range(len(lengths))]
        axes = _axes(0.8 + 0.34 * len(stages))
        bars = axes.barh(
            range(len(stages)), lengths, left=starts, color=[f"C{line % 10}" for line in range(len(stages))]
        )
        axes.bar_label(bars, [f"{number(length)} ms, {100 * length / whole:.1f} %" for length in lengths], padding=4)
        axes.set_yticks(range(len(stages)), [str(row.factors["stage"]) for row in stages])
        axes.invert_yaxis()
        # Leaves room for the label of the last bar.
        axes.set_xlim(0, whole * 1.35)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("ms")
        caption = f"Median of each stage, one after the other; together {number(whole)} ms."
        yield f"Stages of {subject}, {group}", caption, axes.figure


def _over_load(section: str, rows: Sequence[Measurement], styles: _Styles) -> Iterator[_Drawn]:
    for factor, label in _LOADS.items():
        loaded = [row for row in rows if row.unit == "ms" and factor in row.factors]
        for group, axes, lines in _line_plots(loaded, styles, factor):
            for style, line in lines:
                levels = [_level(row) for row in line]
                axes.plot(levels, [_middle(row) for row in line], **style)
                tails = [quantile(row, 0.99) or quantile(row, 0.95) for row in line]
                if all(tail is not None for tail in tails):
                    axes.plot(levels, tails, **{**style, "label": None, "marker": "", "linewidth": 1, "alpha": 0.5})
            if factor == "concurrency":
                axes.set_xscale("log", base=2)
            levels = sorted({_level(row) for _, line in lines for row in line})
            axes.set_xticks(levels, [f"{level:g}" for level in levels])
            axes.minorticks_off()
            _scale_latency(axes, lines)
            axes.set(xlabel=label, ylabel="ms")
            caption = "Strong lines: median. Faint lines: 99th percentile, or the 95th where requests are few."
            yield f"Latency over {label.partition(' (')[0]}, {group}", caption, axes.figure


def _over_throughput(section: str, rows: Sequence[Measurement], styles: _Styles) -> Iterator[_Drawn]:
    def key(row: Measurement) -> tuple[object, ...]:
        return row.subject, row.group, *sorted(row.factors.items())

    speeds = {key(row): row for row in rows if UNITS[row.unit].higher_is_better}
    loaded = [row for row in rows if row.unit == "ms" and _LOADS.keys() & row.factors.keys() and key(row) in speeds]
    for group, axes, lines in _line_plots(loaded, styles, *_LOADS):
        for style, line in lines:
            points = [(_middle(speeds[key(row)]), _middle(row)) for row in line]
            axes.plot(*zip(*points, strict=True), **style)
            for row, point in zip(line, points, strict=True):
                level = f"{_level(row):g}"
                axes.annotate(level, point, xytext=(5, 5), textcoords="offset points", fontsize=8)
        axes.margins(x=0.1)
        _scale_latency(axes, lines)
        axes.set(xlabel=next(iter(speeds.values())).unit, ylabel="median latency, ms")
        caption = "Down and to the right is better. Numbers at the points: concurrency, or arrivals per second."
        yield f"Latency over throughput, {group}", caption, axes.figure


_PLOTS: tuple[_Draw, ...] = (_accuracy_over_time, _ratios, _waterfalls, _over_load, _over_throughput)

# The style of a line, and its rows in the order of their load.
_Line = tuple[dict[str, Any], list[Measurement]]


def _line_plots(
    loaded: Sequence[Measurement], styles: _Styles, *levels: str
) -> Iterator[tuple[str, Any, Sequence[_Line]]]:
    """Groups where a line has several levels of load, each with new axes; the legend is added afterwards."""
    for group in dict.fromkeys(row.group for row in loaded):
        lines = _lines([row for row in loaded if row.group == group], *levels)
        if not any(len(line) > 1 for line in lines.values()):
            continue
        subjects = [line[0].subject for line in lines.values()]
        styled: list[_Line] = []
        for index, (label, line) in enumerate(lines.items()):
            style = {**styles[subjects[index]], "label": label}
            # Lines of one subject differ in colour and dashes.
            if len(set(subjects)) < len(subjects):
                style["color"] = f"C{index % 10}"
            style["linestyle"] = ("-", "--", ":", "-.")[subjects[:index].count(subjects[index]) % 4]
            styled.append((style, line))
        axes = _axes(3.6)
        yield group, axes, styled


def _lines(rows: Sequence[Measurement], *levels: str) -> dict[str, list[Measurement]]:
    """Rows that differ only in the level of load, by the label that distinguishes them from the others."""
    # The name of a run says nothing beyond its load.
    names = {name for row in rows for name in row.factors} - {*levels, "run", "at"}
    varying = sorted(name for name in names if len({row.factors.get(name) for row in rows}) > 1)
    loops = {"rate" in row.factors for row in rows}
    lines: dict[str, list[Measurement]] = {}
    for row in rows:
        values = ((name, row.factors[name]) for name in varying if name in row.factors)
        parts = [row.subject, *(value if isinstance(value, str) else f"{name} {value:g}" for name, value in values)]
        if len(loops) > 1:
            parts.append("open loop" if "rate" in row.factors else "closed loop")
        lines.setdefault(", ".join(parts), []).append(row)
    for line in lines.values():
        line.sort(key=_level)
    return lines


def _level(row: Measurement) -> float:
    return next(float(row.factors[factor]) for factor in _LOADS if factor in row.factors)


def _axes(height: float) -> Any:
    """Axes of a new figure, `height` inches high without its legend."""
    return Figure(figsize=(6.4, height), layout="constrained").subplots()


def _add_legend(axes: Any) -> None:
    """Above the plot, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 34 else 2
    figure = axes.figure
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(labels) // columns))
    figure.legend(handles, labels, ncols=columns, loc="outside upper left")


def _scale_latency(axes: Any, lines: Sequence[_Line]) -> None:
    """Start the y axis at 0, or make it logarithmic where medians differ by orders of magnitude; add the legend."""
    values = [_middle(row) for _, line in lines for row in line]
    if min(values) > 0 and max(values) / min(values) > _LOGARITHMIC_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    _add_legend(axes)


def _middle(row: Measurement) -> float:
    return quantile(row, 0.5) or 0.0


def _bars(estimate: Estimate) -> list[list[float]] | None:
    """The interval as matplotlib wants it: distances below and above the value."""
    if estimate.low is None or estimate.high is None:
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element, the same bytes each time; `name` makes its ids unique in the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    return re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg[svg.index("<svg") :])
