"""SVG as values: whatever is put into an element is escaped unless it is an element itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Union

import markupsafe
from markupsafe import Markup

from csa2glmha.core.text import writable

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})

Attribute = str | int | float | bool | None


Child = Union[str, None, Iterable["Child"]]  # noqa: UP007 - "|" takes no forward reference


def escape(text: object) -> Markup:
    """The text as markup that shows it; characters that no page can hold become U+FFFD."""
    if isinstance(text, Markup):
        return text
    return markupsafe.escape(writable(str(text)))


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
