"""Listing the files of a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from csa2glmha.core.errors import DataError
from csa2glmha.core.files import is_temporary

Files = list[tuple[str, Path]]


def list_files(folder: Path, suffixes: Collection[str], what: str, wanted: str) -> Files:
    """List the files below a folder as (path inside it with ``/``, path), sorted.

    Folders that are linked into it are searched too, each folder once.

    Args:
        folder: searched through, subfolders too.
        suffixes: lower case, with the dot; others are left out.
        what, wanted: how errors name the folder and what should be in it.

    Raises:
        DataError: it is no folder, or cannot be listed.
    """
    return list_with_foreign(folder, suffixes, {}, what, wanted)[0]


def list_with_foreign(
    folder: Path, suffixes: Collection[str], foreign: Mapping[str, str], what: str, wanted: str
) -> tuple[Files, list[tuple[Path, str]]]:
    """As :func:`list_files`, and the files of formats that are not read, each with the reason.

    ``foreign`` has the names of these formats by suffix, lower case, with the dot.
    """
    check_folder(folder, what, wanted)
    paths = sorted((path.relative_to(folder).as_posix(), path) for path in _walk(folder))
    found, left_out = [], []
    for name, path in paths:
        suffix = path.suffix.lower()
        if is_temporary(path.name):
            continue  # half of a file, where a run was killed
        if suffix in suffixes:
            found.append((name, path))
        elif suffix in foreign:
            left_out.append((path, f"{foreign[suffix]} is not read"))
    return found, left_out


def check_folder(folder: Path, what: str, wanted: str) -> None:
    """Raise DataError unless it is a folder; ``what`` and ``wanted`` are as in :func:`list_files`."""
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{what} {str(folder)!r} {problem}; give a folder with {wanted}")


def stem(name: str) -> str:
    """A name without its suffix: what pairs two files."""
    return name.rpartition(".")[0]


def digest_of(folder: Path) -> str:
    """Hash of the names and sizes of a folder's files, in hexadecimal: what changes when they do, fast."""
    digest = hashlib.sha256()
    for path in sorted(_walk(folder)):
        if path.is_file():
            digest.update(os.fsencode(f"{path.relative_to(folder)}\0{path.stat().st_size}\0"))
    return digest.hexdigest()


def _walk(folder: Path) -> Iterator[Path]:
    """All files: those of real folders first, so that a folder which is also linked keeps its own name."""
    root, seen, links = folder.resolve(), set[Path](), [folder]

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot list folder {error.filename!r}: {error.strerror}; check its permissions")

    while links:
        start = links.pop(0)
        # A link to a folder that holds this one would bring in all that lies around it.
        if start != folder and root.is_relative_to(start.resolve()):
            continue
        for parent, folders, names in os.walk(start, onerror=refuse):
            place = Path(parent).resolve()
            if place in seen:
                folders.clear()
                continue
            seen.add(place)
            yield from (Path(parent, name) for name in names)
            linked = sorted(name for name in folders if Path(parent, name).is_symlink())
            links += [Path(parent, name) for name in linked]
            folders[:] = sorted(set(folders) - set(linked))
