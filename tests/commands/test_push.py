"""Sending a conversion to a stand-in for the Hugging Face Hub on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from csa2glmha.checkpoint.student import save_student
from csa2glmha.commands.push import pack
from csa2glmha.distill.job import LOG_FILE, STATE_FOLDER
from csa2glmha.report.card import write_card
from csa2glmha.report.stored import parse_report
from tests.command_line import complaint, run
from tests.hub_server import TOKEN, Hub, Repository
from tests.report.test_card import example

NAME = "some-lab/denoiser-rank8"
FILES = ("README.md", "student.safetensors", "model.onnx", "report.json", "report.md", "comparison.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a conversion leaves, as far as push looks at it, and what it must leave where it is."""
    made = tmp_path / "denoiser rank8"
    report = example(data="/home/me/photos")
    (made / STATE_FOLDER).mkdir(parents=True)
    (made / STATE_FOLDER / "step-1.safetensors").write_bytes(b"state")
    metadata = {"format": "csa2glmha-student", "teacher_sha256": report["teacher"]["sha256"]}
    student = torch.nn.Linear(2, 2)
    save_student(made / "student.safetensors", student, metadata)
    (made / "model.onnx").write_bytes(b"onnx" * 1000)
    (made / "report.json").write_text(json.dumps(report))
    (made / "report.md").write_text("# report")
    (made / "comparison.png").write_bytes(b"png")
    (made / LOG_FILE).write_text("{}")
    (made / "notes of mine.txt").write_text("private")
    write_card(made, parse_report(report))
    return made


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Hub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def test_by_default_it_only_shows(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("push", folder, NAME, capsys=capsys)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"to the model repository {NAME} on the Hugging Face Hub, public if it is new:"
    assert [line.split()[0] for line in lines[1:7]] == list(FILES)
    assert "4.0 kB" in lines[3] and lines[7].startswith("6 files, ")
    assert "names no licence yet" in out and "/home/me/photos" in out
    assert lines[-1] == "nothing was sent: add --yes to send it"
    assert hub.requests == []


def test_yes_sends_these_files_in_one_commit(
    login: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run("push", folder, NAME, "--yes", capsys=capsys)
    assert code == 0, err
    assert out == f"{login.address}/{NAME}\n"
    repository = login.repositories[NAME]
    assert set(repository.files) == {*FILES, ".gitattributes"} and not repository.private
    assert all(repository.files[name] == (folder / name).read_bytes() for name in FILES)
    assert len(repository.commits) == 2 and login.messages == ["denoiser rank8, made by csa2glmha"]
    assert len(login.blobs) == 3, "large files go through LFS"


def test_the_log_goes_where_it_is_asked_for(login: Hub, folder: Path) -> None:
    assert LOG_FILE in {path.name for path in pack(folder, NAME, log=True).files}
    assert {path.name for path in pack(folder, NAME).files} == set(FILES)


def test_files_of_the_repository_are_replaced_only_on_request(
    login: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    login.repositories[NAME] = Repository([{"README.md": b"mine", "other.txt": b"stays"}])
    line = complaint("push", folder, NAME, "--yes", capsys=capsys, code=1)
    assert "holds README.md already; nothing was sent" in line and "--overwrite" in line
    assert login.repositories[NAME].files == {"README.md": b"mine", "other.txt": b"stays"}
    code, _, err = run("push", folder, NAME, "--yes", "--overwrite", capsys=capsys)
    assert code == 0, err
    files = login.repositories[NAME].files
    assert files["README.md"] == (folder / "README.md").read_bytes() and files["other.txt"] == b"stays"


def test_private_is_private(login: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("push", folder, NAME, "--yes", "--private", capsys=capsys)[0] == 0
    assert login.repositories[NAME].private
    login.repositories["some-lab/public"] = Repository()
    line = complaint("push", folder, "some-lab/public", "--yes", "--private", capsys=capsys, code=1)
    assert "public; nothing was sent" in line
    assert login.repositories["some-lab/public"].files == {}


def test_without_a_login(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint("push", folder, NAME, "--yes", capsys=capsys, code=1)
    assert line.startswith(f"csa2glmha: push {NAME}: ") and "hf auth login" in line
    assert hub.repositories == {}


@pytest.mark.parametrize(("status", "expected"), [(403, "may not do this in"), (418, "status 418")])
def test_refusals_of_the_hub(
    status: int, expected: str, login: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    login.status = status
    assert expected in complaint("push", folder, NAME, "--yes", capsys=capsys, code=1)


def test_offline(
    login: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = complaint("push", folder, NAME, "--yes", capsys=capsys, code=1)
    assert "HF_HUB_OFFLINE is set; unset it" in line and login.requests == []


@pytest.mark.parametrize("name", ["denoiser", "a/b/c", "a/", "/b", "a/b c", "a/..", "a/b--c", "ä/b", "-a/b"])
def test_names_that_no_repository_has(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint("push", folder, "--", name, capsys=capsys, code=2)
    assert "the form is owner/name" in line


@pytest.mark.parametrize("missing", ["student.safetensors", "model.onnx", "report.json"])
def test_folders_without_a_finished_conversion(
    missing: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / missing).unlink()
    assert "holds no finished conversion" in complaint("push", folder, NAME, capsys=capsys, code=1)


def test_folders_of_something_else(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no folder" in complaint("push", tmp_path / "none", NAME, capsys=capsys, code=1)
    report = json.loads((folder / "report.json").read_text())
    report["teacher"]["sha256"] = "0" * 64
    (folder / "report.json").write_text(json.dumps(report))
    assert "are of different teachers" in complaint("push", folder, NAME, capsys=capsys, code=1)
    for content in ("[]", "null", '{"tool": "csa2glmha 1"}', "{", '{"tool": 1, "teacher": {"sha256": "x"}}'):
        (folder / "report.json").write_text(content)
        assert "holds no finished conversion" in complaint("push", folder, NAME, capsys=capsys, code=1)


def test_a_card_with_a_licence_needs_no_note(folder: Path) -> None:
    card = folder / "README.md"
    text = card.read_text().replace(
        "license: other\nlicense_name: license-of-the-original-weights", "license: mit"
    )
    card.write_text(text)
    assert not any("licence" in note for note in pack(folder, NAME).notes)
    card.unlink()
    assert any("no model card" in note for note in pack(folder, NAME).notes)
