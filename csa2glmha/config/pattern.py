"""How names of inputs and their targets differ, as the user writes it."""

from __future__ import annotations

import re
import unicodedata

from csa2glmha.core.errors import UsageError

#: Of the files that can be inputs or targets.
SUFFIX = re.compile(r"\.(png|jpe?g|bmp|tiff?|webp|ppm|pgm|mat|npy|npz)$", re.I)
#: For messages.
PATTERN_EXAMPLE = "--pair '{}_input={}_gt', many to one '{}_*={}', or --pair blur=sharp for folders"


def parse_pattern(pattern: str) -> tuple[str, str]:
    """Read "A=B": how an input's name and its target's differ.

    With ``{}`` on both sides, that is the part they share, and ``*`` is any text: ``{}_*={}``. Without,
    A and B are names of folders on the way to the files: ``blur=sharp``.

    Raises:
        UsageError: it is neither.
    """
    sides = [SUFFIX.sub("", side.strip().strip("/")) for side in pattern.split("=")]
    counts = {side.count("{}") for side in sides}
    if len(sides) != 2 or not all(sides) or counts not in ({0}, {1}) or (counts == {0} and "*" in pattern):
        raise UsageError(
            f"--pair {pattern!r}: is no INPUT=TARGET; give how the names differ, such as {PATTERN_EXAMPLE}"
        )
    return name_key(sides[0]), name_key(sides[1])


def name_key(name: str) -> str:
    """A name as it is compared: whatever its case, and however its accents are stored."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
