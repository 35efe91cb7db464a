"""Data that cannot be used is told before there is work to lose; files that go take nothing else along."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from csa2glmha.checkpoint.student import load, save_student
from csa2glmha.commands import convert as pipeline
from csa2glmha.commands import evaluate as evaluation
from csa2glmha.commands.evaluate import OpenModel, evaluate_file
from csa2glmha.commands.run import run_files
from csa2glmha.compression.exporting import Export
from csa2glmha.compression.files import CONVERSION_STAGES, replaced
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import DataError, ExportError, UsageError
from csa2glmha.data.batches import Inputs
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.images import MemoryImages, write_image
from csa2glmha.data.inputs.kind import NetworkFacts
from csa2glmha.data.sources import ImageData, open_images
from csa2glmha.distill.engine import _Training
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.families.restormer.network import Restormer
from tests.conftest import MakeRestormer
from tests.inference.test_restore import blurring_onnx


def photos(folder: Path, count: int, side: int = 16) -> Path:
    folder.mkdir()
    for number in range(count):
        write_image(folder / f"{number}.png", torch.rand(3, side, side))
    return folder


def not_run(inputs: Inputs) -> torch.Tensor:
    pytest.fail("the network was run")


def test_images_too_small_for_ssim_are_left_out(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 2)
    write_image(folder / "small.png", torch.rand(3, 30, 6))
    found, (note,) = open_images(folder, 3)
    assert len(found) == 2 and "small.png (too small: 6x30, at least 7x7 pixels are needed)" in note


def test_what_cannot_be_evaluated_on_is_told_first(tiny_restormer: Restormer) -> None:
    images = MemoryImages([("tiny", torch.rand(3, 20, 5))])
    data = ImageData(images, images, None, "here", (), False)
    with pytest.raises(DataError, match="tiny: 5x20 pixels are too few to evaluate on, SSIM needs 7x7"):
        pipeline.check_data(tiny_restormer, data, make_options(rank=4))


def test_evaluate_tells_first_that_there_is_no_ground_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two different views, degraded: neither is what should come out.
    for side in ("left", "right"):
        photos(tmp_path / side, 2)
    opened = OpenModel(not_run, NetworkFacts("restormer", "images", 6, 3))
    with pytest.raises(UsageError, match="no ground truth to compare with"):
        evaluate_file(
            Path("m.pth"),
            make_options(data=tmp_path, degrade="noise:5"),
            None,
            None,
            opener=lambda *_, **__: opened,
        )


@pytest.mark.parametrize(
    ("channels", "crop", "channel", "match"),
    [(3, 6, "rgb", "--crop 6: give a side in pixels, at least 7"), (1, None, "y", "makes no colour images")],
)
def test_evaluate_refuses_first(
    monkeypatch: pytest.MonkeyPatch, channels: int, crop: int | None, channel: str, match: str
) -> None:
    opened = OpenModel(not_run, NetworkFacts("restormer", "images", channels, channels))
    with pytest.raises(UsageError, match=match):
        evaluate_file(
            Path("m.pth"), make_options(degrade="noise:5"), None, crop, channel, lambda *_, **__: opened
        )


def test_evaluate_says_and_records_what_is_odd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(tmp_path / "photos", 1)
    (folder / "b.gif").write_bytes(b"GIF89a")
    opened = OpenModel(lambda inputs: inputs[0][0], NetworkFacts("restormer", "images", 3, 3))
    found = evaluate_file(
        Path("m.pth"),
        make_options(data=folder, degrade="noise:5"),
        None,
        None,
        opener=lambda *_, **__: opened,
    )
    (note,) = found["notes"]
    assert "b.gif (GIF is not read)" in note and note in capsys.readouterr().err
    assert "PSNR (RGB)" in evaluation.describe_evaluation(found)


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of images that keep nothing in memory, as large ones do."""
    add: Callable[..., int] = ImageSet._add
    monkeypatch.setattr(ImageSet, "_add", lambda self, entry, stored, budget: add(self, entry, stored, 0))


def test_an_image_that_goes_during_training_can_be_put_back(
    tmp_path: Path, tiny_restormer: Restormer, monkeypatch: pytest.MonkeyPatch, uncached: None
) -> None:
    torch.save(tiny_restormer.state_dict(), tmp_path / "teacher.pth")
    folder = photos(tmp_path / "photos", 4)
    options: dict[str, Any] = {
        "rank": 4, "attention": "compact", "data": folder, "degrade": "noise:25", "output": tmp_path / "out",
        "distill_steps": 6, "distill_stages": "end", "batch": 1, "crop": 16, "calibration_crops": 2,
        "calibration_size": 16, "input_size": 16, "latency": False,
    }  # fmt: skip
    step, kept = _Training.step, {path: path.read_bytes() for path in folder.iterdir()}

    def lose_images(self: _Training, *arguments: Any) -> bool:
        if self.at.taken == 2:
            for path in kept:
                path.unlink(missing_ok=True)
        return step(self, *arguments)

    monkeypatch.setattr(_Training, "step", lose_images)
    with pytest.raises(DataError) as caught:
        pipeline.convert(tmp_path / "teacher.pth", **options)
    message = str(caught.value)
    assert ".png' was there and no longer is as it was: not to be opened: No such file" in message
    assert "the state of step 2 is in" in message and "--resume" in message

    for path, data in kept.items():
        path.write_bytes(data)
    monkeypatch.setattr(_Training, "step", step)

    def reached(*_: Any, **__: Any) -> None:
        raise ExportError("the training is done")

    stages = replaced(Export(reached), CONVERSION_STAGES)
    with pytest.raises(ExportError, match="the training is done"):
        pipeline.run_conversion(tmp_path / "teacher.pth", make_options(**options, resume=True), stages=stages)


def test_a_run_goes_on_without_an_image_that_goes(
    tmp_path: Path,
    tiny_restormer: Restormer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save(tiny_restormer.state_dict(), tmp_path / "model.pth")
    folder = photos(tmp_path / "photos", 3)

    class Losing:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, name: str, inputs: Inputs) -> torch.Tensor:
            (folder / "1.png").unlink(missing_ok=True)
            return inputs[0][0]

    result = run_files(tmp_path / "model.pth", [folder], tmp_path / "out", make_restorer=Losing)
    assert [path.name for path in result.written] == ["0.png", "2.png"]
    ((path, reason),) = result.skipped
    assert path == folder / "1.png" and "No such file" in reason
    assert capsys.readouterr().err.count("1.png") == 1


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_names_that_are_not_utf_8(tmp_path: Path, make_restormer: MakeRestormer) -> None:
    folder = tmp_path / os.fsdecode(b"fr\xfch")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    model = make_restormer(num_refinement_blocks=0)
    torch.save(model.state_dict(), folder / "model.pth")
    save_student(folder / "model.safetensors", model, {})
    for suffix in (".pth", ".safetensors"):
        loaded = load(folder / f"model{suffix}").state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    image = torch.rand(1, 3, 8, 8)
    assert OnnxModel(blurring_onnx(folder / "blur.onnx"))(image)[0].shape == (3, 8, 8)
    (written,) = run_files(folder / "blur.onnx", [photos(folder / "in", 1)], folder / "out").written
    assert written == folder / "out" / "0.png"
