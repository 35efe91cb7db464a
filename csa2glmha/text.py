"""Text from outside, such as names of files, made fit to be shown."""

from __future__ import annotations

import re

#: What no page and no terminal has a place for: control characters (tab and line feed excepted), characters
#: that end a line or turn the direction of writing, and the halves of characters that undecodable file names
#: hold.
_UNWRITABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def writable(text: str) -> str:
    """The text with U+FFFD for characters that cannot be shown or would change how the rest is shown."""
    return _UNWRITABLE.sub("\ufffd", text)


def one_line(text: str) -> str:
    """The same, on one line: a name with a line feed must not look like two messages."""
    return " ".join(writable(text).split())


def shortened(value: object, length: int = 80) -> str:
    """A value that somebody gave, as part of a message."""
    try:
        text = str(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= length else f"{text[: length - 3]}..."
