"""HTML and SVG as values: whatever is put into an element is escaped unless it is an element itself."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Union

from csa2glmha.core.text import writable

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})

Attribute = str | int | float | bool | None


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = Union[str, None, Iterable["Child"]]  # noqa: UP007 - "|" takes no forward reference


def escape(text: object) -> Markup:
    """The text as markup that shows it; characters that no page can hold become U+FFFD."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(writable(str(text)), quote=True))


def join(children: Child, between: str = "") -> Markup:
    """Children one after the other; None is nothing."""
    if children is None:
        return Markup("")
    if isinstance(children, str):
        return escape(children)
    return Markup(between.join(join(child, between) for child in children))


def breakable(name: str) -> Markup:
    """A file's name, which may be broken where its parts end."""
    return join(re.split("(?<=[_.-])", name), "<wbr>")


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """An element of HTML or SVG.

    Args:
        name: e.g. "p".
        children: text, which is escaped, elements, and iterables of both.
        attributes: ``class_`` stands for "class", ``aria_label`` for "aria-label"; None and False are left
            out, True is an attribute without a value.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    key = key if key == "viewBox" else key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {key}"
    text = f"{value:.6g}" if isinstance(value, float) else value
    return f' {key}="{escape(text)}"'


def table(
    rows: Iterable[Iterable[Child]], header: Iterable[Child], label: str, text_columns: int = 1
) -> Markup:
    """A table that scrolls sideways by itself where it is wider than the page.

    Args:
        rows: cells; the first of a row is its heading.
        header: the columns' headings.
        label: what the table is, for those who do not see it.
        text_columns: so many columns are text, the others numbers.
    """

    def kind(column: int) -> str | None:
        return None if column < text_columns else "number"

    head = [tag("th", cell, scope="col", class_=kind(index)) for index, cell in enumerate(header)]
    body = [
        tag(
            "tr",
            (
                tag("td", cell, class_=kind(index)) if index else tag("th", cell, scope="row")
                for index, cell in enumerate(row)
            ),
        )
        for row in rows
    ]
    inner = tag("table", tag("thead", tag("tr", head)), tag("tbody", body))
    return tag("div", inner, class_="scroll", role="region", aria_label=label, tabindex=0)


def details(summary: str, *children: Child) -> Markup:
    """Something that is folded away until it is asked for."""
    return tag("details", tag("summary", summary), children)
