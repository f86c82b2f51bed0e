"""A report as Markdown, for a pull request or a README: findings, text and the tables' first rows. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from bench import formatting
from bench.reports.document import Report, Section, Table

_ROWS = 40  # of one table; the HTML page and the CSV files have all


def summary_page(report: Report) -> str:
    """The report's findings, text and tables as Markdown; figures are left out."""
    parts = ["# Summary", *(f"- {finding}" for finding in report.findings)]
    for section in report.sections:
        if section.text or section.tables:
            parts += ["", *_section(section)]
    return "\n".join(parts) + "\n"


def _section(section: Section) -> Iterable[str]:
    yield f"{'#' * section.level} {section.title}"
    for text in section.text:
        yield ""
        yield text
    for table in section.tables:
        yield ""
        yield from _table(table)


def _table(table: Table) -> Iterable[str]:
    code = {number for number, name in enumerate(table.header) if name in table.code}
    rows = [
        [f"`{cell}`" if number in code and cell else cell for number, cell in enumerate(row)]
        for row in table.rows[:_ROWS]
    ]
    yield formatting.markdown_table(table.header, rows, table.numbers).rstrip()
    if len(table.rows) > _ROWS:
        yield ""
        yield f"({len(table.rows) - _ROWS} more rows in tables/{table.name}.csv)"
