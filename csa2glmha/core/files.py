"""Reading and writing files without losing any: atomic writes, checks before long work, checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import psutil

from csa2glmha.core.errors import OutputError, UsageError

_CHUNK_BYTES = 1 << 20
_TEMPORARY_PREFIX = ".csa2glmha-"
_LEFTOVER = re.compile(r"\.csa2glmha-([0-9a-f]{8})([0-9a-f]{8})[0-9a-f]{16}(\.\w+)?")
#: Of our folders in TMPDIR.
_SCRATCH_PREFIX = "csa2glmha-"

_ADVICE = {
    errno.ENOSPC: "free some space, or choose another place with -o",
    errno.EDQUOT: "free some space, or choose another place with -o",
    errno.EACCES: "make the folder writable, or choose another place with -o",
    errno.EPERM: "make the folder writable, or choose another place with -o",
    errno.EROFS: "the disk is read-only, choose another place with -o",
}


@contextlib.contextmanager
def atomic_path(final: Path, before_replacing: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a temporary path beside ``final`` that becomes ``final`` if the block ends well.

    The temporary name is hidden, unique and has the suffix of ``final``. The block must create that
    one file and close it. After any exception in the block (KeyboardInterrupt and SystemExit too) the
    temporary file is removed and an earlier ``final`` is as it was. An earlier ``final`` is replaced
    without a question: call :func:`ensure_writable` or :func:`prepare_output_dir` first.
    A folder that has gone meanwhile is made again. ``before_replacing`` is called when the new file is
    whole and on the disk.

    Raises:
        OutputError: an ``OSError`` in the block or in the replacement (disk full, no permission, ...).
    """
    # The name does not build on final's: a long but legal one would grow beyond the system's limit.
    temporary = final.with_name(f"{_TEMPORARY_PREFIX}{_process_mark()}{uuid.uuid4().hex[:16]}{final.suffix}")
    try:
        try:
            # It was there when the work began. A result must not be lost because somebody tidied up.
            final.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush_to_disk(temporary)
            before_replacing()
            temporary.replace(final)
        finally:
            # The first error counts; one from the tidying must not hide it.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(final, error) from error


def _ways_out(by_command: bool) -> tuple[str, str]:
    """How an output is replaced, and how another is named: on the command line, or in a program."""
    return ("pass --overwrite", " with -o") if by_command else ("give overwrite=True", "")


def prepare_output_dir(path: Path, names: Sequence[str], overwrite: bool, by_command: bool = True) -> None:
    """Create the folder ``path`` (parents too) and check that the files ``names`` can be written in it.

    Meant to be called before long work starts, so that nothing is computed that cannot be saved.

    Args:
        path, names: the folder, and files in it.
        overwrite: they may be there already.
        by_command: the user gave a command line, whose options errors name.

    Raises:
        OutputError: ``path`` is no folder or cannot be created or written; one of ``names`` exists and
            ``overwrite`` is false, or exists and is a folder.
    """
    replace, elsewhere = _ways_out(by_command)
    make_writable_folder(path)
    existing = [name for name in names if os.path.lexists(path / name)]
    if existing and not overwrite:
        raise OutputError(
            f"output folder {str(path)!r} already holds {_quoted(existing)}: "
            f"{replace} to replace, or choose another folder{elsewhere}"
        )
    folders = [name for name in existing if (path / name).is_dir()]
    if folders:
        raise OutputError(
            f"output folder {str(path)!r} holds folders where files are to be written: {_quoted(folders)}; "
            f"move them away, or choose another folder{elsewhere}"
        )


def ensure_writable(path: Path, overwrite: bool, by_command: bool = True) -> None:
    """Check that the file ``path`` can be written, creating its folder (parents too) if need be.

    Args: as of :func:`prepare_output_dir`.

    Raises:
        OutputError: ``path`` is a folder; it exists and ``overwrite`` is false; its folder cannot be
            created or written.
    """
    replace, elsewhere = _ways_out(by_command)
    if path.is_dir():
        raise OutputError(f"output {str(path)!r} is a folder: give a file name{elsewhere}")
    make_writable_folder(path.parent)
    if os.path.lexists(path) and not overwrite:
        raise OutputError(
            f"output {str(path)!r} already exists: {replace} to replace it, or choose another name{elsewhere}"
        )


def check_not_inputs(outputs: Iterable[Path], *inputs: Path | None) -> None:
    """Refuse to replace a file that is read.

    Raises:
        UsageError: an output is one of the inputs.
    """
    given = [path.resolve() for path in inputs if path is not None]
    for output in outputs:
        if output.resolve() in given:
            raise UsageError(f"output {str(output)!r} is an input: choose another place with -o")


def check_room(folder: Path, needed: int, replaced: Iterable[Path]) -> None:
    """Refuse to begin what will not fit on the disk.

    Args:
        folder: where files are to be written; where it is not there yet, it is made on its parent's disk.
        needed: bytes.
        replaced: files and folders that will have gone by then.

    Raises:
        OutputError: there is too little room.
    """
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    room = _free(there)
    for path in replaced:
        files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
        room += sum(each.lstat().st_size for each in files if os.path.lexists(each))
    if room < needed:
        raise OutputError(
            f"output folder {str(folder)!r}: the results take about {needed / 1e6:.0f} MB, there is room for "
            f"{room / 1e6:.0f}; {_ADVICE[errno.ENOSPC]}"
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


def make_writable_folder(path: Path) -> None:
    """Create a folder (parents too) and check that files can be written in it.

    Raises:
        OutputError: they cannot.
    """
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
        raise output_error(path, error) from error


def check_folder(path: Path) -> None:
    """As :func:`make_writable_folder`, but nothing is left behind: the folder is for later.

    Raises:
        OutputError: files could not be written there.
    """
    there = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    make_writable_folder(there)


def open_own(path: Path, append: bool) -> TextIO:
    """Open a file of text to write to, which is nobody else's.

    Links are replaced, not followed: what they lead to is somebody else's file. What a hard link shares with
    another name is copied.

    Args:
        path: in a folder that exists.
        append: go on after what is there.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        there = None
    if there is not None and not (append and stat.S_ISREG(there.st_mode) and there.st_nlink == 1):
        kept = path.read_bytes() if append and stat.S_ISREG(there.st_mode) else b""
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(kept)
                if kept:
                    temporary.chmod(stat.S_IMODE(there.st_mode))
        except OutputError as error:
            assert isinstance(error.__cause__, OSError)
            raise error.__cause__ from None
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8")


@contextlib.contextmanager
def scratch_folder(needed: int, beside: Path | None = None) -> Iterator[Path]:
    """A folder for files that are not to last: in TMPDIR, or, where that has no room, in another folder.

    Args:
        needed: bytes, about.
        beside: that other folder; None: there is none.

    Raises:
        OutputError: neither can be written.
    """
    place, prefix = beside, _TEMPORARY_PREFIX
    try:
        usual = Path(tempfile.gettempdir())
        if beside is None or _free(usual) >= min(needed, _free(beside)):
            place, prefix = usual, _SCRATCH_PREFIX
    except OSError as error:  # there is none that can be written
        if beside is None:
            raise OutputError(
                "there is no folder for temporary files that can be written: set TMPDIR to one"
            ) from error
    try:
        folder = tempfile.TemporaryDirectory(dir=place, prefix=prefix, ignore_cleanup_errors=True)
    except OSError as error:
        raise output_error(Path(place or "", f"{prefix}files", "file"), error) from error
    with folder as name:
        yield Path(name)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that a disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that killed processes of this machine left in a folder."""
    for entry in folder.iterdir():
        match = _LEFTOVER.fullmatch(entry.name)
        if match is None or entry.is_symlink() or not entry.is_file():
            continue
        if match[1] == _machine_mark() and not psutil.pid_exists(int(match[2], 16)):
            with contextlib.suppress(OSError):
                entry.unlink()


def is_temporary(name: str) -> bool:
    """Whether a file of that name is one that is being written, or was when its writer was killed."""
    return name.startswith(_TEMPORARY_PREFIX)


def _process_mark() -> str:
    return f"{_machine_mark()}{os.getpid():08x}"


def _machine_mark() -> str:
    # Disks are shared between machines, and folders between containers.
    return hashlib.sha256(platform.node().encode(errors="replace")).hexdigest()[:8]


def _flush_to_disk(path: Path) -> None:
    # Some file systems report a full disk only here, and a crash after the rename must not leave
    # an empty file under the final name.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def output_error(path: Path, error: OSError) -> OutputError:
    """What failed, and what can be done about it, in a line."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0, "choose another place with -o")
    if any(parent.name.startswith(_SCRATCH_PREFIX) for parent in path.parents):
        advice = "free some space there, or set TMPDIR to a folder on another disk"
    return OutputError(f"cannot write {str(path)!r}: {reason}; {advice}")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
