"""The command line on MST and MST++, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import onnxruntime
import pytest
import scipy.io
import torch

from csa2glmha.checkpoint.student import load
from csa2glmha.data.images import write_image
from csa2glmha.data.inputs.cassi import initial_cube, shifted_mask
from csa2glmha.families.registry import build
from csa2glmha.metrics.complexity import format_macs, format_params
from tests.command_line import complaint, run

pytestmark = pytest.mark.usefixtures("quick_factors")

BANDS, HEIGHT, WIDTH = 6, 24, 32
QUICK = ["--calibration-crops", "4", "--calibration-size", "16", "--crop", "16", "--no-latency"]
QUICK += ["--distill-steps", "4", "--batch", "2", "--rank", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, a mask, cubes and images, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("spectral things")
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    for name, network in (
        ("mst", build("mst", {"dim": BANDS, "num_blocks": [1, 1, 1]})),
        ("mstpp", build("mst_plus_plus", {"in_channels": 3, "n_feat": 8, "stage": 1, "num_blocks": [1, 1]})),
    ):
        torch.save({"state_dict": network.state_dict()}, folder / f"{name}.pth")
    np.save(folder / "mask.npy", (torch.rand(HEIGHT, WIDTH, generator=generator) < 0.5).float().numpy())
    np.save(folder / "other mask.npy", np.ones((HEIGHT, WIDTH), np.float32))
    (folder / "cubes").mkdir()
    (folder / "rgb").mkdir()
    for index in range(3):
        small = torch.rand(1, BANDS, 5, 6, generator=generator)
        cube = torch.nn.functional.interpolate(small, (40, 48), mode="bilinear")[0]
        with h5py.File(folder / "cubes" / f"{index}.mat", "w") as file:  # as MATLAB 7.3 writes (H, W, bands)
            file["cube"] = cube.permute(0, 2, 1).numpy()
            file["cube"].attrs["MATLAB_class"] = np.bytes_("single")
            file["other"] = np.ones((2, 2, 2), np.float32)
        write_image(folder / "rgb" / f"{index}.png", cube[:3])
    return folder


def data_of(place: Path) -> list[object]:
    return ["--data", place / "cubes", "--mat-key", "cube", "--mask", place / "mask.npy"]


@pytest.fixture(scope="module")
def converted(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        from csa2glmha import convert

        options = {"rank": 2, "calibration_crops": 4, "calibration_size": 16, "crop": 16, "batch": 2}
        convert(
            "mst.pth",
            data="cubes",
            mat_key="cube",
            mask="mask.npy",
            distill_steps=4,
            latency=False,
            **options,
        )
    return place / "mst-rank2"


def test_convert_bakes_the_mask_in(converted: Path) -> None:
    names = {path.name for path in converted.iterdir()}
    assert names >= {"student.safetensors", "model.onnx", "report.json", "report.md", "comparison.png"}
    assert "spectra.png" in names
    report = json.loads((converted / "report.json").read_text())
    assert report["input_size"] == [HEIGHT, WIDTH]
    assert len(report["complexity"]["input_shapes"]) == 2
    assert report["complexity"]["input_shapes_after"] == [[1, BANDS, HEIGHT, WIDTH]]
    assert report["complexity"]["after"]["constants"] > 0
    assert report["complexity"]["after"]["macs"] < report["complexity"]["before"]["macs"]
    assert report["distillation"]["after"] >= report["distillation"]["before"]
    assert set(report["quality"]["student"]["ground_truth"]) == {
        "psnr",
        "ssim",
        "psnr_bands",
        "sam",
        "mrae",
        "rmse",
    }
    assert len(report["quality"]["student"]["teacher_bands"]["ssim"]) == BANDS
    (pixel, *_), *_ = (image["spectra"] for image in report["comparisons"]["images"])
    assert len(pixel["teacher"]) == len(pixel["student"]) == len(pixel["ground_truth"]) == BANDS
    page = (converted / "report.html").read_text(encoding="utf-8")
    assert f"row {pixel['row']}, column {pixel['column']}" in page
    text = (converted / "report.md").read_text()
    assert "constants of the mask" in text and "spectral angle to ground truth" in text


def test_a_dry_run_foretells_the_student_with_the_mask_baked_in(
    converted: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    after = json.loads((converted / "report.json").read_text())["complexity"]["after"]
    options = ["--rank", 2, "--crop", 16, "--calibration-size", 16, "--dry-run", "-o", "elsewhere"]
    code, out, err = run("convert", place / "mst.pth", *data_of(place), *options, capsys=capsys)
    assert code == 0, err
    foretold = f"{format_params(after['params'])} parameters, {format_macs(after['macs'])}MAC"
    assert f"which leaves {foretold}" in out


def test_onnx_has_one_input_and_agrees_with_the_student(converted: Path, place: Path) -> None:
    cube = np.random.default_rng(0).random((1, BANDS, HEIGHT, WIDTH), np.float32)
    session = onnxruntime.InferenceSession(converted / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(node.name, node.shape[1:]) for node in session.get_inputs()] == [
        ("input", [BANDS, HEIGHT, WIDTH])
    ]
    (from_onnx,) = session.run(None, {"input": cube})
    with torch.no_grad():
        from_torch = load(converted / "student.safetensors")(torch.from_numpy(cube)).numpy()
    assert np.abs(from_onnx - from_torch).max() < 1e-4 * np.ptp(from_torch)


def test_a_search_counts_students_with_the_mask_baked_in(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A third of MST's MACs are the mask's: what is counted without them is within reach."""
    quick = [*QUICK[:-2], "--no-distill", "--rank", "auto", "-o", tmp_path / "out"]
    code, _, err = run("convert", place / "mst.pth", *data_of(place), *quick, "--macs", "0.1", capsys=capsys)
    assert code == 2 and "the smallest is" in err
    # At the least all of the attention is skipped, and the mask with it.
    share = float(err.split("the smallest is ")[1].split(" ")[0]) + 0.2
    code, _, err = run("convert", place / "mst.pth", *data_of(place), *quick, "--macs", share, capsys=capsys)
    assert code == 0, err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    before, after = (report["complexity"][when] for when in ("before", "after"))
    assert after["macs"] <= share * before["macs"] and after["constants"] > 0
    assert report["search"]["reached"] == {"macs": after["macs"], "params": after["params"]}


def test_full_rank_with_the_mask_baked_in_is_lossless(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(
        "convert", place / "mst.pth", *data_of(place), *QUICK, "--rank", "full", "-o", tmp_path, capsys=capsys
    )
    assert code == 0, err
    assert "constants of the mask" in out
    mask = torch.from_numpy(np.load(place / "mask.npy"))
    cube = initial_cube(torch.rand(2, HEIGHT, WIDTH + 2 * (BANDS - 1)), BANDS)
    with torch.no_grad():
        expected = load(place / "mst.pth")(cube, shifted_mask(mask, BANDS))
        found = load(tmp_path / "student.safetensors")(cube)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_without_a_mask_the_student_keeps_two_inputs(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", place / "mst.pth", "--data", place / "rgb", *QUICK, "--input-size", "32"]
    code, out, err = run(*arguments, "-o", tmp_path, capsys=capsys)
    assert code == 0, err
    assert "no --mask" in err and "synthetic spectra are made of them" in err
    assert "constants" not in out
    assert load(tmp_path / "student.safetensors").input_names == ("input", "mask")
    assert json.loads((tmp_path / "report.json").read_text())["data"]["source"].startswith("synthetic")
    for file in ("model.onnx", "student.safetensors"):
        command = ["evaluate", tmp_path / file, "--data", place / "rgb", "--json", "--mask"]
        code, out, err = run(*command, place / "mask.npy", capsys=capsys)
        assert code == 0, err
        assert len(json.loads(out)["ground_truth"]["per_image"]) == 3


def test_evaluate_distill_and_export_a_baked_student(
    converted: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = converted / "student.safetensors"
    teacher = ["--teacher", place / "mst.pth"]
    found = []
    for file in (student, converted / "model.onnx"):
        code, out, err = run("evaluate", file, *data_of(place), *teacher, "--json", capsys=capsys)
        assert code == 0, err
        found.append(json.loads(out))
    assert found[0]["ground_truth"]["mean"]["sam"] == pytest.approx(
        found[1]["ground_truth"]["mean"]["sam"], rel=1e-3
    )
    assert len(found[0]["ground_truth"]["bands"]["psnr"]) == BANDS
    code, out, err = run("evaluate", student, *data_of(place), capsys=capsys)
    assert code == 0 and "spectral angle" in out, err

    command = ["distill", student, *teacher, *data_of(place), "--distill-steps", "4", "--crop", "16"]
    code, out, err = run(*command, "-o", tmp_path / "more.safetensors", capsys=capsys)
    assert code == 0, err
    more = load(tmp_path / "more.safetensors")
    assert more.fixed_size == (HEIGHT, WIDTH)
    before = load(student)
    for name, value in before.named_buffers():  # training leaves the mask's constants alone
        torch.testing.assert_close(more.get_buffer(name), value, rtol=1e-4, atol=1e-5)

    code, out, err = run("export", student, "-o", tmp_path / "again.onnx", capsys=capsys)
    assert code == 0, err
    code, out, err = run("inspect", student, capsys=capsys)
    assert code == 0 and f"{HEIGHT} x {WIDTH}" in out and "mask: mask.npy" in out, err


def test_mst_plus_plus(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", place / "mstpp.pth", "--data", place / "rgb", *QUICK, "--rank-pos", "4"]
    code, out, err = run(*arguments, "--input-size", "32", "-o", tmp_path / "out", capsys=capsys)
    assert code == 0, err
    assert "spectral angle to teacher" in out and "to ground truth" not in out
    layers = json.loads((tmp_path / "out" / "report.json").read_text())["layers"]
    assert {layer["rank_k"] for layer in layers} == {2}
    assert all("projection's Gram matrix (rank 2)" in layer["route"] for layer in layers)
    code, out, err = run(
        "evaluate",
        tmp_path / "out" / "model.onnx",
        "--data",
        place / "rgb",
        "--teacher",
        place / "mstpp.pth",
        capsys=capsys,
    )
    assert code == 0 and "output against teacher" in out, err


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--mask", "nowhere.mat"], "nowhere.mat", 1),
        (["--mask", "mask.npy", "--data", "cubes"], "cube (", 1),
        (["--mask", "mask.npy", "--data", "cubes", "--mat-key", "kube"], "no array 'kube'", 1),
        (["--mask", "mask.npy", "--crop", "30"], "--crop 30: does not fit a mask of 24x32", 2),
        (["--mask", "mask.npy", "--rank", "7"], "rank 7 of k is above the 6 channels", 2),
        (["--attention", "compact"], "no compact form", 2),
        (["--degrade", "noise:5"], "leave it out", 2),
    ],
)
def test_mistakes_with_mst(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
    code: int,
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    given = [*QUICK, *arguments, "-o", "out"]
    assert message in complaint("convert", "mst.pth", *given, capsys=capsys, code=code)
    assert sorted(place.rglob("*")) == before


def test_mistakes_with_students_and_masks(
    converted: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, cubes = converted / "student.safetensors", ["--data", place / "cubes", "--mat-key", "cube"]
    distill = ["distill", student, "--teacher", place / "mst.pth", *cubes, "-o", tmp_path / "x.safetensors"]
    assert "has a mask baked in; give its file" in complaint(*distill, capsys=capsys, code=2)
    other = ["--mask", place / "other mask.npy"]
    assert "is not the mask" in complaint(*distill, *other, capsys=capsys, code=2)
    assert "give the file of that mask" in complaint("evaluate", student, *cubes, capsys=capsys, code=2)
    wrong = ["evaluate", place / "mstpp.pth", "--data", place / "rgb"]
    assert "give --targets DIR of cubes" in complaint(*wrong, capsys=capsys, code=2)
    assert "takes no mask" in complaint(*wrong, *other, capsys=capsys, code=2)


def test_a_mask_is_known_by_its_values_in_whatever_file(
    converted: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.load(place / "mask.npy")
    stack = shifted_mask(torch.from_numpy(mask), BANDS)[0].permute(1, 2, 0).numpy()
    scipy.io.savemat(tmp_path / "masks.mat", {"Mask": mask, "CA": mask[::-1], "stack": stack})
    given = ["--mat-key", "cube", "--mask", tmp_path / "masks.mat"]
    for file in (converted / "student.safetensors", converted / "model.onnx"):
        evaluate = ["evaluate", file, "--data", place / "cubes", *given]
        assert "say which with --mask-key" in complaint(*evaluate, capsys=capsys, code=1)
        assert "is not the mask" in complaint(*evaluate, "--mask-key", "CA", capsys=capsys, code=2)
        for key in ("Mask", "stack"):
            code, _, err = run(*evaluate, "--mask-key", key, capsys=capsys)
            assert code == 0, err
    restore = ["run", converted / "model.onnx", place / "cubes", "-o", tmp_path / "out", *given]
    assert "is not the mask" in complaint(*restore, "--mask-key", "CA", capsys=capsys, code=2)
    scale = ["--mask-key", "Mask", "--measurement-scale", "14"]
    assert "no input is a measurement" in complaint(*restore, *scale, capsys=capsys, code=2)
    code, _, err = run(*restore, "--mask-key", "Mask", capsys=capsys)
    assert code == 0, err
    wrong = ["evaluate", place / "mstpp.pth", "--data", place / "rgb", "--measurement-scale", "14"]
    assert "takes no mask and no measurements" in complaint(*wrong, capsys=capsys, code=2)
    assert "needs --mask" in complaint(*wrong[:4], "--mask-key", "a", capsys=capsys, code=2)


def test_another_mask_of_the_same_size_is_refused(
    converted: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (converted / "student.safetensors", converted / "model.onnx"):
        wrong = ["--mask", place / "other mask.npy", "--mat-key", "cube"]
        for command in (
            ["evaluate", file, "--data", place / "cubes", *wrong],
            ["run", file, place / "cubes", "-o", tmp_path / "out", *wrong],
        ):
            code, _, err = run(*command, capsys=capsys)
            assert code == 2 and "other mask.npy: is not the mask that this model was made for" in err


def test_lower_precisions_of_a_baked_student_are_not_measured_on_something_else(
    converted: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", converted / "student.safetensors", "--precision", "int8", "-o", tmp_path / "m.onnx"]
    code, _, err = run(*command, "--data", place / "cubes", capsys=capsys)
    assert code == 2 and "convert without --mask" in err
    assert not (tmp_path / "m.onnx").exists()


def test_a_teacher_of_another_kind(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", place / "mstpp.pth", "--data", place / "rgb", "--teacher", place / "mst.pth"]
    code, _, err = run(*command, capsys=capsys)
    assert code == 2 and "give the checkpoint that it was made from" in err
