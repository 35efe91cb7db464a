"""Text from outside, such as names of files, in reports."""

from __future__ import annotations

import re

from csa2glmha.core.text import one_line

_MARKDOWN = re.compile(r"[\\`*|<\[\]]")


def markdown_text(text: str) -> str:
    """The text as Markdown that shows it, on one line, in a table too."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))
