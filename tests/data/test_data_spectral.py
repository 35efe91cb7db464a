from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
import torch

from csa2glmha.checkpoint import read_checkpoint
from csa2glmha.core.errors import DataError
from csa2glmha.data.arrays import find_array
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.images import MemoryImages, write_image
from csa2glmha.data.inputs.cassi import (
    CassiScenes,
    disperse,
    initial_cube,
    measure,
    shifted_mask,
    windows,
)
from csa2glmha.data.inputs.cubes import read_cube
from csa2glmha.data.inputs.masks import load_mask
from csa2glmha.data.inputs.recorded import RecordedMeasurements, read_stored_measurement, scale_measurement
from csa2glmha.data.inputs.spectral import CubeSet, SpectralPairs
from csa2glmha.data.inputs.synthetic import SyntheticSpectra, synthetic_spectra, wavelengths
from csa2glmha.families.registry import build_from_state
from csa2glmha.metrics.quality import psnr

BANDS, HEIGHT, WIDTH = 4, 6, 9


@pytest.fixture
def shared() -> Path:
    root = os.environ.get("CSA2GLMHA_SHARED")
    if not root:
        pytest.skip("CSA2GLMHA_SHARED is not set: it names the folder of masks, measurements and images")
    return Path(root)


@pytest.fixture
def cube() -> np.ndarray:
    return np.random.default_rng(0).random((BANDS, HEIGHT, WIDTH), np.float32)


def save_matlab73(path: Path, **arrays: np.ndarray) -> None:
    """As MATLAB does: a header of 512 bytes before the HDF5 data, and the axes in reverse."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array.T
        file.create_group("#refs#")
    with path.open("rb+") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")


def save(path: Path, array: np.ndarray, name: str = "cube") -> None:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, **{name: array})
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack")
    elif path.stem.endswith("73"):
        save_matlab73(path, **{name: array})
    else:
        scipy.io.savemat(path, {name: array})


def refused(call: Any, *args: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("bands_last", [True, False])
@pytest.mark.parametrize("name", ["a.mat", "a73.mat", "a.npy", "a.npz", "a.tif"])
def test_every_format_and_both_axis_orders(tmp_path: Path, cube: Any, name: str, bands_last: Any) -> None:
    save(tmp_path / name, cube.transpose(1, 2, 0) if bands_last else cube)
    result = read_cube(tmp_path / name, BANDS)
    assert result.dtype == torch.float32
    assert torch.equal(result, torch.from_numpy(cube))


@pytest.mark.parametrize("name", ["a.mat", "a73.mat", "a.npy", "a.tif"])
def test_integers_are_scaled_and_floats_are_not(tmp_path: Path, cube: Any, name: str) -> None:
    for dtype, white in ((np.uint8, 255), (np.uint16, 65535)):
        stored = (cube * white).astype(dtype)
        save(tmp_path / name, stored)
        assert np.allclose(read_cube(tmp_path / name, BANDS), stored / white, atol=1e-7)
    save(tmp_path / name, 3 * cube.astype(np.float64))
    assert np.allclose(read_cube(tmp_path / name, BANDS), 3 * cube)


@pytest.mark.parametrize("version", ["5", "73"])
def test_the_cube_among_several_arrays(tmp_path: Path, cube: Any, version: str) -> None:
    path = tmp_path / f"scene{version}.mat"
    arrays = {"rad": cube, "hsi": 0.5 * cube, "bands": np.linspace(400.0, 700.0, 4)[None]}
    scipy.io.savemat(path, arrays) if version == "5" else save_matlab73(path, **arrays)
    message = refused(read_cube, path, BANDS)
    assert "rad (4x6x9)" in message
    assert "hsi (4x6x9)" in message
    assert "--mat-key" in message
    assert np.allclose(read_cube(path, BANDS, "hsi"), 0.5 * cube)
    assert "'cube'" in refused(read_cube, path, BANDS, "cube")
    assert "no 3-D array named 'bands'" in refused(read_cube, path, BANDS, "bands")
    del arrays["hsi"]
    scipy.io.savemat(path, {**arrays, "note": "text", "list": np.full((1, 2, 3), "x", object)})
    assert np.allclose(read_cube(path, BANDS), cube)


def test_cubes_with_wrong_axes(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for shape, fragments in {
        (5, 6, 7): ["5x6x7", "4 bands"],
        (5, 4, 7): ["5x4x7", "middle axis"],
        (4, 6, 4): ["4x6x4", "first and its last"],
        (4, 6): ["no 3-D array", "4x6"],
        (1, 4, 6, 7): ["no 3-D array", "1x4x6x7"],
        (0, 6, 4): ["no 3-D array", "0x6x4"],
    }.items():
        np.save(path, np.zeros(shape, np.float32))
        message = refused(read_cube, path, 4)
        assert all(fragment in message for fragment in [repr(str(path)), *fragments]), message
    # Two axes of that length leave one possibility if the middle one is among them.
    np.save(path, np.zeros((4, 4, 7), np.float32))
    assert read_cube(path, 4).shape == (4, 4, 7)
    np.save(path, np.zeros((7, 4, 4), np.float32))
    assert read_cube(path, 4).shape == (4, 7, 4)


def test_cubes_with_unusable_values(tmp_path: Path, cube: Any) -> None:
    path = tmp_path / "a.npy"
    cube[1, 2, 3], cube[0, 0, 0] = np.nan, np.inf
    np.save(path, cube)
    assert f"2 NaN or infinite values among {cube.size}" in refused(read_cube, path, BANDS)
    np.save(path, np.full(cube.shape, 1e300))
    assert "infinite" in refused(read_cube, path, BANDS)
    for dtype in (np.int32, np.complex64, bool):
        np.save(path, np.ones(cube.shape, dtype))
        assert np.dtype(dtype).name in refused(read_cube, path, BANDS)


@pytest.mark.parametrize("name", ["a.mat", "a73.mat", "a.npy", "a.npz", "a.tif"])
def test_damaged_missing_and_foreign_files(tmp_path: Path, cube: Any, name: str) -> None:
    path = tmp_path / name
    assert "No such file" in refused(read_cube, path, BANDS)
    save(path, np.random.default_rng(1).random((BANDS, 40, 40)))
    data = path.read_bytes()
    for damaged in (b"", b"<html>not found</html>" * 20, data[: len(data) // 2]):
        path.write_bytes(damaged)
        assert repr(str(path)) in refused(read_cube, path, BANDS)


def test_pickles_are_not_run(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.empty((4, 2, 2), object), allow_pickle=True)
    assert "allow_pickle" in refused(read_cube, path, 4)


def test_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"1234")
    assert "'.raw'" in refused(read_cube, tmp_path / "a.raw", 4)


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_folder_of_cubes(tmp_path: Path, cube: Any, cache_bytes: int) -> None:
    (tmp_path / "sub").mkdir()
    save(tmp_path / "b.mat", cube)
    save(tmp_path / "sub" / "a.npy", 0.5 * cube)
    save(tmp_path / "c.npy", cube[:3])
    (tmp_path / "readme.txt").write_text("no cube")
    found = CubeSet.find(tmp_path, BANDS, cache_bytes=cache_bytes)
    assert len(found) == 2
    assert found.names == ["b.mat", "sub/a.npy"]
    name, first, target = found.read(0)
    assert (name, target) == ("b.mat", None)
    assert np.array_equal(first, cube)
    assert np.array_equal(found.read(1)[1], 0.5 * cube)
    assert [path.name for path, _ in found.skipped] == ["c.npy"]
    assert "3x6x9" in found.skipped[0][1]


def test_folder_without_a_usable_cube(tmp_path: Path, cube: Any) -> None:
    assert "does not exist" in refused(CubeSet.find, tmp_path / "none", BANDS)
    assert "mat, npy" in refused(CubeSet.find, tmp_path, BANDS)
    scipy.io.savemat(tmp_path / "a.mat", {"x": cube, "y": cube})
    assert "--mat-key" in refused(CubeSet.find, tmp_path, BANDS)
    assert len(CubeSet.find(tmp_path, BANDS, "y")) == 1


@pytest.mark.parametrize(
    ("image", "cube_name", "pair"),
    [("{}_rgb.png", "{}_cube.npy", None), ("a{}_x.png", "{}.npy", "a{}_*={}")],
)
def test_pairs_whose_names_differ(tmp_path: Path, cube: Any, image: Any, cube_name: str, pair: Any) -> None:
    images, cubes = tmp_path / "rgb", tmp_path / "spectra"
    images.mkdir()
    cubes.mkdir()
    for number in (1, 2):
        write_image(images / image.format(number), torch.rand(3, HEIGHT, WIDTH))
        save(cubes / cube_name.format(number), cube)
    pairs = SpectralPairs.find(images, cubes, BANDS, pair=pair)
    assert [pairs.read(index)[0] for index in range(2)] == [image.format(1), image.format(2)]
    assert not pairs.skipped and any("2 pairs by" in note for note in pairs.notes)


def test_pairs_of_images_and_cubes(tmp_path: Path, cube: Any) -> None:
    images, cubes = tmp_path / "rgb", tmp_path / "spectra"
    for folder in (images / "s", cubes / "s"):
        folder.mkdir(parents=True)
    rgb = torch.rand(3, HEIGHT, WIDTH)
    for name in ("s/a.png", "b.png", "alone.png", "twice.png", "twice.bmp"):
        write_image(images / name, rgb if name != "b.png" else rgb[..., 1:])
    for name in ("s/a.mat", "b.npy", "widow.npy", "twice.npy"):
        save(cubes / name, cube)
    pairs = SpectralPairs.find(images, cubes, BANDS)
    assert len(pairs) == 1
    name, image, target = pairs.read(0)
    assert name == "s/a.png"
    assert torch.allclose(image, rgb, atol=1 / 500)
    assert np.array_equal(target, cube)
    reasons = {path.name: reason for path, reason in pairs.skipped}
    assert reasons.keys() == {"b.npy", "widow.npy", "twice.npy"}
    assert "8x6 against 9x6" in reasons["b.npy"]
    assert reasons["widow.npy"] == "no image of that name"
    assert reasons["twice.npy"] == "several images of that name"
    (cubes / "s/a.mat").unlink()
    assert "widow.npy has no image of that name" in refused(SpectralPairs.find, images, cubes, BANDS)


def test_synthetic_spectra() -> None:
    gray = synthetic_spectra(torch.full((3, 2, 2), 0.5))
    assert gray.shape == (28, 2, 2)
    # sRGB 0.5 is 0.2140 of white in linear light.
    assert torch.allclose(gray, torch.tensor(0.21404), atol=1e-5)
    red, green, blue = (synthetic_spectra(one.view(3, 1, 1)).flatten() for one in torch.eye(3))
    assert torch.allclose(red + green + blue, torch.ones(28), atol=1e-6)
    assert (red.diff() > 0).all()
    assert (blue.diff() < 0).all()
    assert float(wavelengths(28)[green.argmax()]) == pytest.approx(540, abs=8)
    assert [float(wavelengths(28)[i]) for i in (0, -1)] == [450, 650]
    assert [float(wavelengths(31)[i]) for i in (0, -1)] == [400, 700]
    batch = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(synthetic_spectra(batch, 31)[1], synthetic_spectra(batch[1], 31))
    source = SyntheticSpectra(MemoryImages([("a", torch.rand(3, 4, 5))]))
    name, spectra, target = source.read(0)
    assert (len(source), name, spectra.shape, target) == (1, "a", (28, 4, 5), None)


def test_measurement_by_hand() -> None:
    scene = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]])
    mask = torch.tensor([[1.0, 0.5]])
    # Band 0: 1 1 . . . ., band 1: . . 3 2 . ., band 2: . . . . 5 3; with a step of one they overlap.
    assert measure(scene, mask).tolist() == [[1, 1, 3, 2, 5, 3]]
    assert measure(scene, mask, step=1).tolist() == [[1, 4, 7, 3]]
    assert shifted_mask(mask, 2).tolist() == [[[[1, 0.5, 0, 0]], [[0, 0, 1, 0.5]]]]
    start = initial_cube(torch.tensor([[3.0, 6.0, 9.0, 12.0]]), bands=3, step=1)
    assert start.tolist() == [[[2, 4]], [[4, 6]], [[6, 8]]]


def test_measurement_of_a_batch_and_its_adjoint() -> None:
    torch.manual_seed(0)
    scenes, mask = torch.rand(2, 28, 5, 7), torch.rand(5, 7)
    measured = measure(scenes, mask)
    assert measured.shape == (2, 5, 7 + 54)
    assert torch.equal(measured[1], measure(scenes[1], mask))
    assert initial_cube(measured).shape == scenes.shape
    # Taking the initial cube is, but for its scale, the adjoint of dispersing and adding up.
    other = torch.rand(2, 5, 61)
    left = (disperse(scenes).sum(-3) * other).sum()
    assert left == pytest.approx(float((scenes * initial_cube(other)).sum()) * 14, rel=1e-5)


def test_cassi_shapes_that_do_not_fit() -> None:
    assert "(28, 5, 7)" in refused(measure, torch.rand(28, 5, 7), torch.rand(5, 8))
    assert "too narrow" in refused(initial_cube, torch.rand(5, 54))
    assert "(9, 64)" in refused(windows, torch.rand(9, 64), torch.rand(10, 10), 4)
    assert "(10, 65)" in refused(windows, torch.rand(10, 65), torch.rand(10, 10), 4)
    assert "11 x 11" in refused(windows, torch.rand(10, 64), torch.rand(10, 10), 11)


def test_scenes_are_the_centre_of_each_cube() -> None:
    torch.manual_seed(0)
    mask = torch.rand(8, 8)
    large, small = torch.rand(3, 12, 9), torch.rand(3, 5, 20)
    scenes = CassiScenes(MemoryImages([("large", large), ("small", small)]), mask)
    assert len(scenes) == 2
    name, start, ground_truth = scenes.read(0)
    assert name == "large"
    assert torch.equal(ground_truth, large[:, 2:10, :8])
    assert torch.equal(start, initial_cube(measure(ground_truth, mask), 3))
    ground_truth = scenes.read(1)[2]
    assert torch.equal(ground_truth[:, :5], small[:, :, 6:14])
    assert torch.equal(ground_truth[:, 5:], small[:, [3, 2, 1], 6:14])


def test_windows_cover_everything_and_fit_the_model() -> None:
    torch.manual_seed(0)
    mask, scene = torch.rand(10, 11), torch.rand(3, 10, 11)
    parts = windows(measure(scene, mask), mask, size=4)
    assert [(part.top, part.left) for part in parts[:3]] == [(0, 0), (0, 4), (0, 7)]
    assert sorted({part.top for part in parts}) == [0, 4, 6]
    for part in parts:
        rows, columns = slice(part.top, part.top + 4), slice(part.left, part.left + 4)
        assert torch.equal(part.mask, mask[rows, columns])
        # Light from outside the window apart, its measurement is that of its own scene.
        inside = torch.zeros_like(scene)
        inside[:, rows, columns] = scene[:, rows, columns]
        (same,) = (
            other
            for other in windows(measure(inside, mask), mask, size=4)
            if (other.top, other.left) == (part.top, part.left)
        )
        assert torch.equal(same.measurement, measure(scene[:, rows, columns], part.mask))
        assert (part.measurement >= same.measurement).all()


def test_masks_from_files(tmp_path: Path) -> None:
    path = tmp_path / "mask.mat"
    for values in (
        np.eye(3),
        np.eye(3, dtype=np.uint8),
        np.eye(3, dtype=bool),
        np.eye(3, dtype=np.uint8) * 255,
    ):
        scipy.io.savemat(path, {"mask": values, "other": np.ones((3, 3))})
        assert torch.equal(load_mask(path), torch.eye(3))
    scipy.io.savemat(path, {"mask": np.eye(3) * 2, "cube": np.random.default_rng(0).random((3, 3, 3))})
    assert "from 0 to 2" in refused(load_mask, path)
    assert "'aperture'" in refused(load_mask, path, "aperture")
    assert "not all the same mask" in refused(load_mask, path, "cube")


def test_initial_cube_of_a_recorded_measurement_has_the_stored_values(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).random((3, 60), np.float32)
    scipy.io.savemat(tmp_path / "scene.mat", {"meas_real": stored, "other": stored})
    found = RecordedMeasurements.find(tmp_path, torch.ones(3, 6), 28)
    start = initial_cube(found.read(0)[1][0])
    assert start.shape == (28, 3, 6)
    assert np.allclose(start[5], stored[:, 10:16])


def test_official_initial_cube(shared: Path) -> None:
    fixture = np.load(shared / "parity/mst_s_io.npz")
    start = initial_cube(torch.from_numpy(fixture["measurement"]))
    assert np.array_equal(start[..., ::8, ::8], fixture["initial_strided"])


def test_real_measurement(shared: Path) -> None:
    measurement = scale_measurement(read_stored_measurement(shared / "data/cassi/real_scene1.mat"), 1.0, 28)
    mask = load_mask(shared / "data/cassi/real_mask.mat")
    parts = windows(measurement, mask)
    assert [(part.top, part.left) for part in parts][:4] == [(0, 0), (0, 256), (0, 404), (256, 0)]
    assert {(*part.measurement.shape, *part.mask.shape) for part in parts} == {(256, 310, 256, 256)}
    assert initial_cube(measurement).shape == (28, 660, 660)


def test_mst_s_reconstructs_synthetic_spectra_of_photographs(shared: Path) -> None:
    path = shared / "checkpoints/mst_s.pth"
    model = build_from_state(read_checkpoint(path).state_dict, path.name)
    mask = load_mask(shared / "data/cassi/simu_mask.mat")
    photographs = ImageSet.find(shared / "data/rain100l/target", 3)
    scenes = CassiScenes(SyntheticSpectra(photographs), mask)
    name, start, ground_truth = scenes.read(0)
    assert ground_truth is not None, name
    with torch.no_grad():
        output = model(start[None], shifted_mask(mask))[0]
    # It saw no such spectra in training, so 35 dB and more, as on its own data, cannot be expected.
    assert 22 < psnr(output.clamp(0, 1), ground_truth) < 34
    assert psnr(output.clamp(0, 1), ground_truth) > psnr(start.clamp(0, 1), ground_truth) + 5


def test_what_a_file_holds_is_told_in_a_line(tmp_path: Path) -> None:
    """Names in a damaged file may be whole pages, and there may be very many."""
    arrays = {f"{number}\x1b{'x' * 5000}": np.ones((2, 2)) for number in range(30)}
    np.savez(tmp_path / "many.npz", **arrays)
    for key in (None, "y" * 5000):
        with pytest.raises(DataError, match="20 more") as caught:
            find_array(tmp_path / "many.npz", 3, key)
        assert len(str(caught.value)) < 2000 and "\x1b" not in str(caught.value)
