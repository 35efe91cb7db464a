"""report.md: the sections of a report as Markdown, the tables of charts in place of the charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from csa2glmha.core.lines import markdown_text
from csa2glmha.report.blocks import Block, Cell, Facts, Fold, Group, Heading, Named, Note, Section, Table
from csa2glmha.report.schema import Report
from csa2glmha.report.sections.document import document_of

#: Signs of the page, and what plain text has in their place.
_PLAIN = str.maketrans({"\u2212": "-", "\u00d7": "x", "\u2192": "->", "\u2013": "-", "\u221e": "inf"})


def markdown(report: Report) -> str:
    """The report for people."""
    document = document_of(report)
    summary = document.summary
    lines = [
        f"# {markdown_text(document.title)}",
        "",
        f"{_text(', '.join(summary.facts))}. Made by {_text(document.made_by)} on {_text(report.device)}.",
        "",
        _text(summary.lead),
        *(["", _text(summary.search)] if summary.search else []),
        "",
        *_table(summary.figures),
        *(line for words, file in summary.pictures for line in ("", f"![{words}]({file})")),
        *(line for note in summary.notes for line in ("", note)),
    ]
    for section in document.sections:
        lines += _section(section)
    return "\n".join([*lines, ""])


def _section(section: Section) -> list[str]:
    return ["", f"## {section.title}", *(line for block in section.blocks for line in _block(block))]


def _block(block: Block) -> list[str]:
    """Its lines, an empty one before them; none for what is drawn."""
    if isinstance(block, Note):
        return ["", _text(block.text)]
    if isinstance(block, Heading):
        return ["", f"{'#' * block.level} {_text(block.text)}"]
    if isinstance(block, Table):
        return ["", *_table(block)]
    if isinstance(block, Facts):
        return ["", *(f"- {name}: {_text(value)}" for name, value in block.pairs)]
    if isinstance(block, Fold) and block.too_long_for_text:
        return []
    if isinstance(block, (Fold, Group)):
        found = [line for each in block.blocks for line in _block(each)]
        # Headings of charts stand for nothing where the charts are left out.
        return found if any(line and not line.startswith("#") for line in found) else []
    return []


def _table(table: Table) -> list[str]:
    return markdown_table(
        [[_cell(cell) for cell in row] for row in table.rows], table.header, table.text_columns
    )


def _cell(cell: Cell) -> str:
    return (f"{cell.name}: {cell.detail}" if isinstance(cell, Named) else cell).translate(_PLAIN)


def _text(text: str) -> str:
    return markdown_text(text.translate(_PLAIN))


def markdown_table(rows: Iterable[Iterable[str]], header: Sequence[str], text_columns: int = 1) -> list[str]:
    """A table in Markdown, one line each; the text of the cells is shown as it is."""
    titles = [markdown_text(title.translate(_PLAIN)) for title in header]
    aligned = ["---" if index < text_columns else "---:" for index in range(len(titles))]
    return [
        f"| {' | '.join(titles)} |",
        f"|{'|'.join(aligned)}|",
        *(f"| {' | '.join(map(markdown_text, row))} |" for row in rows),
    ]
