"""Reading and writing files without losing any: atomic writes, checks before long work, checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from csa2glmha.errors import OutputError

_CHUNK_BYTES = 1 << 20
_TEMPORARY_PREFIX = ".csa2glmha-"

_ADVICE = {
    errno.ENOSPC: "free some space, or choose another place with -o",
    errno.EDQUOT: "free some space, or choose another place with -o",
    errno.EACCES: "make the folder writable, or choose another place with -o",
    errno.EPERM: "make the folder writable, or choose another place with -o",
    errno.EROFS: "the disk is read-only, choose another place with -o",
}


@contextlib.contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``final`` that becomes ``final`` if the block ends well.

    The temporary name is hidden, unique and has the suffix of ``final``. The block must create that
    one file and close it. After any exception in the block (KeyboardInterrupt and SystemExit too) the
    temporary file is removed and an earlier ``final`` is as it was. An earlier ``final`` is replaced
    without a question: call :func:`ensure_writable` or :func:`prepare_output_dir` first.

    Raises:
        OutputError: an ``OSError`` in the block or in the replacement (disk full, no permission, ...).
    """
    # The name does not build on final's: a long but legal one would grow beyond the system's limit.
    temporary = final.with_name(f"{_TEMPORARY_PREFIX}{uuid.uuid4().hex}{final.suffix}")
    try:
        try:
            yield temporary
            _flush_to_disk(temporary)
            temporary.replace(final)
        finally:
            # The first error counts; one from the tidying must not hide it.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _output_error(final, error) from error


def prepare_output_dir(path: Path, names: Sequence[str], overwrite: bool) -> None:
    """Create the folder ``path`` (parents too) and check that the files ``names`` can be written in it.

    Meant to be called before long work starts, so that nothing is computed that cannot be saved.

    Raises:
        OutputError: ``path`` is no folder or cannot be created or written; one of ``names`` exists and
            ``overwrite`` is false, or exists and is a folder.
    """
    _make_writable_folder(path)
    existing = [name for name in names if os.path.lexists(path / name)]
    if existing and not overwrite:
        raise OutputError(
            f"output folder {str(path)!r} already holds {_quoted(existing)}: "
            "pass --overwrite to replace, or choose another folder with -o"
        )
    folders = [name for name in existing if (path / name).is_dir()]
    if folders:
        raise OutputError(
            f"output folder {str(path)!r} holds folders where files are to be written: {_quoted(folders)}; "
            "move them away, or choose another folder with -o"
        )


def ensure_writable(path: Path, overwrite: bool) -> None:
    """Check that the file ``path`` can be written, creating its folder (parents too) if need be.

    Raises:
        OutputError: ``path`` is a folder; it exists and ``overwrite`` is false; its folder cannot be
            created or written.
    """
    if path.is_dir():
        raise OutputError(f"output {str(path)!r} is a folder: give a file name with -o")
    _make_writable_folder(path.parent)
    if os.path.lexists(path) and not overwrite:
        raise OutputError(
            f"output {str(path)!r} already exists: pass --overwrite to replace it, "
            "or choose another name with -o"
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 lower-case hexadecimal digits. Raises OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[Path]:
    """Yield a path of an existing file that libraries written in C++ find: they take names as UTF-8.

    That is the path itself, or a link to it where the file's name or folder is in another encoding, as after
    unpacking old archives, or with LC_ALL=C.
    """
    try:
        foreign = os.name != "nt" and str(path).encode() != os.fsencode(path)
    except UnicodeEncodeError:
        foreign = True
    if not foreign:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX) as folder:
        link = Path(folder, "file")
        link.symlink_to(path.resolve())
        yield link


def digest_of(folder: Path) -> str:
    """Hash of the names and sizes of a folder's files, in hexadecimal: what changes when they do, fast."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(os.fsencode(f"{path.relative_to(folder)}\0{path.stat().st_size}\0"))
    return digest.hexdigest()


def _make_writable_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Only a real write tells: permission bits say nothing of read-only disks, quotas or the superuser.
        with tempfile.TemporaryFile(dir=path, prefix=_TEMPORARY_PREFIX):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(
            f"output folder {str(path)!r} cannot be made, a file of that name is in the way: "
            "choose another place with -o"
        ) from error
    except OSError as error:
        raise _output_error(path, error) from error


def _flush_to_disk(path: Path) -> None:
    # Some file systems report a full disk only here, and a crash after the rename must not leave
    # an empty file under the final name.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _output_error(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0, "choose another place with -o")
    return OutputError(f"cannot write {str(path)!r}: {reason}; {advice}")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
