"""States on disk: whole or not there, and never of another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from csa2glmha.distill import State, StateFolder
from csa2glmha.distill.state import Position
from csa2glmha.errors import Csa2GlmhaError

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
    before = contents(tmp_path)

    def refuse(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(Csa2GlmhaError, match=r"cannot save a state in .*: No space left on device") as caught:
        states.save(make_state(15))
    message_of(caught)
    assert contents(tmp_path) == before
    monkeypatch.undo()
    states.save(make_state(15))
    assert names(tmp_path) == ["step-00000010", "step-00000015"]
