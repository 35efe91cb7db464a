"""States on disk: whole or not there, and never of another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from csa2glmha.core.errors import Csa2GlmhaError, OutputError
from csa2glmha.distill import State, StateFolder
from csa2glmha.distill.state import Position, with_room

IDENTITY = {"the teacher": "ab" * 32, "--rank": 8, "--data": None, "layers": {"a": {"rank_k": 8}}}


def make_state(step: int, **changes: Any) -> State:
    student = {"weight": torch.full((3, 2), float(step)), "scale": torch.tensor(0.5)}
    best = {"weight": torch.full((3, 2), -1.0), "scale": torch.tensor(0.25)}
    moments = {0: {"step": torch.tensor(7.0), "exp_avg": torch.arange(6.0).view(3, 2)}, 11: {}}
    return State(Position(taken=step, step=step, **changes), student, best, moments, {"scale": 1024.0})


def folder(tmp_path: Path, said: list[str] | None = None, **changes: Any) -> StateFolder:
    say = (lambda _: None) if said is None else said.append
    return StateFolder(tmp_path / "state", IDENTITY | changes, say=say)


def names(tmp_path: Path) -> list[str]:
    return sorted(entry.name for entry in (tmp_path / "state").iterdir())


def message_of(caught: pytest.ExceptionInfo[Csa2GlmhaError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    written = make_state(12, planned=None, loss=1e-3, scores=[50.25, 1 / 3], curve=[{"stage": "start"}])
    folder(tmp_path).save(written)
    read = folder(tmp_path).load()
    assert read is not None
    assert read.position == written.position and read.scaler == written.scaler
    for one, other in ((read.student, written.student), (read.best, written.best)):
        assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in other)
    assert set(read.optimizer) == {0}
    assert torch.equal(read.optimizer[0]["exp_avg"], written.optimizer[0]["exp_avg"])
    assert read.optimizer[0]["step"].shape == ()


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    states = folder(tmp_path)
    for step in (0, 5, 10, 15):
        states.save(make_state(step))
    assert names(tmp_path) == ["step-00000010", "step-00000015"]
    assert states.steps() == [15, 10]
    read = folder(tmp_path).load()
    assert read is not None and read.position.taken == 15


def test_nothing_there(tmp_path: Path) -> None:
    states = folder(tmp_path)
    assert states.load() is None and states.steps() == []
    states.check_free()
    states.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_begun_run_is_not_run_over(tmp_path: Path) -> None:
    folder(tmp_path).save(make_state(5))
    with pytest.raises(Csa2GlmhaError, match=r"of step 5: pass --resume to continue it, --overwrite"):
        folder(tmp_path).check_free()


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
@pytest.mark.parametrize("how", ["missing", "cut", "changed", "empty"])
def test_the_one_before_a_damaged_state_is_used(tmp_path: Path, file: str, how: str) -> None:
    states = folder(tmp_path)
    states.save(make_state(5))
    states.save(make_state(10))
    damage(tmp_path / "state" / "step-00000010" / file, how)
    before = contents(tmp_path)
    said: list[str] = []
    reading = folder(tmp_path, said)
    read = reading.load()
    assert read is not None and read.position.taken == 5
    assert len(said) == 1 and "step-00000010 is damaged" in said[0] and "going on from step 5" in said[0]
    assert contents(tmp_path) == before
    # The damaged one is out of the way of the next, and not counted among the two that are kept.
    reading.save(make_state(7))
    reading.save(make_state(10))
    assert names(tmp_path)[1:] == ["step-00000007", "step-00000010"]
    assert names(tmp_path)[0].startswith("damaged-step-00000010")
    reading.clear()
    assert list(tmp_path.iterdir()) == []


def damage(file: Path, how: str) -> None:
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[:-20])
    elif how == "empty":
        file.write_bytes(b"")
    else:  # the last digits of a checksum, or of a weight
        file.write_bytes(data[:-10] + bytes(byte ^ 1 for byte in data[-10:]))


def test_all_states_damaged(tmp_path: Path) -> None:
    states = folder(tmp_path)
    states.save(make_state(5))
    states.save(make_state(10))
    for step in (5, 10):
        (tmp_path / "state" / f"step-{step:08d}" / "state.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(Csa2GlmhaError, match=r"every state in .* is damaged") as caught:
        folder(tmp_path).load()
    assert "nothing was deleted" in message_of(caught) and caught.value.exit_code == 1
    assert contents(tmp_path) == before


def test_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "photo.png").write_bytes(b"precious")
    with pytest.raises(Csa2GlmhaError, match="holds no state of csa2glmha") as caught:
        folder(tmp_path).load()
    message_of(caught)
    states = folder(tmp_path)
    states.save(make_state(5))
    states.clear()
    assert names(tmp_path) == ["photo.png"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("precious")
    with pytest.raises(Csa2GlmhaError, match="holds no state"):
        folder(tmp_path).load()
    with pytest.raises(Csa2GlmhaError, match="cannot save a state"):
        folder(tmp_path).save(make_state(1))
    assert (tmp_path / "state").read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"the teacher": "cd" * 32}, 'the teacher was "ababab'),
        ({"--rank": 4}, "--rank was 8 and is 4"),
        ({"--data": "/photos"}, '--data was null and is "/photos"'),
        ({"layers": {"a": {"rank_k": 7}}}, "layers was"),
        ({"--new": 1}, "--new was null and is 1"),
    ],
)
def test_a_state_of_another_run(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    folder(tmp_path).save(make_state(5))
    before = contents(tmp_path)
    with pytest.raises(Csa2GlmhaError) as caught:
        folder(tmp_path, **changes).load()
    message = message_of(caught)
    assert expected in message and "--overwrite" in message and caught.value.exit_code == 2
    assert contents(tmp_path) == before


def test_a_state_of_another_version(tmp_path: Path) -> None:
    folder(tmp_path).save(make_state(5))
    file = tmp_path / "state" / "step-00000005" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    with pytest.raises(Csa2GlmhaError, match="another version of csa2glmha"):
        folder(tmp_path).load()


def test_what_a_killed_run_left_is_tidied_up(tmp_path: Path) -> None:
    states = folder(tmp_path)
    states.save(make_state(5))
    unfinished = tmp_path / "state" / ".csa2glmha-0123"
    shutil.copytree(tmp_path / "state" / "step-00000005", unfinished)
    reading = folder(tmp_path)
    read = reading.load()
    assert read is not None and read.position.taken == 5
    reading.save(make_state(6))
    assert names(tmp_path) == ["step-00000005", "step-00000006"]


def test_a_run_killed_before_its_first_state_is_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "state" / ".csa2glmha-0123").mkdir(parents=True)
    (tmp_path / "state" / "initial.safetensors").write_bytes(b"begun")
    states = folder(tmp_path)
    assert states.load() is None
    states.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_earlier_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = folder(tmp_path)
    states.save(make_state(5))
    states.save(make_state(10))
    before = contents(tmp_path / "state" / "step-00000010")

    def refuse(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(Csa2GlmhaError, match=r"cannot save a state in .*: No space left on device") as caught:
        states.save(make_state(15))
    message_of(caught)
    assert contents(tmp_path) == before  # the older one went, to make room
    monkeypatch.undo()
    states.save(make_state(15))
    assert names(tmp_path) == ["step-00000010", "step-00000015"]


# --- what is not ours


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_linked_folder_is_never_followed(tmp_path: Path, overwrite: bool) -> None:
    elsewhere = tmp_path / "elsewhere"
    StateFolder(elsewhere, IDENTITY).save(make_state(5))
    (tmp_path / "state").symlink_to(elsewhere)
    before, states = contents(elsewhere), folder(tmp_path)
    assert states.steps() == []
    if overwrite:
        states.check_place(overwrite=True)
        states.clear()
        states.save(make_state(1))
        assert names(tmp_path) == ["step-00000001"] and not (tmp_path / "state").is_symlink()
    else:
        with pytest.raises(Csa2GlmhaError, match=r"state is a link.*--overwrite to replace"):
            states.check_place(overwrite=False)
    assert contents(elsewhere) == before


@pytest.mark.parametrize("kind", ["files", "link", "file", "another format", "subfolder", "initial"])
def test_others_have_folders_of_that_name_too(tmp_path: Path, kind: str) -> None:
    theirs = tmp_path / "state" / "step-00000100"
    if kind == "link":
        StateFolder(tmp_path / "elsewhere", IDENTITY).save(make_state(5))
        (tmp_path / "state").mkdir()
        theirs.symlink_to(tmp_path / "elsewhere" / "step-00000005")
    elif kind == "file":
        (tmp_path / "state").mkdir()
        theirs.write_bytes(b"precious")
    elif kind == "initial":
        theirs = tmp_path / "state" / "initial.safetensors"
        theirs.parent.mkdir()
        save_file({"a": torch.zeros(1)}, theirs)
    else:
        name = {"files": "optimizer.bin", "another format": "state.json", "subfolder": "state.json/x"}[kind]
        (theirs / name).parent.mkdir(parents=True)
        (theirs / name).write_text('{"format": "theirs"}')
    before, states = contents(tmp_path), folder(tmp_path)
    assert states.steps() == []
    for overwrite in (False, True):
        with pytest.raises(Csa2GlmhaError, match=f"{theirs.name} is not of csa2glmha, and in the way"):
            states.check_place(overwrite)
    states.save(make_state(3))
    states.clear()
    assert contents(tmp_path) == before


def test_a_full_disk_takes_the_room_of_old_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = folder(tmp_path)
    states.save(make_state(5))
    states.save(make_state(10))
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if (tmp_path / "state" / "step-00000005").exists():
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    states.save(make_state(15))
    assert names(tmp_path) == ["step-00000010", "step-00000015"]


@pytest.mark.parametrize(
    ("fits_beside", "taken", "kept", "written"),
    [
        (2, 10, [10, 5], True),
        (1, 10, [10], True),
        (0, 11, [], True),  # of the states none knows what the result knows
        (0, 10, [10], False),
        (0, 0, [10], False),
    ],
)
def test_states_make_room_for_results(
    tmp_path: Path, fits_beside: int, taken: int, kept: list[int], written: bool
) -> None:
    states = folder(tmp_path)
    states.save(make_state(5))
    states.save(make_state(10))

    def write() -> str:
        if len(states.steps()) > fits_beside:
            raise OutputError("cannot write student: No space left") from OSError(28, "No space left")
        return "written"

    if written:
        assert with_room(states, write, taken) == "written"
    else:
        with pytest.raises(OutputError, match=r"No space left; the state of step 10 stays .* --resume"):
            with_room(states, write, taken)
    assert states.steps() == kept


def test_other_errors_take_no_room(tmp_path: Path) -> None:
    states = folder(tmp_path)
    states.save(make_state(5))
    states.save(make_state(10))

    def write() -> None:
        raise OutputError("cannot write: Permission denied") from PermissionError(13, "Permission denied")

    with pytest.raises(OutputError, match=r"Permission denied$"):
        with_room(states, write, 99)
    assert states.steps() == [10, 5]
