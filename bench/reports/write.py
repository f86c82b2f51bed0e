"""Writes a report to files: the HTML page, the Markdown summary, figures as SVG and PNG, tables as CSV."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.reports import charts, html_page, markdown_page
from bench.reports.document import Report


def write_report(report: Report, target: Path, pages: Sequence[Path] = ()) -> None:
    """Writes the report into a folder; an earlier report's figures and tables are deleted.

    Args:
        report: the report.
        target: the folder; it is made if it is missing.
        pages: pages below the folder that the report links to.

    Raises:
        OSError: the folder cannot be written to.
    """
    for name in ("figures", "tables"):
        folder = target / name
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    drawn = {}
    for figure in report.figures():
        drawn[figure.name] = charts.svg(figure.specification)
        paper = charts.on_white(drawn[figure.name])
        (target / "figures" / f"{figure.name}.svg").write_text(paper)
        (target / "figures" / f"{figure.name}.png").write_bytes(charts.png(paper))
    for table in report.tables():
        with (target / "tables" / f"{table.name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([table.header, *table.rows])
    report.rows.to_csv(target / "tables" / "trials.csv", index=False)
    (target / "summary.md").write_text(markdown_page.summary_page(report))
    links = {path.stem: path.relative_to(target).as_posix() for path in pages}
    (target / "index.html").write_text(html_page.html_page(report, drawn, links))
