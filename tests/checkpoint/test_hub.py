"""Checkpoints from the Hugging Face Hub, from a stand-in for it on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import csa2glmha
from csa2glmha.checkpoint.student import load_model
from csa2glmha.core import hub as hub_module
from csa2glmha.core.errors import CheckpointError, UsageError
from csa2glmha.core.hub import (
    HubFile,
    beside,
    display_name,
    explain,
    local_file,
    parse_address,
    source_of,
)
from csa2glmha.export.metadata import metadata_of
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.report.markdown import markdown
from csa2glmha.report.stored import parse_report
from tests.command_line import complaint, run
from tests.hub_server import TOKEN, Hub, Repository, commit_of

NAME = "some-lab/de.noisers"


@pytest.fixture
def weights(tiny_restormer: Restormer, tmp_path: Path) -> bytes:
    path = tmp_path / "made here.pth"
    torch.save({"params": tiny_restormer.state_dict()}, path)
    return path.read_bytes()


@pytest.fixture
def repository(hub: Hub, weights: bytes) -> Repository:
    """Two commits: v1 and refs/pr/3 have an earlier file of the same name."""
    files = {"README.md": b"", "colour/noise25.pth": weights, "colour/noise50.pth": b"x", "grey.pth": b"y"}
    earlier = {"colour/noise25.pth": b"earlier"}
    made = Repository([earlier, files], {"v1": 0, "refs/pr/3": 0})
    hub.repositories[NAME] = made
    return made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://a/b/c.pth", HubFile("a/b", "c.pth")),
        ("hf://a-1/b.2_c/d/e f.pth", HubFile("a-1/b.2_c", "d/e f.pth")),
        ("hf://a/b@v1.0/c.pth", HubFile("a/b", "c.pth", "v1.0")),
        ("hf://a/b@refs/pr/3/d/c.pth", HubFile("a/b", "d/c.pth", "refs/pr/3")),
        ("hf://a/b@refs%2Fpr%2F3/c.pth", HubFile("a/b", "c.pth", "refs/pr/3")),
        ("hf://a/b/c@2.pth", HubFile("a/b", "c@2.pth")),
    ],
)
def test_addresses(text: str, expected: HubFile) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("hf://", "hf://a", "hf://a/b", "hf://a/b/", "hf://a/b@/c.pth", "hf://a/b@v/", "hf://a//c.pth"),
        *("hf://a/b/../c.pth", "hf://a/b/./c.pth", "hf://a/b//c.pth", "hf://a/b/c\\d.pth"),
        "hf://datasets/a/b/c.pth",
    ],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(UsageError, match=r"the form is hf://owner/name/file\.pth"):
        parse_address(text)


def test_a_download_is_the_file_and_knows_where_it_is_from(
    hub: Hub, repository: Repository, weights: bytes
) -> None:
    path = local_file(f"hf://{NAME}/colour/noise25.pth")
    assert path.read_bytes() == weights and path.name == "noise25.pth"
    assert source_of(path) == f"hf://{NAME}@{commit_of(1)}/colour/noise25.pth" == display_name(path)
    assert "GET some-lab/de.noisers/resolve/main/colour/noise25.pth" in hub.requests
    hub.requests.clear()
    assert local_file(f"hf://{NAME}/colour/noise25.pth") == path
    assert [each for each in hub.requests if each.startswith("GET")] == [], "it is in the cache"


@pytest.mark.parametrize("revision", ["v1", "refs/pr/3", commit_of(0)])
def test_a_revision_is_that_revision(revision: str, repository: Repository) -> None:
    path = local_file(f"hf://{NAME}@{revision}/colour/noise25.pth")
    assert path.read_bytes() == b"earlier"
    assert source_of(path) == f"hf://{NAME}@{commit_of(0)}/colour/noise25.pth"


def test_a_path_that_lost_a_slash_is_an_address(repository: Repository, weights: bytes) -> None:
    assert local_file(Path(f"hf://{NAME}/colour/noise25.pth")).read_bytes() == weights


def test_paths_connect_to_nothing(hub: Hub, tmp_path: Path) -> None:
    for path in ("a.pth", str(tmp_path), "models--a--b/snapshots/x/c.pth"):
        assert local_file(path) == local_file(Path(path)) == Path(path)
        assert source_of(Path(path)) is None and display_name(Path(path)) == path
    assert hub.requests == []


def test_nothing_is_told_about_the_user(hub: Hub, repository: Repository) -> None:
    local_file(f"hf://{NAME}/grey.pth")
    agents = {headers["user-agent"] for headers in hub.headers}
    assert all(agent.startswith(f"csa2glmha/{csa2glmha.__version__};") for agent in agents)
    assert not any("torch/" in agent or "agent/" in agent for agent in agents)
    assert not any("authorization" in headers for headers in hub.headers)


def test_the_login_of_huggingface_hub_is_used(
    hub: Hub, repository: Repository, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.private = True
    with pytest.raises(
        CheckpointError, match=r"no repository some-lab/de.noisers, or it is private.*hf auth"
    ):
        local_file(f"hf://{NAME}/colour/noise25.pth")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert local_file(f"hf://{NAME}/colour/noise25.pth").read_bytes() == weights


def test_offline_takes_what_is_in_the_cache(
    hub: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    path = local_file(f"hf://{NAME}/grey.pth")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_file(f"hf://{NAME}/grey.pth") == path
    with pytest.raises(CheckpointError, match=r"noise50.pth: is not in the cache .* HF_HUB_OFFLINE is set"):
        local_file(f"hf://{NAME}/colour/noise50.pth")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (f"hf://{NAME}/colour/noise52.pth", "has no file 'colour/noise52.pth'; near names: 'colour/noise"),
        (f"hf://{NAME}/zzz", "it has: 'colour/noise25.pth', 'colour/noise50.pth', 'grey.pth'"),
        (f"hf://{NAME}@v2/grey.pth", "some-lab/de.noisers has no revision 'v2'"),
        ("hf://nobody/nothing/grey.pth", "there is no repository nobody/nothing, or it is private"),
        ("hf://-a/b--c/grey.pth", "'-a/b--c' is no name of a repository"),
    ],
)
def test_what_is_not_there(
    address: str, expected: str, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint("inspect", address, capsys=capsys, code=1)
    assert line.startswith(f"csa2glmha: {address}: ") and expected in line


def test_a_repository_without_weights_says_so(hub: Hub) -> None:
    hub.repositories["a/b"] = Repository([{"README.md": b""}])
    with pytest.raises(CheckpointError, match=r"has no file 'c.pth', and none of weights; look at http"):
        local_file("hf://a/b/c.pth")


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, "does not know your login"), (403, "may not do this in"), (418, "answered with status 418")],
)
def test_refusals(status: int, expected: str, hub: Hub, repository: Repository) -> None:
    hub.status = status
    with pytest.raises(CheckpointError, match=expected) as caught:
        local_file(f"hf://{NAME}/grey.pth")
    assert "\n" not in str(caught.value)


def test_a_gated_repository(repository: Repository) -> None:
    repository.gated = True
    with pytest.raises(
        CheckpointError, match=r"is gated; ask for access at http.*/some-lab/de.noisers and log in"
    ):
        local_file(f"hf://{NAME}/grey.pth")


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What huggingface_hub raises after its own trials, which take half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*arguments: object, **options: object) -> str:
        raise LocalEntryNotFoundError("several\nlines") from OSError("Name or service not known")

    monkeypatch.setattr(HfApi, "hf_hub_download", fail)
    expected = (
        r"c.pth: is not in the cache .* cannot be reached \(Name or service not known\); check the conn"
    )
    with pytest.raises(CheckpointError, match=expected):
        local_file("hf://a/b/c.pth")


def test_a_connection_that_breaks_is_one_line(hub: Hub) -> None:
    api = hub_module.hub_api("a test")
    line = explain(RuntimeError("peer closed\nconnection " + "x" * 300), "a/b", api)
    assert line.startswith(f"the connection to {hub.address} failed (peer closed connection xx")
    assert len(line) < 280 and "\n" not in line


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UsageError, match=r"hf://a/b/c.pth: needs the huggingface_hub package.*csa2glmha\[hub\]"
    ):
        local_file("hf://a/b/c.pth")
    assert local_file("c.pth") == Path("c.pth")


def test_huggingface_hub_is_not_imported_unasked() -> None:
    probe = "import sys, csa2glmha.cli, csa2glmha.core.hub; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_bad_options_come_before_the_download(
    hub: Hub, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"hf://{NAME}/colour/noise25.pth"
    assert "at least 1" in complaint("convert", address, "--rank", 0, capsys=capsys, code=2)
    assert "at least 1" in complaint("sweep", address, "--ranks", "0,4", capsys=capsys, code=2)
    assert "the form is" in complaint("convert", "hf://a/b", capsys=capsys, code=2)
    assert hub.requests == []


def test_commands_take_addresses(
    repository: Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From a checkpoint on the Hub to a student, and what is written by default, in the current folder."""
    monkeypatch.chdir(tmp_path)
    address, source = f"hf://{NAME}/colour/noise25.pth", f"hf://{NAME}@{commit_of(1)}/colour/noise25.pth"
    quick = ["--calibration-crops", 2, "--calibration-size", 32, "--input-size", 32]
    options = ["--rank", "full", *quick, "--no-latency"]
    code, _, err = run("convert", address, *options, capsys=capsys)
    assert code == 0, err
    made = tmp_path / "noise25-full"
    report = json.loads((made / "report.json").read_text())
    assert report["teacher"]["source"] == source and report["teacher"]["file"] == "noise25.pth"
    text = markdown(parse_report(report))
    assert source.replace("_", "\\_") in text or source in text
    assert source in (made / "report.html").read_text(encoding="utf-8")
    student = load_model(made / "student.safetensors").checkpoint.metadata
    assert student["teacher_source"] == source

    repository.files["student.safetensors"] = (made / "student.safetensors").read_bytes()
    on_hub = f"hf://{NAME}/student.safetensors"
    found = json.loads(run("inspect", on_hub, "--json", capsys=capsys)[1])
    assert found["file"] == f"hf://{NAME}@{commit_of(1)}/student.safetensors"
    assert found["student"]["teacher_source"] == source
    assert metadata_of(load_model(local_file(on_hub)))["name"] == "de.noisers"

    code, _, err = run("export", on_hub, capsys=capsys)
    assert code == 0 and (tmp_path / "student.onnx").is_file(), err
    code, out, err = run("inspect", "student.onnx", "--json", capsys=capsys)
    assert json.loads(out)["metadata"]["teacher_source"] == source
    arguments = ["evaluate", on_hub, "--teacher", address, "--degrade", "noise:25", "--crop", 16, "--json"]
    code, out, err = run(*arguments, capsys=capsys)
    assert code == 0 and json.loads(out)["model"] == found["file"], err
    assert csa2glmha.load(address).hyperparameters == csa2glmha.load(on_hub).hyperparameters
    assert beside(local_file(on_hub), "x.onnx") == Path("x.onnx")
    assert beside(made / "student.safetensors", "x.onnx") == made / "x.onnx"
