"""Classifiers, in every command: classes are compared, not pixels."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import csa2glmha
from csa2glmha.data import write_image
from tests.commands.test_cli import complaint, run
from tests.networks import builders

pytestmark = pytest.mark.usefixtures("quick_factors")

SIDE = 32
OWN = ["--network", "archs.py:classifier"]
SHORT = ["--rank", "2", "--distill-steps", "4", "--calibration-crops", "8", "--no-latency"]
SIZED = ["--input-size", str(SIDE)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's: their code, weights, and images in a folder for each of the four classes."""
    place = tmp_path_factory.mktemp("my classes")
    shutil.copy(builders.FILE, place / "archs.py")
    torch.save(builders.classifier(seed=3).state_dict(), place / "weights.pth")
    generator = torch.Generator().manual_seed(0)
    for name in ("ant", "bee", "cat", "dog"):
        (place / "photos" / name).mkdir(parents=True)
        for index in range(4):
            small = torch.rand(1, 3, 5, 6, generator=generator)
            image = nn.functional.interpolate(small, (40, 52), mode="bicubic").clamp(0, 1)[0]
            write_image(place / "photos" / name / f"{index}.png", image)
    return place


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def converted(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = {"network": OWN[1], "input_size": SIDE, "distill_steps": 4, "calibration_crops": 8}
        csa2glmha.convert("weights.pth", rank=2, data="photos", timing=False, output="out", **options)
    return folder / "out"


def test_inspect_tells_the_classes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("inspect", "weights.pth", *OWN, "--rank", "2", *SIZED, "--json", capsys=capsys)
    assert code == 0, err
    found = json.loads(out)
    assert found["hyperparameters"] == {"network": OWN[1], "classes": 4}
    assert len(found["layers"]) == 2 and found["refused"] == []


def test_the_report_compares_classes(converted: Path) -> None:
    report = json.loads((converted / "report.json").read_text())
    assert report["data"]["outputs"] == "logits" and report["input_size"] == [SIDE, SIDE]
    quality = report["quality"]
    assert set(quality["student"]["teacher"]) == {"top1", "kl"}
    assert set(quality["teacher"]["ground_truth"]) == {"top1", "cross_entropy"}
    assert 0 <= quality["student"]["teacher"]["top1"] <= 1
    distillation = report["distillation"]
    assert distillation["metric"] == "kl" and distillation["after"] <= distillation["before"]
    assert all("psnr" not in point and point["kl"] >= 0 for point in distillation["curve"])
    assert len(report["onnx"]["parity"]) == 3
    for name in ("report.md", "report.html", "README.md"):
        text = (converted / name).read_text()
        assert "top-1 agreement" in text and "KL divergence" in text
        assert "PSNR" not in text, name
    assert "image-classification" in (converted / "README.md").read_text()
    assert not (converted / "comparison.png").exists()


def test_evaluate_tells_accuracy_and_agreement(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = converted / "student.safetensors"
    both = ["--teacher", "weights.pth", *OWN, "--data", "photos"]
    code, out, err = run("evaluate", student, *both, "--json", capsys=capsys)
    assert code == 0, err
    found = json.loads(out)
    assert found["images"] == 16 and "input" not in found
    expected = _classes(csa2glmha.load(student, network=OWN[1]), converted.parent)
    truth = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    right = sum(one == other for one, other in zip(expected, truth, strict=True)) / 16
    assert found["ground_truth"]["mean"]["top1"] == pytest.approx(right)
    code, out, err = run("evaluate", converted / "model.onnx", *both, capsys=capsys)
    assert code == 0, err
    assert "top-1" in out and "KL divergence" in out and f"{100 * right:.1f} %" in out


def _classes(network: nn.Module, folder: Path) -> list[int]:
    """The first class of every photograph, by the two steps that torchvision's evaluation has."""
    from csa2glmha.data import read_image
    from csa2glmha.data.whole_images import centred

    paths = sorted((folder / "photos").rglob("*.png"))
    with torch.no_grad():
        return [int(network(centred(read_image(path, 3), (SIDE, SIDE))[None]).argmax()) for path in paths]


def test_run_writes_classes_and_probabilities(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, file in enumerate(("student.safetensors", "model.onnx")):
        code, out, err = run(
            "run", converted / file, "photos", *OWN, "-o", f"classes{number}", "--tile", "64", capsys=capsys
        )
        assert code == 0, err
        assert "16 images classified in" in out and "tiles: not used" in err
    texts = [Path(f"classes{number}/predictions.csv").read_text() for number in (0, 1)]
    tables = [list(csv.DictReader(text.splitlines())) for text in texts]
    expected = _classes(csa2glmha.load(converted / "student.safetensors", network=OWN[1]), converted.parent)
    for table in tables:
        assert [row["file"] for row in table] == sorted(row["file"] for row in table)
        assert [int(row["class_1"]) for row in table] == expected
        assert all(
            sum(float(row[f"probability_{n}"]) for n in (1, 2, 3, 4)) == pytest.approx(1, abs=1e-5)
            for row in table
        )
    again = ["run", converted / "model.onnx", "photos/ant/0.png", "photos/bee", "-o", "classes0"]
    line = complaint(*again, capsys=capsys, code=1)
    assert "already exists: pass --skip-existing to add what is missing" in line
    code, out, err = run(*again, "--skip-existing", capsys=capsys)
    assert code == 0 and "0 images classified" in out and "5 were there" in out, err
    assert len(Path("classes0/predictions.csv").read_text().splitlines()) == 17


def test_distill_and_bench(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = converted / "student.safetensors"
    steps = ["--distill-steps", "2", "--truth-weight", "0.1"]
    code, out, err = run(
        *("distill", student, "--teacher", "weights.pth", *OWN, "--data", "photos", *steps),
        *("-o", "more.safetensors"),
        capsys=capsys,
    )
    assert code == 0, err
    assert "KL divergence to the teacher: " in out and "PSNR" not in out + err
    models = ("weights.pth", student, converted / "model.onnx")
    code, out, err = run("bench", *models, *OWN, "--size", "32", "--seconds", "0", capsys=capsys)
    assert code == 0, err
    assert "model.onnx" in out


def test_what_classifiers_have_no_use_for(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["convert", "weights.pth", *OWN, "--data", "photos", "--rank", "auto", "-o", "no"]
    line = complaint(*own, "--max-drop", "0.1", capsys=capsys, code=2)
    assert "logits of classes do not have" in line
    line = complaint(*own[:-4], "--rank", "2", "--targets", "photos", capsys=capsys, code=2)
    assert "makes classes, no images" in line
    line = complaint("evaluate", "weights.pth", *OWN, capsys=capsys, code=2)
    assert "give --teacher, or as --data a folder with a folder for each of the 4 classes" in line
