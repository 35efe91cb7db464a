"""A look at a TIFF file's chain of directories before a reader follows it."""

from __future__ import annotations

import struct
from typing import BinaryIO

#: A directory holds some twenty tags, of private ones a hundred; a cube has a page for every band.
_MOST_TAGS, _MOST_PAGES = 1000, 10_000


def check_directories(stream: BinaryIO) -> None:
    """Raise ValueError for a chain that a reader would follow for minutes: a loop, or one into the pixels.

    The stream is read from its beginning, and is left anywhere.
    """
    stream.seek(0)
    head = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        raise ValueError("no TIFF file")
    big = struct.unpack(f"{order}H", head[2:4])[0] == 43
    count_form, offset_form, tag_bytes = ("Q", "Q", 20) if big else ("H", "I", 12)
    (offset,) = struct.unpack_from(f"{order}{offset_form}", head, 8 if big else 4)
    seen: set[int] = set()
    while offset:
        if offset in seen or len(seen) >= _MOST_PAGES:
            raise ValueError("its directories form a loop, or there are too many")
        seen.add(offset)
        stream.seek(offset)
        (tags,) = struct.unpack(f"{order}{count_form}", _exactly(stream, 8 if big else 2))
        if tags > _MOST_TAGS:
            raise ValueError(f"a directory of {tags} tags")
        stream.seek(tags * tag_bytes, 1)
        (offset,) = struct.unpack(f"{order}{offset_form}", _exactly(stream, 8 if big else 4))


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise ValueError("a directory that is cut off")
    return data
