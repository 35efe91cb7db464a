"""The output folder of a conversion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csa2glmha.checkpoint.student import load_model, student_metadata
from csa2glmha.compression.workspace import OUTPUT_FILES, Workspace
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import OutputError, UsageError
from csa2glmha.families.restormer.network import Restormer


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "net-rank8"),
        ({"rank": 4, "rank_q": 16}, "net-rank4-q16"),
        ({"rank": "full"}, "net-full"),
        ({"rank": "auto", "macs": 0.7}, "net-rankauto-macs0.7"),
        ({"rank": 4, "attention": "compact"}, "net-rank4-compact"),
        ({"ffn": 0.75}, "net-rank8-ffn0.75"),
        ({"ffn": "full"}, "net-rank8"),
        ({"output": "elsewhere"}, "elsewhere"),
    ],
)
def test_results_go_where_checkpoint_and_ranks_say(options: dict[str, object], name: str) -> None:
    assert Workspace.of(Path("far/net.pth"), make_options(**options)).folder == Path(name)


def test_results_of_before_are_in_the_way_unless_overwritten(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "out")
    assert not place.taken
    place.begin({}, make_options())
    (place.folder / "report.md").write_text("mine")
    assert place.taken
    with pytest.raises(OutputError, match="already holds"):
        place.begin({}, make_options())
    assert (place.folder / "report.md").read_text() == "mine"
    place.begin({}, make_options(overwrite=True))


def test_nothing_to_resume_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Workspace(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(OutputError, match="finished conversion"):
        place.begin({}, make_options(resume=True))
    assert "starting from the beginning" not in capsys.readouterr().err


def test_files_of_two_students_are_never_mixed(tmp_path: Path, tiny_restormer: Restormer) -> None:
    place = Workspace(tmp_path)
    for name in OUTPUT_FILES:
        (tmp_path / name).write_text("of an earlier student")
    metadata = student_metadata(tiny_restormer, "0" * 64, 0, {})
    place.replace_student(tiny_restormer, metadata, steps=None)
    left = {path.name for path in tmp_path.iterdir()}
    # A card that was not made by this tool is somebody's text.
    assert left == {"student.safetensors", "README.md"}
    kept = load_model(place.student).model.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in tiny_restormer.state_dict().items())
    place.log.write_text("of this training")
    place.replace_student(tiny_restormer, metadata, steps=3)
    assert place.log.read_text() == "of this training"


def test_a_checkpoint_among_the_results_is_refused(tmp_path: Path, tiny_restormer: Restormer) -> None:
    place = Workspace(tmp_path)
    with pytest.raises(UsageError, match=r"student\.safetensors"):
        place.check(tmp_path / "student.safetensors", tiny_restormer, make_options())
