"""Listing the files of a folder, and pairing them by name."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from csa2glmha.errors import DataError


def list_files(folder: Path, suffixes: Collection[str], what: str, wanted: str) -> list[tuple[str, Path]]:
    """List the files below a folder as (path inside it with ``/``, path), sorted.

    Args:
        folder: searched through, subfolders too.
        suffixes: lower case, with the dot; others are left out.
        what, wanted: how errors name the folder and what should be in it.

    Raises:
        DataError: it is no folder, or cannot be listed.
    """
    check_folder(folder, what, wanted)
    return sorted((path.relative_to(folder).as_posix(), path) for path in _walk(folder, suffixes))


def check_folder(folder: Path, what: str, wanted: str) -> None:
    """Raise DataError unless it is a folder; ``what`` and ``wanted`` are as in :func:`list_files`."""
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{what} {str(folder)!r} {problem}; give a folder with {wanted}")


def _walk(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot list folder {error.filename!r}: {error.strerror}; check its permissions")

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in names if Path(name).suffix.lower() in suffixes)


def stem(name: str) -> str:
    """What pairs two files: the path inside the folder without the suffix."""
    return name.rpartition(".")[0]
