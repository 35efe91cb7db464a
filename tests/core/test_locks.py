"""Two commands never write one output at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from csa2glmha.core.errors import OutputError
from csa2glmha.core.locks import LOCK_FILE, exclusive_file, exclusive_folder

#: Takes the lock of a folder, says so, and waits to be told to end.
HOLDER = """
import sys
from pathlib import Path
from csa2glmha.core.locks import exclusive_folder
with exclusive_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_at_once_and_let_in_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with exclusive_folder(folder):
        (folder / "result").write_text("first")
        used = r"output folder .*out' is in use: another csa2glmha"
        with pytest.raises(OutputError, match=used) as caught, exclusive_folder(folder):
            raise AssertionError("two at once")
        assert "\n" not in str(caught.value) and "-o" in str(caught.value)
        with exclusive_folder(tmp_path / "other"):
            pass
    with exclusive_folder(folder):
        pass
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["out", "result"]


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    process = hold(tmp_path)
    with pytest.raises(OutputError, match="is in use"), exclusive_folder(tmp_path):
        raise AssertionError("two at once")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with exclusive_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_files_of_one_folder_are_locked_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / ("n" * 250 + ".onnx")
    with exclusive_file(path), exclusive_file(path.with_name("other.onnx")):
        used = pytest.raises(OutputError, match=r"output .* is in use")
        with used, exclusive_file(path):
            raise AssertionError("two at once")
    assert list(tmp_path.iterdir()) == []  # the folder was made for nothing, and is gone again


def test_folders_that_were_there_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="failed"), exclusive_folder(tmp_path / "a" / "b" / "c"):
        raise ValueError("failed")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["a"]


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK_FILE).symlink_to(precious)
    with pytest.raises(OutputError, match="cannot write"), exclusive_folder(tmp_path / "out"):
        raise AssertionError("followed")
    assert not precious.exists()


def test_a_folder_that_is_replaced_meanwhile(tmp_path: Path) -> None:
    """The lock of whoever came then stays."""
    folder = tmp_path / "out"
    with exclusive_folder(folder):
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        (folder / LOCK_FILE).write_text("")
    assert (folder / LOCK_FILE).exists()


def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with exclusive_folder(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    with exclusive_folder(tmp_path):
        pass
    os.write(writer, b"x")
    os.waitpid(child, 0)


@pytest.mark.parametrize("taken", ["file", "file/below"])
def test_a_file_in_the_way(tmp_path: Path, taken: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputError, match="in the way"), exclusive_folder(tmp_path / taken):
        raise AssertionError
    assert (tmp_path / "file").read_text() == "precious"
