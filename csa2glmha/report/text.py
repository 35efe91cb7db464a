"""Text from outside, such as names of files, in reports."""

from __future__ import annotations

import re

#: What no page has a place for, and the halves of characters that undecodable file names hold.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_MARKDOWN = re.compile(r"[\\`*|<\[\]]")


def writable(text: str) -> str:
    """The text with U+FFFD for characters that no page can hold."""
    return _UNWRITABLE.sub("\ufffd", text)


def markdown_text(text: str) -> str:
    """The text as Markdown that shows it, on one line, in a table too."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(writable(text).split()))
