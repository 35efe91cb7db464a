"""Students with narrower feed-forward networks in what comes after them, and what --ffn full changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import csa2glmha
from csa2glmha.checkpoint import read_checkpoint
from csa2glmha.checkpoint.student import save_student, student_metadata
from csa2glmha.data.images import read_image, write_image
from csa2glmha.export.onnx import export_onnx
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.feedforwards import feed_forwards, narrow_to, narrowed_widths
from tests.command_line import run
from tests.conftest import MakeRestormer, smooth_images

pytestmark = pytest.mark.usefixtures("quick_factors")

QUICK: dict[str, Any] = {
    "rank": 3,
    "calibration_crops": 2,
    "calibration_size": 16,
    "input_size": 16,
    "crop": 16,
    "batch": 1,
    "distill_steps": 1,
    "degrade": "noise:25",
    "latency": False,
}


def test_full_changes_nothing(checkpoint: Path, photos: Path, tmp_path: Path, no_export: None) -> None:
    """The file is the same, bit for bit, as without the option; so is all that was trained."""
    files = {}
    widths: dict[str, dict[str, Any]] = {"without": {}, "full": {"ffn": "full"}, "one": {"ffn": 1}}
    for name, given in (widths | {"less": {"ffn": 0.5}}).items():
        made = csa2glmha.convert(checkpoint, data=photos, output=tmp_path / name, **given, **QUICK)
        files[name] = tmp_path / name / "student.safetensors"
        assert ("widths" in made.report["seconds"]) == (name == "less")
        assert ("feed_forwards" in made.report) == (name == "less")
    assert files["without"].read_bytes() == files["full"].read_bytes() == files["one"].read_bytes()
    wide, less = (read_checkpoint(files[name]).state_dict for name in ("full", "less"))
    name = "latent.0.ffn.project_in.weight"
    assert less[name].shape[0] < wide[name].shape[0]


def at_half_width(model: RestorationModel) -> RestorationModel:
    narrow_to(model, {name: layer.hidden // 2 for name, layer in feed_forwards(model).items()})
    assert len(narrowed_widths(model)) == len(feed_forwards(model)) > 2
    return model


@pytest.fixture(scope="module")
def narrow(make_restormer: MakeRestormer) -> RestorationModel:
    """Of few blocks, since PyTorch's exporter takes seconds for each."""
    return at_half_width(make_restormer(num_blocks=[1, 0, 0, 1], num_refinement_blocks=0))


@pytest.mark.parametrize(
    ("options", "rounding"), [({"precision": "fp16"}, 2e-2), ({"plain": True, "shape": (1, 3, 32, 24)}, 1e-5)]
)
def test_every_kind_of_file_agrees(
    narrow: RestorationModel, options: dict[str, Any], rounding: float, tmp_path: Path
) -> None:
    report = export_onnx(narrow, tmp_path / "narrow.onnx", **options)
    assert report.rewritten is not options.get("plain", False)
    image = smooth_images(1)[..., :24]
    with torch.no_grad():
        expected = narrow(image)
    output = OnnxModel(report.path)(image)
    assert float((output - expected).abs().max() / (expected.max() - expected.min())) < rounding


def test_folders_are_restored_in_tiles(
    tiny_restormer: Restormer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the student's file, with tiles that see all that their pixels depend on but the attention maps."""
    student, photos, narrow = (
        tmp_path / "narrow.safetensors",
        tmp_path / "photos",
        at_half_width(tiny_restormer),
    )
    save_student(student, narrow, student_metadata(narrow, "0" * 64, 0, {}))
    photos.mkdir()
    write_image(photos / "long.png", smooth_images(1, side=256)[0, :, :48])
    restored = {}
    for name, tiles in {"whole": (), "tiled": ("--tile", "176", "--overlap", "72")}.items():
        code, _, err = run("run", student, photos, "-o", tmp_path / name, *tiles, capsys=capsys)
        assert code == 0, err
        assert ("tiles" in err) == (name == "tiled")
        restored[name] = read_image(tmp_path / name / "long.png", 3)
    assert restored["whole"].shape == (3, 48, 256)
    assert float((restored["whole"] - restored["tiled"]).abs().max()) <= 1 / 255 + 1e-6
