"""Student files of earlier formats load, and give what they gave."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from csa2glmha.checkpoint import write_safetensors
from csa2glmha.checkpoint.migrations import (
    FORMAT_VERSION,
    Stored,
    brought_up_to_date,
    with_tensors_renamed,
)
from csa2glmha.checkpoint.student import load_model, save_student
from csa2glmha.core.errors import CheckpointError

STUDENTS = Path(__file__).parent / "students"


@pytest.mark.parametrize("path", sorted(STUDENTS.glob("*-format*.safetensors")), ids=lambda path: path.stem)
def test_students_of_earlier_formats_give_what_they_gave(path: Path, tmp_path: Path) -> None:
    """Written and run by the version of their format: factorised queries, the compact form, S-MSA."""
    expected = load_file(STUDENTS / f"{path.stem.partition('-')[0]}-io.safetensors")
    loaded = load_model(path)
    assert loaded.checkpoint.metadata["format_version"] == str(FORMAT_VERSION)
    with torch.no_grad():
        output = loaded.model(expected["input"])
    assert torch.allclose(output, expected["output"], atol=1e-5)
    # Written again, it is a file of the present format.
    save_student(tmp_path / "again.safetensors", loaded.model, loaded.checkpoint.metadata)
    again = load_model(tmp_path / "again.safetensors")
    assert again.checkpoint.metadata == loaded.checkpoint.metadata
    with torch.no_grad():
        assert torch.equal(again.model(expected["input"]), output)


def test_every_step_from_a_files_format_on_is_taken() -> None:
    def renaming(old: str, new: str) -> object:
        return lambda stored: with_tensors_renamed(stored, {old: new})

    steps = (renaming("a", "b"), renaming("b", "c"))
    weight = torch.ones(1)
    stored = Stored({"layer.0.a": weight, "b": weight, "a.other": weight}, {"format": "x"})
    found = brought_up_to_date(stored, 1, steps)
    assert set(found.tensors) == {"layer.0.c", "c", "a.other"} and found.tensors["c"] is weight
    assert found.metadata == {"format": "x", "format_version": "3"}
    found = brought_up_to_date(stored, 2, steps)
    assert set(found.tensors) == {"layer.0.a", "c", "a.other"}


@pytest.mark.parametrize("version", ["0", str(FORMAT_VERSION + 1), "1.0", "01", "one", ""])
def test_other_formats_are_refused_by_name(version: str, tmp_path: Path) -> None:
    loaded = load_model(STUDENTS / "restormer-format1.safetensors")
    path = tmp_path / "student.safetensors"
    write_safetensors(
        path, loaded.checkpoint.state_dict, loaded.checkpoint.metadata | {"format_version": version}
    )
    with pytest.raises(CheckpointError, match=f"student format {version.strip() or 'unknown'}"):
        load_model(path)
