from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from csa2glmha.core.errors import OutputError, UsageError
from csa2glmha.core.files import (
    atomic_path,
    check_folder,
    check_not_inputs,
    check_room,
    ensure_writable,
    is_disk_full,
    open_own,
    output_error,
    prepare_output_dir,
    remove_leftovers,
    scratch_folder,
    sha256_of,
)
from csa2glmha.data.folders import list_files


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def message_of(caught: pytest.ExceptionInfo[OutputError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_atomic_path_writes_beside_and_replaces(tmp_path: Path) -> None:
    final = tmp_path / "a result.json"
    final.write_text("old")
    with atomic_path(final) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".json"
        assert temporary.name.startswith(".")
        temporary.write_text("new")
        assert final.read_text() == "old"
    assert final.read_text() == "new"
    assert entries(tmp_path) == ["a result.json"]


def test_atomic_path_names_are_unique(tmp_path: Path) -> None:
    final = tmp_path / "x"
    with atomic_path(final) as first, atomic_path(final) as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")


def test_atomic_path_with_longest_legal_name(tmp_path: Path) -> None:
    final = tmp_path / ("n" * 250 + ".json")
    with atomic_path(final) as temporary:
        temporary.write_text("x")
    assert final.read_text() == "x"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), ValueError("bad")])
def test_atomic_path_leaves_nothing_after_an_exception(tmp_path: Path, error: BaseException) -> None:
    final = tmp_path / "out.bin"
    final.write_bytes(b"old")
    with pytest.raises(type(error)) as caught, atomic_path(final) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert caught.value is error
    assert final.read_bytes() == b"old"
    assert entries(tmp_path) == ["out.bin"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "writable"), (errno.EIO, "choose another place")],
)
def test_atomic_path_turns_oserror_into_one_line(tmp_path: Path, number: int, advice: str) -> None:
    final = tmp_path / "out.bin"
    with pytest.raises(OutputError) as caught, atomic_path(final) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(number, os.strerror(number))
    message = message_of(caught)
    assert str(final) in message
    assert os.strerror(number) in message
    assert advice in message
    assert entries(tmp_path) == []


def test_atomic_path_disk_full_found_at_the_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    final = tmp_path / "out.bin"
    final.write_bytes(b"old")
    with pytest.raises(OutputError, match="free some space"), atomic_path(final) as temporary:
        temporary.write_bytes(b"new")
    assert final.read_bytes() == b"old"
    assert entries(tmp_path) == ["out.bin"]


def test_atomic_path_onto_a_folder(tmp_path: Path) -> None:
    final = tmp_path / "taken"
    final.mkdir()
    with pytest.raises(OutputError, match="taken"), atomic_path(final) as temporary:
        temporary.write_bytes(b"new")
    assert entries(tmp_path) == ["taken"]


def test_prepare_output_dir_creates_parents_and_leaves_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b c"
    prepare_output_dir(folder, ["student.onnx"], overwrite=False)
    prepare_output_dir(folder, ["student.onnx"], overwrite=False)
    assert entries(folder) == []


def test_prepare_output_dir_names_all_and_only_what_exists(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("mine")
    (tmp_path / "report.md").symlink_to(tmp_path / "gone")
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(OutputError) as caught:
        prepare_output_dir(tmp_path, ["student.onnx", "report.json", "report.md"], overwrite=False)
    message = message_of(caught)
    assert "'report.json', 'report.md'" in message
    assert "student.onnx" not in message
    assert "other.txt" not in message
    assert "--overwrite" in message
    assert "-o" in message
    prepare_output_dir(tmp_path, ["student.onnx", "report.json", "report.md"], overwrite=True)
    assert (tmp_path / "report.json").read_text() == "mine"


def test_prepare_output_dir_overwrite_does_not_cover_folders(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OutputError, match=r"folders .*'report\.json'"):
        prepare_output_dir(tmp_path, ["report.json"], overwrite=True)


@pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
def test_prepare_output_dir_where_a_file_is(tmp_path: Path, below: str) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(OutputError, match="in the way") as caught:
        prepare_output_dir(taken / below, [], overwrite=True)
    message_of(caught)
    assert taken.read_text() == "mine"


def test_prepare_output_dir_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(**kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Permission bits do not stop the superuser, who may be running this test.
    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    with pytest.raises(OutputError, match="make the folder writable") as caught:
        prepare_output_dir(tmp_path, [], overwrite=False)
    assert str(tmp_path) in message_of(caught)


def test_ensure_writable(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.onnx"
    ensure_writable(path, overwrite=False)
    assert entries(tmp_path / "new") == []
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"out\.onnx' already exists: pass --overwrite") as caught:
        ensure_writable(path, overwrite=False)
    message_of(caught)
    ensure_writable(path, overwrite=True)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_ensure_writable_refuses_a_folder(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        ensure_writable(tmp_path, overwrite)


def test_ensure_writable_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OutputError, match="in the way"):
        ensure_writable(tmp_path / "taken" / "out.onnx", overwrite=True)


def test_sha256_of(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    data = bytes(range(256)) * 10_000  # more than one chunk
    path.write_bytes(data)
    assert sha256_of(path) == hashlib.sha256(data).hexdigest()


# --- files that are ours alone


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("kind", ["link", "dangling", "link to a folder", "hard link", "pipe"])
def test_what_leads_elsewhere_is_replaced(tmp_path: Path, append: bool, kind: str) -> None:
    precious, path = tmp_path / "precious", tmp_path / "log"
    precious.write_text("precious\n")
    if kind == "link":
        path.symlink_to(precious)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "none")
    elif kind == "link to a folder":
        path.symlink_to(tmp_path)
    elif kind == "hard link":
        os.link(precious, path)
    else:
        os.mkfifo(path)
    with open_own(path, append) as file:
        file.write("new\n")
    assert precious.read_text() == "precious\n" and not (tmp_path / "none").exists()
    assert not path.is_symlink() and path.is_file() and path.stat().st_nlink == 1
    assert path.read_text() == ("precious\nnew\n" if append and kind == "hard link" else "new\n")
    assert entries(tmp_path) == ["log", "precious"]


def test_own_files_grow_or_begin_anew(tmp_path: Path) -> None:
    for append, expected in ((True, "a\n"), (True, "a\na\n"), (False, "a\n")):
        with open_own(tmp_path / "log", append) as file:
            file.write("a\n")
        assert (tmp_path / "log").read_text() == expected
    with pytest.raises(OSError, match="directory"):
        open_own(tmp_path, append=False)


def test_a_new_file_is_whole_before_the_old_one_is_touched(tmp_path: Path) -> None:
    final, other = tmp_path / "new", tmp_path / "of the old one"
    final.write_text("old")
    other.write_text("old")

    def look() -> None:
        assert final.read_text() == "old"
        other.unlink()

    with atomic_path(final, look) as temporary:
        temporary.write_text("new")
        assert other.exists()
    assert entries(tmp_path) == ["new"] and final.read_text() == "new"


# --- room


def test_a_folder_is_checked_without_a_trace(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert entries(tmp_path) == []
    (tmp_path / "file").write_text("")
    for below in ("file", "file/a"):
        with pytest.raises(OutputError, match="in the way"):
            check_folder(tmp_path / below)


def test_scratch_files_go_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, beside = tmp_path / "usual", tmp_path / "beside"
    usual.mkdir()
    beside.mkdir()
    free = {usual: 100, beside: 1000}
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(usual))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free[Path(folder)]}))
    for needed, place in ((50, usual), (500, beside)):
        with scratch_folder(needed, beside) as folder:
            assert folder.parent == place and folder.is_dir()
        assert entries(place) == []
    with scratch_folder(500) as folder:
        assert folder.parent == usual
        full = output_error(folder / "teacher.onnx", OSError(errno.ENOSPC, "No space left on device"))
        assert "set TMPDIR to a folder on another disk" in str(full) and "choose" not in str(full)
    free[beside] = 10
    with scratch_folder(500, beside) as folder:
        assert folder.parent == usual  # where there is more

    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with scratch_folder(500, beside) as folder:
        assert folder.parent == beside
    with pytest.raises(OutputError, match="set TMPDIR"), scratch_folder(500):
        raise AssertionError


def test_full_disks_are_known_by_their_cause() -> None:
    full = output_error(Path("x"), OSError(errno.ENOSPC, "No space"))
    full.__cause__ = OSError(errno.ENOSPC, "No space")
    assert is_disk_full(full) and is_disk_full(OSError(errno.EDQUOT, "Quota"))
    assert not is_disk_full(OSError(errno.EACCES, "Denied")) and not is_disk_full(None)


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with atomic_path(tmp_path / "photo.png") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    left = entries(tmp_path)
    assert len(left) == 1 and left[0].endswith(".png")
    assert list_files(tmp_path, {".png"}, "folder", "images") == []
    others = [".csa2glmha-notes.txt", f".csa2glmha-{'0' * 32}.png", "photo.png"]
    for name in others:
        (tmp_path / name).write_bytes(b"precious")
    with atomic_path(tmp_path / "mine.png") as temporary:
        temporary.write_bytes(b"half")
        remove_leftovers(tmp_path)
        assert entries(tmp_path) == sorted([*others, temporary.name])
    assert entries(tmp_path) == sorted([*others, "mine.png"])


def test_inputs_are_not_replaced(tmp_path: Path) -> None:
    model, out = tmp_path / "model.pth", tmp_path / "out"
    model.write_bytes(b"precious")
    out.symlink_to(tmp_path)
    check_not_inputs([out / "student.safetensors"], model, None)
    with pytest.raises(UsageError, match=r"model\.pth' is an input: choose another place"):
        check_not_inputs([out / "student.safetensors", out / "model.pth"], None, model)


def test_room_is_looked_for_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 3_000_000}))
    check_room(tmp_path, 3_000_000, [tmp_path / "none"])
    with pytest.raises(OutputError, match="take about 4 MB, there is room for 3; free some space"):
        check_room(tmp_path, 4_000_000, [tmp_path / "none"])
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "tensors").write_bytes(b"x" * 600_000)
    (tmp_path / "student").write_bytes(b"x" * 400_000)
    check_room(tmp_path, 4_000_000, [tmp_path / "state", tmp_path / "student"])
    (tmp_path / "link").symlink_to(tmp_path / "state")
    with pytest.raises(OutputError):
        check_room(tmp_path, 4_000_000, [tmp_path / "link"])  # what it leads to stays
