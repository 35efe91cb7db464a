"""`run`: what is read, where it goes, and that nothing of the user's is lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import scipy.io
import torch
from onnx import TensorProto, helper, numpy_helper

from csa2glmha.checkpoint.student import load, save_student, student_metadata
from csa2glmha.commands.run import run_files
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import DataError, OutputError, UsageError
from csa2glmha.data.images import read_image, write_image
from csa2glmha.data.inputs.cassi import initial_cube, measure, shifted_mask
from csa2glmha.data.inputs.stretch import stretch
from csa2glmha.export import runtime
from csa2glmha.families.mst.network import bake_mask
from csa2glmha.families.registry import build
from csa2glmha.inference import plan
from csa2glmha.inference.memory import tile_needs, whole_needs
from csa2glmha.inference.plan import TileOptions
from csa2glmha.networks import RestorationModel
from tests.command_line import complaint, run
from tests.conftest import TINY_RESTORMER


def saved(path: Path, name: str, **settings: object) -> Path:
    torch.manual_seed(0)
    model = build(name, settings)
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "colour.pth", "restormer", **TINY_RESTORMER)


def blurring_onnx(path: Path) -> Path:
    """An ONNX file that takes the mean of each channel's 3 x 3 pixels, zeros around the image."""
    weight = numpy_helper.from_array(np.full((3, 1, 3, 3), 1 / 9, np.float32), "weight")
    node = helper.make_node("Conv", ["input", "weight"], ["output"], group=3, pads=[1, 1, 1, 1])
    shape = ["batch", 3, "height", "width"]
    ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output"))
    graph = helper.make_graph([node], "blur", [next(ends)], [next(ends)], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of odd sizes, 8 and 16 bits, colour and gray, in subfolders, and a broken one."""
    generator = torch.Generator().manual_seed(0)
    root = tmp_path / "in put"
    (root / "deep" / "er").mkdir(parents=True)
    write_image(root / "a.png", torch.rand(3, 33, 41, generator=generator))
    write_image(root / "deep" / "b.TIF", torch.rand(3, 17, 24, generator=generator), 16)
    write_image(root / "deep" / "er" / "gray.png", torch.rand(1, 9, 8, generator=generator), 16)
    (root / "broken.png").write_bytes(b"\x89PNG no more")
    return root


def expected(model: RestorationModel, path: Path, channels: int = 3) -> torch.Tensor:
    with torch.inference_mode():
        return model(read_image(path, channels)[None])[0].clamp(0, 1)


def test_folders_keep_names_subfolders_and_depth(colour: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = run_files(colour, [folder], output)
    names = {path.relative_to(output).as_posix() for path in result.written}
    assert names == {"a.png", "deep/b.TIF", "deep/er/gray.png"}
    assert {path for path in output.rglob("*") if path.is_file()} == set(result.written)
    assert [path.name for path, _ in result.skipped] == ["broken.png"]
    model = load(colour)
    for name, levels in (("a.png", 255), ("deep/b.TIF", 65535), ("deep/er/gray.png", 65535)):
        stored = cv2.imread(str(output / name), cv2.IMREAD_UNCHANGED)
        assert stored.dtype == (np.uint8 if levels == 255 else np.uint16) and stored.ndim == 3
        difference = read_image(output / name, 3) - expected(model, folder / name)
        assert difference.abs().max() < 0.51 / levels + 1e-6


def test_more_bits_than_the_suffix_holds(
    colour: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_image(folder / "16.png", torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)), 16)
    (folder / "16.png").rename(folder / "16.jpg")
    write_image(folder / "later.png", torch.rand(3, 8, 8))
    result = run_files(colour, [folder], tmp_path / "out")
    assert [path.name for path in result.written] == ["16.jpg", "later.png"] and not result.skipped
    stored = cv2.imread(str(result.written[0]), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint8 and stored.shape == (16, 16, 3)
    assert "16.jpg: written with 8 bits" in capsys.readouterr().err


class Picky:
    """In place of a restorer: fails as memory or a network would, by the image's name."""

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, name: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if name.startswith("large"):
            raise DataError("tiles of 256x256: takes 9.00 GB, there are 1.00")
        return inputs[0][0] * (float("nan") if name.startswith("nan") else 1)


def test_one_file_of_a_folder_does_not_stop_the_others(
    colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("large.png", "nan.png", "well.png"):
        write_image(folder / name, torch.rand(3, 8, 8))
    result = run_files(colour, [folder], tmp_path / "out", make_restorer=Picky)
    assert [path.name for path in result.written] == ["well.png"]
    assert [path.name for path, _ in result.skipped] == ["large.png", "nan.png"] and result.failed == 2
    said = capsys.readouterr().err
    assert f"skipped {folder / 'large.png'}: tiles of" in said and "not finite" in said
    for name, error in (("large.png", DataError), ("nan.png", OutputError)):
        with pytest.raises(error):
            images = [folder / name, folder / "well.png"]
            run_files(colour, images, tmp_path / name, make_restorer=Picky)


def test_a_full_disk_ends_the_run(
    colour: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="free some space"):
        run_files(colour, [folder], tmp_path / "out")


def test_gray_models_write_gray(tmp_path: Path) -> None:
    model = saved(tmp_path / "gray.pth", "restormer", **TINY_RESTORMER, in_channels=1, out_channels=1)
    write_image(tmp_path / "x.ppm", torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)))
    (written,) = run_files(model, [tmp_path / "x.ppm"], tmp_path / "out").written
    assert written.name == "x.pgm"
    assert cv2.imread(str(written), cv2.IMREAD_UNCHANGED).shape == (16, 16)


def test_nothing_is_overwritten_unasked(colour: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (output / "deep").mkdir(parents=True)
    (output / "deep" / "b.TIF").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        run_files(colour, [folder], output)
    assert [path for path in output.rglob("*") if path.is_file()] == [output / "deep" / "b.TIF"]
    run_files(colour, [folder], output, overwrite=True)
    assert read_image(output / "deep" / "b.TIF", 3).shape == (3, 17, 24)


def test_an_interrupted_run_goes_on(
    colour: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    (output / "deep").mkdir(parents=True)
    (output / "deep" / "b.TIF").write_text("mine")
    (output / "a.png").write_text("mine")
    there = "and 1 more already exist: pass --skip-existing to make only what is missing, --overwrite"
    with pytest.raises(OutputError, match=there):
        run_files(colour, [folder], output)
    (output / "a.png").unlink()
    with pytest.raises(OutputError, match=r"b\.TIF' already exists: pass"):
        run_files(colour, [folder], output)
    arguments = ["run", str(colour), str(folder), "-o", str(output), "--skip-existing"]
    for printed in ("2 files written to {}, 1 were there, 1 skipped", "0 files written to {}, 3 were there"):
        code, out, err = run(*arguments, capsys=capsys)
        # broken.png fails each time: a script must see it.
        assert code == 1 and "files could not be restored" in err
        assert printed.format(output) in out
    (folder / "broken.png").rename(folder / "broken.gif")  # a format that is not read is no failure
    code, out, _ = run(*arguments, capsys=capsys)
    assert code == 0 and "1 skipped" in out
    assert (output / "deep" / "b.TIF").read_text() == "mine"
    assert read_image(output / "a.png", 3).shape == (3, 33, 41)
    with pytest.raises(UsageError, match="exclude each other"):
        run_files(colour, [folder], output, overwrite=True, skip_existing=True)
    # Inputs are no results that were there.
    with pytest.raises(UsageError, match="is an input"):
        run_files(colour, [folder], folder, skip_existing=True)


def test_inputs_are_never_replaced(colour: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="is an input"):
        run_files(colour, [folder], folder, overwrite=True)
    with pytest.raises(UsageError, match="is an input"):
        run_files(colour, [folder / "a.png"], folder / "deep" / "..", overwrite=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_two_inputs_for_one_output(colour: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_image(tmp_path / "other" / "a.png", torch.rand(3, 8, 8))
    with pytest.raises(UsageError, match="would both be written"):
        run_files(colour, [folder / "a.png", tmp_path / "other"], tmp_path / "out")


def test_a_folder_inside_is_not_its_own_input(colour: Path, folder: Path) -> None:
    first = run_files(colour, [folder], folder / "restored")
    again = run_files(colour, [folder], folder / "restored", overwrite=True)
    assert first.written == again.written


@pytest.mark.parametrize("options", [TileOptions(96, 16), TileOptions(96, 16, "plain")])
def test_tiles_on_request(
    colour: Path, tmp_path: Path, options: TileOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 7), (130, 149), mode="bicubic").clamp(0, 1)[0]
    write_image(tmp_path / "x.png", image, 16)
    (written,) = run_files(colour, [tmp_path / "x.png"], tmp_path / "out", tiles=options).written
    difference = (read_image(written, 3) - expected(load(colour), tmp_path / "x.png")).abs().max()
    # These weights are as torch draws them: attention is weak, so all modes are near the whole image.
    assert difference < 0.05
    said = capsys.readouterr().err
    assert (
        "4 tiles of 96x96" in said
        and ("of its own" if options.mode else "made from 100% of the image") in said
    )


def test_tiles_where_the_memory_demands_it(
    colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "x.png", torch.rand(3, 272, 304, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(plan, "used_bytes", lambda device: 10**9)
    model = load(colour)
    whole = whole_needs(model, 272, 304)
    between = (whole + tile_needs(model, (256, 256), (128, 128), True).tile) // 2
    assert between < whole - 4 * 3 * 272 * 304
    for memory, found in ((10**10, ""), (10**9 + between, "tiles of 256x256")):
        out = tmp_path / str(memory)
        run_files(colour, [tmp_path / "x.png"], out, tiles=TileOptions(memory=memory))
        said = capsys.readouterr().err
        assert found in said and ("tiles" in said) == bool(found)
    with pytest.raises(DataError, match=r"takes 1\.\d\d GB, there are 1\.00; give more --memory"):
        run_files(colour, [tmp_path / "x.png"], tmp_path / "none", tiles=TileOptions(memory=1_001_000_000))
    assert not list((tmp_path / "none").rglob("*.png"))


@pytest.mark.parametrize("tiles", [None, TileOptions(48, 8), TileOptions(48, 8, "plain")])
def test_onnx_files_run_whole_and_in_tiles(tmp_path: Path, tiles: TileOptions | None) -> None:
    model = blurring_onnx(tmp_path / "blur.onnx")
    image = torch.rand(3, 96, 120, generator=torch.Generator().manual_seed(1))
    write_image(tmp_path / "x.png", image, 16)
    (written,) = run_files(model, [tmp_path / "x.png"], tmp_path / "out", tiles=tiles).written
    wanted = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    assert (read_image(written, 3) - wanted).abs().max() < 2 / 65535


@pytest.mark.parametrize(("size", "shown"), [(16, 16), (24, 24), (44, 40), (128, 128), (250, 248)])
def test_small_tiles_have_a_small_overlap(
    tmp_path: Path, size: int, shown: int, capsys: pytest.CaptureFixture[str]
) -> None:
    model = blurring_onnx(tmp_path / "blur.onnx")
    image = torch.rand(3, 256, 264, generator=torch.Generator().manual_seed(1))
    write_image(tmp_path / "x.png", image, 16)
    (written,) = run_files(model, [tmp_path / "x.png"], tmp_path / "out", tiles=TileOptions(size)).written
    wanted = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    difference = (read_image(written, 3) - wanted).abs()
    # Without overlap, which tiles of 16 have no room for, the zeros around the tiles show.
    assert (difference.max() < 2 / 65535) == (size > 16)
    assert f"tiles of {shown}x{shown}," in capsys.readouterr().err


def test_overlaps_that_leave_nothing_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = blurring_onnx(tmp_path / "blur.onnx")
    write_image(tmp_path / "small.png", torch.rand(3, 8, 8))
    for tiles in (TileOptions(128, 64), TileOptions(None, 256)):
        with pytest.raises(UsageError, match="nothing is left; give at least"):
            run_files(model, [tmp_path / "small.png"], tmp_path / "out", tiles=tiles)
    assert not (tmp_path / "out").exists()
    # Too wide for tiles of 256 only.
    run_files(model, [tmp_path / "small.png"], tmp_path / "out", tiles=TileOptions(None, 128))


def test_onnx_files_have_no_attention_to_share(tmp_path: Path) -> None:
    model = blurring_onnx(tmp_path / "blur.onnx")
    write_image(tmp_path / "x.png", torch.rand(3, 8, 8))
    with pytest.raises(UsageError, match="--tile-mode global: an ONNX file"):
        run_files(model, [tmp_path], tmp_path / "no", tiles=TileOptions(mode="global"))


def test_onnx_files_run_where_they_are_told_to_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = blurring_onnx(tmp_path / "blur.onnx")
    write_image(tmp_path / "x.png", torch.rand(3, 8, 8))
    monkeypatch.setattr(
        runtime.ort, "get_available_providers", lambda: ["AzureExecutionProvider", "CPUExecutionProvider"]
    )
    for device in ("cuda", "cuda:0", "mps", "toaster", ""):
        with pytest.raises(UsageError, match=f"^--device {device}: this ONNX Runtime has azure, cpu"):
            run_files(model, [tmp_path / "x.png"], tmp_path / "no", options=make_options(device=device))
    assert not (tmp_path / "no").exists()
    providers = []
    monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    opened = runtime._open_session

    def on_the_cpu(path: Path, threads: int | None, provider: str, profile: Path | None) -> object:
        providers.append(provider)
        return opened(path, threads, runtime.CPU_PROVIDER, profile)

    monkeypatch.setattr(runtime, "_open_session", on_the_cpu)
    for device in ("cuda", "auto"):
        run_files(model, [tmp_path / "x.png"], tmp_path / device, options=make_options(device=device))
    assert providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_rgb_to_spectra(tmp_path: Path) -> None:
    model = saved(tmp_path / "pp.pth", "mst_plus_plus", n_feat=4, stage=1, num_blocks=[1, 1, 1])
    write_image(tmp_path / "x.png", torch.rand(3, 21, 30, generator=torch.Generator().manual_seed(0)))
    with torch.inference_mode():
        image = stretch(read_image(tmp_path / "x.png", 3))
        cube = load(model)(image[None])[0].permute(1, 2, 0).clamp(0, 1).numpy()
    (npy,) = run_files(model, [tmp_path / "x.png"], tmp_path / "out").written
    (mat,) = run_files(model, [tmp_path / "x.png"], tmp_path / "out", cube_suffix=".mat").written
    assert (npy.name, mat.name) == ("x.npy", "x.mat")
    assert np.load(npy).shape == (21, 30, 4)
    np.testing.assert_allclose(np.load(npy), cube, atol=1e-5)
    np.testing.assert_array_equal(scipy.io.loadmat(mat)["cube"], np.load(npy))


def test_mst_takes_measurements_and_cubes(tmp_path: Path) -> None:
    path = saved(tmp_path / "mst.pth", "mst", dim=4, num_blocks=[1, 1, 1])
    model, generator = load(path), torch.Generator().manual_seed(0)
    mask = (torch.rand(36, 40, generator=generator) < 0.5).float()
    cube = torch.rand(4, 36, 40, generator=generator)
    measurement = measure(cube, mask)
    np.save(tmp_path / "mask.npy", mask.numpy())
    np.save(tmp_path / "scene.npy", cube.permute(1, 2, 0).numpy())
    scipy.io.savemat(tmp_path / "shot.mat", {"y": (measurement / 2).numpy()})  # relative to white, 4 / 2
    with torch.inference_mode():
        wanted = model(initial_cube(measurement, 4)[None], shifted_mask(mask, 4))[0].permute(1, 2, 0)
    sources = [tmp_path / "scene.npy", tmp_path / "shot.mat"]
    result = run_files(path, sources, tmp_path / "out", options=make_options(mask=tmp_path / "mask.npy"))
    assert [written.name for written in result.written] == ["scene.npy", "shot.npy"]
    for written in result.written:
        np.testing.assert_allclose(np.load(written), wanted.numpy(), atol=1e-4)
    with pytest.raises(UsageError, match="--mask"):
        run_files(path, sources, tmp_path / "no")
    baked = tmp_path / "baked.safetensors"
    baked_model = bake_mask(model, shifted_mask(mask, 4))
    save_student(baked, baked_model, student_metadata(baked_model, "0" * 64, 0, {}))
    (written,) = run_files(
        baked, sources[:1], tmp_path / "baked", options=make_options(mask=tmp_path / "mask.npy")
    ).written
    np.testing.assert_allclose(np.load(written), wanted.numpy(), atol=1e-4)
    with pytest.raises(UsageError, match="36x40 pixels only"):
        run_files(
            baked,
            sources,
            tmp_path / "no",
            options=make_options(mask=tmp_path / "mask.npy"),
            tiles=TileOptions(32, 8),
        )


def test_dual_pixel_models_take_pairs_of_views(tmp_path: Path) -> None:
    model = saved(tmp_path / "dual.pth", "restormer", **TINY_RESTORMER, in_channels=6, dual_pixel=True)
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(3, 16, 24, generator=generator) for _ in range(2)]
    for name, view in zip(("inputL", "inputR"), views, strict=True):
        (tmp_path / "pairs" / name).mkdir(parents=True)
        write_image(tmp_path / "pairs" / name / "1.png", view, 16)
    (written,) = run_files(model, [tmp_path / "pairs"], tmp_path / "out").written
    with torch.inference_mode():
        wanted = load(model)(torch.cat(views)[None])[0].clamp(0, 1)
    assert written == tmp_path / "out" / "1.png"
    assert (read_image(written, 3) - wanted).abs().max() < 1e-3
    with pytest.raises(DataError, match="inputL and inputR"):
        run_files(model, [tmp_path / "pairs" / "inputL"], tmp_path / "no")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere.png"], 1, "does not exist"),
        (["model.pth"], 1, "takes .png"),
        (["empty"], 1, "no images"),
        (["x.png", "--mask", "m.mat"], 2, "takes no mask"),
        (["x.png", "--tile", "128", "--overlap", "64"], 2, "nothing is left"),
        (["x.png", "--tile", "4"], 2, "--tile"),
        ([], 2, "IMAGES"),
    ],
)
def test_one_clear_line(
    colour: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.pth").write_bytes(b"")
    write_image(tmp_path / "x.png", torch.rand(3, 200, 200))
    assert words in complaint("run", colour, *arguments, "-o", "out", capsys=capsys, code=code)
