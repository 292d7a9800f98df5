# SPDX-License-Identifier: Apache-2.0
"""Results as one HTML page that needs nothing else; the same results give the same bytes."""

from collections.abc import Iterator
from html import escape
from importlib.resources import files

from ocdserve.perf.report.plots import Plot, plots
from ocdserve.perf.report.tables import Table, environment_rows, tables, title_of
from ocdserve.perf.report.targets import target_table
from ocdserve.perf.series.results import Results

__all__ = ["page"]

# Cells that stand out, and their class.
_VERDICTS = {"met": "good", "missed": "bad", "too close to tell": "open", "too few samples": "open"}


def page(results: Results) -> str:
    """The page: for each section its plots and tables, and at the end the environment."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Results) -> Iterator[str]:
    environment = results.environment
    style = files(__package__).joinpath("page.css").read_text("utf-8")
    title = f"Benchmark of {results.created[:10]}"
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>ocdserve: {escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<header>"
    yield f"<h1>{escape(title)}</h1>"
    cores = f"{environment.cores} {'core' if environment.cores == 1 else 'cores'}"
    yield f'<p class="quiet">{escape(environment.cpu)}, {cores}, {environment.memory_gib:g} GiB; {results.created}</p>'
    if results.command:
        yield f"<p><code>ocdserve {escape(results.command)}</code></p>"
    load = environment.load_average[0]
    if load > environment.cores / 2:
        yield (
            f'<p class="notice">The machine had other work (load average {load:.2f} on {cores}): read the ratios, '
            "which were measured in turns, rather than the times.</p>"
        )
    judged = target_table(results)
    links = [
        *([("targets", "Targets")] if judged else []),
        *((section, title_of(section)) for section in results.sections),
        ("environment", "Environment"),
    ]
    yield "<nav>"
    yield from (f'<a href="#{escape(name)}">{escape(text)}</a>' for name, text in links)
    yield "</nav>"
    yield "</header>\n<main>"
    if judged:
        yield '<section>\n<h2 id="targets">Targets</h2>'
        yield from _table(judged)
        yield "</section>"
    drawn, tabled = plots(results), tables(results)
    for section in results.sections:
        yield f'<section>\n<h2 id="{escape(section)}">{escape(title_of(section))}</h2>'
        figures = [_figure(plot) for plot in drawn if plot.section == section]
        if figures:
            yield '<div class="plots">'
            yield from figures
            yield "</div>"
        for table in tabled:
            if table.section == section:
                yield from _table(table)
        yield "</section>"
    yield '<section>\n<h2 id="environment">Environment</h2>\n<div class="card"><table class="facts"><tbody>'
    for name, value in environment_rows(environment):
        yield f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
    yield "</tbody></table></div>\n</section>\n</main>"
    yield "<footer>Intervals are bootstrap intervals at 95 % confidence. Ratios are medians of pairs of the same case."
    yield "</footer>\n</body>\n</html>"


def _figure(plot: Plot) -> str:
    caption = f"<figcaption><h3>{escape(plot.title)}</h3>{escape(plot.caption)}</figcaption>"
    return f'<figure class="card">{caption}\n{plot.svg}</figure>'


def _table(table: Table) -> Iterator[str]:
    yield f'<div class="card table">\n<h3>{escape(table.title)}</h3>'
    if table.notes:
        yield f'<p class="quiet">{escape(" ".join(table.notes))}</p>'
    classes = [' class="text"' if column < table.text_columns else "" for column in range(len(table.headers))]
    heads = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(classes, table.headers, strict=True))
    yield f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>'
    group = None
    has_groups = len({row[0] for row in table.rows}) < len(table.rows)
    for row in table.rows:
        # A line between what was measured on one thing and on the next.
        begins = ' class="first"' if has_groups and group not in (None, row[0]) else ""
        group = row[0]
        cells = "".join(_cell(kind, text) for kind, text in zip(classes, row, strict=True))
        yield f"<tr{begins}>{cells}</tr>"
    yield "</tbody></table></div>\n</div>"


def _cell(kind: str, text: str) -> str:
    mark = _VERDICTS.get(text)
    return f'<td{kind}><span class="{mark}">{text}</span></td>' if mark else f"<td{kind}>{escape(text)}</td>"
