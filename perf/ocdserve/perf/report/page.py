# SPDX-License-Identifier: Apache-2.0
"""Results as one self-contained HTML page; the same results give the same bytes."""

from html import escape
from importlib.resources import files
from string import Template

from ocdserve.perf.report.plots import plots
from ocdserve.perf.report.tables import Table, environment_rows, tables, title_of
from ocdserve.perf.report.targets import target_table
from ocdserve.perf.series.results import Results

# Classes of cells with a verdict; a note may follow it after a colon.
_VERDICTS = {
    "met": "good",
    "missed": "bad",
    "too close to tell": "open",
    "too few samples": "open",
}


def page(results: Results) -> str:
    """The page: for each section its plots and tables, and at the end the environment."""
    judged = target_table(results)
    drawn, tabled = plots(results), tables(results)
    facts = Table("environment", "Machine and software", (), ("", ""), environment_rows(results.environment), 2)
    sections = {"targets": ("Targets", _table(judged))} if judged else {}
    for section in results.sections:
        figures = "\n".join(
            f"<figure><figcaption><h3>{escape(plot.title)}</h3>{escape(plot.caption)}</figcaption>\n{plot.svg}</figure>"
            for plot in drawn
            if plot.section == section
        )
        content = "\n".join(_table(table) for table in tabled if table.section == section)
        sections[section] = title_of(section), f'<div class="plots">{figures}</div>\n{content}'
    sections["environment"] = "Environment", _table(facts)
    return Template(files(__package__).joinpath("page.html").read_text("utf-8")).substitute(
        title=escape(f"Benchmark of {results.created[:10]}"),
        summary=_summary(results),
        nav="".join(f'<a href="#{escape(name)}">{escape(title)}</a>' for name, (title, _) in sections.items()),
        sections="\n".join(
            f'<h2 id="{escape(name)}">{escape(title)}</h2>\n{content}' for name, (title, content) in sections.items()
        ),
    )


def _summary(results: Results) -> str:
    environment = results.environment
    cores = f"{environment.cores} {'core' if environment.cores == 1 else 'cores'}"
    machine = f"{environment.cpu}, {cores}, {environment.memory_gib:g} GiB; {results.created}"
    lines = [f'<p class="quiet">{escape(machine)}</p>']
    if results.command:
        lines.append(f"<p><code>ocdserve {escape(results.command)}</code></p>")
    load = environment.load_average[0]
    if load > environment.cores / 2:
        lines.append(
            f'<p class="notice">The machine was busy (load average {load:.2f} on {cores}): rely on the ratios, '
            "which were measured in alternation, rather than on the times.</p>"
        )
    return "\n".join(lines)


def _table(table: Table) -> str:
    rows = [_row("th", table.headers, table.text_columns), *(_row("td", row, table.text_columns) for row in table.rows)]
    notes = f'<p class="quiet">{escape(" ".join(table.notes))}</p>'
    return f'<div class="table"><h3>{escape(table.title)}</h3>{notes}\n<table>\n{"".join(rows)}</table></div>'


def _row(tag: str, cells: tuple[str, ...], text_columns: int) -> str:
    kinds = [
        "text" if column < text_columns else _VERDICTS.get(cell.partition(":")[0], "")
        for column, cell in enumerate(cells)
    ]
    shown = (f'<{tag} class="{kind}">{escape(cell)}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))
    return f"<tr>{''.join(shown)}</tr>\n"
