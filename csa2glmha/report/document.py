"""The files of a report, and the tables that are printed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from csa2glmha.core.files import atomic_path
from csa2glmha.core.text import one_line, writable
from csa2glmha.report.headline import headline_rows
from csa2glmha.report.markdown import markdown
from csa2glmha.report.schema import Report
from csa2glmha.report.stored import JSON_FILE, write_record

MARKDOWN_FILE = "report.md"
REPORT_FILES = (JSON_FILE, MARKDOWN_FILE)


def render_table(rows: Iterable[Iterable[str]], header: Iterable[str]) -> str:
    """A plain-text table, the first column left-aligned."""
    table = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for index, row in enumerate(table):
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
        if index == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def headline(report: Report) -> str:
    """What `convert` prints at the end."""
    height, width = report.input_size
    title = f"{report.teacher.file} at {height} x {width}"
    return render_table(headline_rows(report), (title, "before", "after", "ratio"))


def write_report(output: Path, report: Report) -> None:
    """Write report.json and report.md into a folder.

    Raises:
        OutputError: a file cannot be written.
    """
    write_record(output, report)
    with atomic_path(output / MARKDOWN_FILE) as temporary:
        temporary.write_text(writable(markdown(report)), encoding="utf-8")
