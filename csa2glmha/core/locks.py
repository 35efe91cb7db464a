"""One command at a time for one output.

Two at once would leave the report of one beside the student of the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from csa2glmha.core.errors import OutputError
from csa2glmha.core.files import make_writable_folder, output_error, remove_leftovers
from csa2glmha.core.progress import say

#: Hidden, and there only while a command works, or after it was killed.
LOCK_FILE = ".csa2glmha.lock"


@contextlib.contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Keep other commands from writing into an output folder, which is made if it is not there.

    A folder that was made and is still empty in the end is removed.

    Raises:
        OutputError: another command is writing into it, or it cannot be written.
    """
    with _made(folder), _held(folder / LOCK_FILE, f"output folder {str(folder)!r}"):
        yield


@contextlib.contextmanager
def exclusive_file(path: Path) -> Iterator[None]:
    """Keep other commands from writing an output file; they may write others beside it.

    Raises:
        OutputError: another command is writing it, or its folder cannot be written.
    """
    # Not the name itself: a long but legal one would grow beyond the system's limit.
    key = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    with _made(path.parent), _held(path.with_name(f".csa2glmha-{key}.lock"), f"output {str(path)!r}"):
        yield


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder with its parents; those that were not there are removed again if they are left empty."""
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    make_writable_folder(folder)
    try:
        yield
    finally:
        for each in missing:
            with contextlib.suppress(OSError):
                each.rmdir()


@contextlib.contextmanager
def _held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock of the operating system, which ends with the process, however that ends."""
    from filelock import FileLock, Timeout  # not at the top: --help need not wait for it

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
        held = path.lstat()
    except Timeout:
        raise OutputError(
            f"{what} is in use: another csa2glmha is writing there; wait until it has ended, or choose "
            "another place with -o"
        ) from None
    except OSError as error:
        raise output_error(path, error) from error
    except NotImplementedError:
        say(f"{path.parent}: this disk knows no locks; do not let two commands write there at once")
        yield
        return
    try:
        remove_leftovers(path.parent)
        yield
    finally:
        # While it is held: whoever opened it meanwhile finds out that it is gone, and makes a new one.
        # Windows does not allow it. A folder that was replaced meanwhile may hold somebody else's.
        with contextlib.suppress(OSError):
            if os.name == "posix" and os.path.samestat(held, path.lstat()):
                path.unlink()
        lock.release()
