"""Student files of earlier formats, brought up to the present one step by step.

The tensors' names and the metadata belong to the format: a change of either makes a new one, with a step in
:data:`MIGRATIONS` and a file of the format before it in tests/checkpoint/students.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """What a student file holds: tensors by name, and metadata."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


Step = Callable[[Stored], Stored]


def with_tensors_renamed(stored: Stored, names: Mapping[str, str]) -> Stored:
    """The same file with other names of parameters: the last parts of the tensors' names, old to new."""

    def renamed(name: str) -> str:
        layer, dot, last = name.rpartition(".")
        return layer + dot + names.get(last, last)

    return Stored({renamed(name): value for name, value in stored.tensors.items()}, stored.metadata)


def _queries_and_keys(stored: Stored) -> Stored:
    """Format 1 called queries and keys "rows" and "columns"."""
    names = {"expand_rows": "expand_queries", "expand_columns": "expand_keys", "row_scale": "query_scale"}
    return with_tensors_renamed(stored, names)


def _widths(stored: Stored) -> Stored:
    """Format 2 had all feed-forward networks in full width."""
    return Stored(stored.tensors, {"feed_forwards": "{}", **stored.metadata})


def _skips(stored: Stored) -> Stored:
    """Format 3 had all layers."""
    return Stored(stored.tensors, {"skipped": "[]", **stored.metadata})


#: Step n - 1 makes files of format n into files of format n + 1.
MIGRATIONS: tuple[Step, ...] = (_queries_and_keys, _widths, _skips)
FORMAT_VERSION = len(MIGRATIONS) + 1


def format_of(metadata: Mapping[str, str]) -> int | None:
    """The format that a file names; None where that is none that there is up to now."""
    known = {str(number): number for number in range(1, FORMAT_VERSION + 1)}
    return known.get(str(metadata.get("format_version")))


def brought_up_to_date(stored: Stored, version: int, steps: tuple[Step, ...] = MIGRATIONS) -> Stored:
    """A file of an earlier format as one of the present one.

    Args:
        stored: the file.
        version: its format.
        steps: of all formats.
    """
    for step in steps[version - 1 :]:
        stored = step(stored)
    return Stored(stored.tensors, {**stored.metadata, "format_version": str(len(steps) + 1)})
