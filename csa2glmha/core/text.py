"""Text from outside, such as names of files and of what is in them, made fit to be shown."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: What no page and no terminal has a place for: control characters (tab and line feed excepted), characters
#: that end a line or turn the direction of writing, and the halves of characters that undecodable file names
#: hold.
_UNWRITABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)

_LONGEST_NAME = 100


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


def shown(name: object) -> str:
    """The name as it is if it is short and printable, otherwise quoted, with escapes, and cut."""
    text = str(name)
    if len(text) <= _LONGEST_NAME and text.isprintable():
        return text
    return quoted(text)


def quoted(name: object, longest: int = _LONGEST_NAME) -> str:
    """The name in quotes, control characters as escapes, cut where it is long."""
    text = repr(name[: longest + 1] if isinstance(name, (str, bytes)) else name)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def listed(names: Iterable[object], limit: int = 5) -> str:
    """The first few names in quotes, and how many more there are."""
    all_names = list(names)
    first = ", ".join(quoted(name, 60) for name in all_names[:limit])
    return first + (f" and {len(all_names) - limit} more" if len(all_names) > limit else "")


def first_line(error: BaseException) -> str:
    """What an error of another library says first, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
