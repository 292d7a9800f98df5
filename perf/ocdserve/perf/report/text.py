# SPDX-License-Identifier: Apache-2.0
"""Results as text for the terminal and as Markdown; both depend on the results only."""

from collections.abc import Sequence

from ocdserve.perf.report.tables import Table, environment_rows, tables, title_of
from ocdserve.perf.report.targets import target_table
from ocdserve.perf.series.results import Results


def text(results: Results) -> str:
    """Tables in columns, the environment first."""
    width = max(len(name) for name, _ in environment_rows(results.environment))
    environment = [f"{name:{width}}  {value}" for name, value in environment_rows(results.environment)]
    judged = target_table(results)
    shown = [*tables(results), *([judged] if judged else [])]
    return "\n\n".join(["\n".join(environment), *map(table_text, shown)])


def markdown(results: Results) -> str:
    """A document with the same tables."""
    lines = [f"# Benchmark of {results.created[:10]}", ""]
    if results.command:
        lines += [f"`ocdserve {results.command}`", ""]
    lines += ["| environment | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in environment_rows(results.environment)]
    if judged := target_table(results):
        lines += ["", f"## {judged.title}", *table_markdown(judged)]
    for section in results.sections:
        lines += ["", f"## {title_of(section)}"]
        for table in tables(results):
            if table.section == section:
                lines += table_markdown(table)
    return "\n".join(lines) + "\n"


def table_text(table: Table) -> str:
    """A table in columns as wide as their widest cell, its title and notes above."""
    lines = [table.headers, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.headers))]
    return "\n".join([table.title, *table.notes, *(_aligned(line, widths, table.text_columns) for line in lines)])


def table_markdown(table: Table) -> list[str]:
    """The lines of the table in Markdown, after an empty one."""
    rules = ["---" if column < table.text_columns else "---:" for column in range(len(table.headers))]
    return [
        "",
        f"**{table.title}.** {' '.join(table.notes)}".rstrip(),
        "",
        *(f"| {' | '.join(map(_cell, line))} |" for line in (table.headers, rules, *table.rows)),
    ]


def _aligned(cells: Sequence[str], widths: Sequence[int], text_columns: int) -> str:
    """A line with columns of these widths, numbers aligned to the right."""
    return "  ".join(
        cell.ljust(width) if column < text_columns else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
