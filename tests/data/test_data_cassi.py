"""Scenes, masks and recorded measurements as data of a conversion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from csa2glmha.config.options import make_options
from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.images import MemoryImages, write_image
from csa2glmha.data.inputs.cassi import initial_cube, measure, shifted_mask
from csa2glmha.data.inputs.cassi_data import CassiCrops, CassiData, prepare_cassi
from csa2glmha.data.inputs.scenes import folder_kind
from csa2glmha.data.open import open_data
from csa2glmha.families.registry import build
from tests.conftest import TINY_RESTORMER

BANDS = 6
SPREAD = 2 * (BANDS - 1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "the mask.npy"
    np.save(path, (random(24, 32, seed=9) < 0.5).float().numpy())
    return path


@pytest.fixture
def cubes(tmp_path: Path) -> Path:
    folder = tmp_path / "cubes"
    folder.mkdir()
    for index in range(4):
        np.save(folder / f"{index}.npy", random(40, 44, BANDS, seed=index).numpy())
    return folder


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    folder = tmp_path / "recorded"
    folder.mkdir()
    for index in range(3):
        np.save(folder / f"{index}.npy", random(24, 32 + SPREAD, seed=index).numpy())
    return folder


def prepared(folder: Path | None, mask: Path | None, **changes: int) -> CassiData:
    settings = {"bands": BANDS, "multiple": 4, "size": 32, "seed": 0} | changes
    return prepare_cassi(folder, mask, None, **settings)


# --- what a folder holds


def test_cubes(cubes: Path, mask: Path) -> None:
    data = prepared(cubes, mask)
    assert (data.training_images, data.held_out_images, data.recorded) == (3, 1, False)
    assert (data.source, data.notes, data.spectral) == (str(cubes), (), True)
    assert data.frame(999) == (24, 32)
    (example,) = data.examples(999, 0)
    assert [tuple(each.shape) for each in example.inputs] == [
        (1, BANDS, 24, 32),
        (1, BANDS, 24, 32 + SPREAD),
    ]
    stored = torch.from_numpy(np.load(cubes / example.name)).permute(2, 0, 1)[:, 8:32, 6:38]
    assert example.ground_truth is not None and torch.equal(example.ground_truth, stored)
    torch.testing.assert_close(example.inputs[0][0], initial_cube(measure(stored, data.mask), BANDS))
    assert torch.equal(example.inputs[1], shifted_mask(data.mask, BANDS))


def test_recorded_measurements(recorded: Path, mask: Path) -> None:
    np.save(recorded / "mask of another camera.npy", np.ones((5, 5), np.float32))
    data = prepared(recorded, mask)
    assert data.recorded and (data.training_images, data.held_out_images) == (2, 1)
    assert "mask of another camera.npy (5x5, the mask needs 24x42)" in data.notes[1]
    assert "taken as relative to white" in data.notes[0]
    (example,) = data.examples(0, 0)
    assert example.ground_truth is None
    stored = torch.from_numpy(np.load(recorded / example.name))
    for band in range(BANDS):  # band i of the initial cube begins at column 2 i
        torch.testing.assert_close(example.inputs[0][0, band], stored[:, 2 * band : 2 * band + 32])


def test_images_become_synthetic_spectra_and_are_called_so(tmp_path: Path, mask: Path) -> None:
    for index in range(3):
        write_image(tmp_path / f"{index}.png", random(3, 30, 40, seed=index))
    (tmp_path / "images").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "images" / path.name)
    data = prepared(tmp_path / "images", mask)
    assert data.source.startswith("synthetic spectra of")
    assert "synthetic spectra" in data.notes[0]
    assert data.train.read(0)[1].shape[0] == BANDS


def test_without_anything_named() -> None:
    data = prepared(None, None)
    assert data.mask.shape == (32, 32)
    assert set(data.mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(data.mask, prepared(None, None).mask)
    assert "no --mask" in data.notes[0]
    assert "no --data" in data.notes[1] and "synthetic spectra" in data.notes[1]
    assert "synthetic spectra of photographs" in data.source


def test_kinds_of_folders(cubes: Path, recorded: Path, tmp_path: Path) -> None:
    assert folder_kind(cubes, None) == "cubes"
    assert folder_kind(recorded, None) == "measurements"
    (tmp_path / "empty").mkdir()
    assert folder_kind(tmp_path / "empty", None) == "images"
    with pytest.raises(DataError, match="does not exist"):
        folder_kind(tmp_path / "none", None)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones((40, 44, 7), np.float32), "none of its axes is that long"),
        (np.full((40, 44, BANDS), np.nan, np.float32), "NaN or infinite"),
        (np.ones((40, BANDS, 44), np.float32), "on the middle axis"),
    ],
)
def test_bad_cubes_are_named(cubes: Path, mask: Path, array: np.ndarray, reason: str) -> None:
    np.save(cubes / "bad.npy", array)
    data = prepared(cubes, mask)
    assert data.training_images + data.held_out_images == 4
    assert "bad.npy" in data.notes[0] and reason in data.notes[0]
    for index in range(4):
        (cubes / f"{index}.npy").unlink()
    with pytest.raises(DataError, match=reason) as caught:
        prepared(cubes, mask)
    assert "\n" not in str(caught.value)


def test_refusals(cubes: Path, recorded: Path, mask: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recorded measurements: give the mask"):
        prepared(recorded, None)
    with pytest.raises(DataError, match="multiples of 16"):
        prepared(cubes, mask, multiple=16)
    np.save(tmp_path / "small.npy", np.ones((8, 8), np.float32))
    with pytest.raises(DataError, match=r"no measurement in .* fits a mask of 8x8"):
        prepared(recorded, tmp_path / "small.npy")
    data = prepared(cubes, mask)
    for size in (28, 10):
        with pytest.raises(UsageError, match=f"--crop {size}: .* a multiple of 4 up to 24"):
            data.check_side(size, "--crop")
    data.check_side(24, "--crop")


# --- training


def test_crops_obey_the_cameras_geometry() -> None:
    """One bright column in one band arrives where the dispersion sends it, whatever the augmentation."""
    cube = random(BANDS, 20, 20)
    aperture = (random(24, 32, seed=3) < 0.5).float()
    crops = CassiCrops(MemoryImages([("a", cube)]), False, aperture, BANDS, 12, 0)
    seen = set()
    for step in range(12):
        batch = crops.batch(step, 2 * step, 2)
        start, dispersed = batch.inputs
        assert start.shape == (2, BANDS, 12, 12) and dispersed.shape == (1, BANDS, 12, 12 + SPREAD)
        window = dispersed[0, 0, :, :12]
        for band in range(BANDS):  # the mask input is the same window, shifted
            assert torch.equal(dispersed[0, band, :, 2 * band : 2 * band + 12], window)
        assert batch.ground_truth is not None
        for sample, ground_truth in zip(start, batch.ground_truth, strict=True):
            torch.testing.assert_close(sample, initial_cube(measure(ground_truth, window), BANDS))
        seen.add(tuple(window.flatten().tolist()))
    assert len(seen) > 6  # different parts of the mask


def test_crops_of_recorded_measurements_stay_under_their_mask() -> None:
    aperture = torch.arange(24 * 32).view(24, 32) / 1000
    measurement = torch.arange(24 * (32 + SPREAD)).view(1, 24, 32 + SPREAD) / 1000
    crops = CassiCrops(MemoryImages([("a", measurement)]), True, aperture, BANDS, 8, 0)
    batch = crops.batch(5, 0, 1)
    assert batch.ground_truth is None
    top, left = divmod(int(batch.inputs[1][0, 0, 0, 0] * 1000 + 0.5), 32)
    torch.testing.assert_close(
        batch.inputs[0][0], initial_cube(measurement[0, top : top + 8, left : left + 8 + SPREAD], BANDS)
    )


def test_crops_are_functions_of_their_numbers(cubes: Path, mask: Path) -> None:
    data = prepared(cubes, mask)
    whole = data.training(16, 1).batch(7, 28, 4)
    parts = [data.training(16, 1).batch(7, first, 2) for first in (28, 30)]
    assert torch.equal(whole.inputs[0], torch.cat([part.inputs[0] for part in parts]))
    assert all(torch.equal(whole.inputs[1], part.inputs[1]) for part in parts)
    other = data.training(16, 2).batch(7, 28, 4)
    assert not torch.equal(whole.inputs[0], other.inputs[0])


def test_calibration_and_held_out_scenes_are_different(cubes: Path, mask: Path) -> None:
    data = prepared(cubes, mask)
    batches = data.calibration(16, 5, 0)
    assert [len(cube) for cube, _ in batches] == [2, 2, 1]
    held = data.calibration(16, 5, 0, held_out=True)
    assert not torch.equal(batches[0][0], held[0][0])


# --- by network


def test_open_data_by_what_the_network_takes(cubes: Path, mask: Path, tmp_path: Path) -> None:
    mst = build("mst", {"dim": BANDS, "num_blocks": [1, 1, 1]})
    sizes = {"calibration_size": 16, "crop": 16}
    assert isinstance(open_data(mst, make_options(data=cubes, mask=mask, **sizes)), CassiData)
    for options, message in (
        ({"degrade": "noise:5"}, "--degrade noise:5: mst's inputs are CASSI measurements"),
        ({"data": cubes, "targets": cubes}, "--targets .*: for mst, give the cubes as --data"),
        (
            {"data": cubes, "mask": mask, "calibration_size": 128},
            "--calibration-size 128: does not fit a mask of 24x32",
        ),
        ({"data": cubes, "mask": mask, "input_size": 64, **sizes}, "--input-size 64: with --mask"),
    ):
        with pytest.raises(UsageError, match=message):
            open_data(mst, make_options(**options))
    small = open_data(mst, make_options(data=cubes, mask=mask))  # defaults are larger than this mask
    assert small.training(None, 0).batch(0, 0, 1).inputs[0].shape == (1, BANDS, 24, 24)
    assert small.calibration(128, 2, 0)[0][0].shape == (2, BANDS, 24, 24)
    restormer = build("restormer", TINY_RESTORMER)
    with pytest.raises(UsageError, match=r"--mask .*: restormer takes no mask"):
        open_data(restormer, make_options(mask=mask))


def test_rgb_to_spectra_pairs(tmp_path: Path) -> None:
    (tmp_path / "rgb").mkdir()
    (tmp_path / "cubes").mkdir()
    for index in range(3):
        write_image(tmp_path / "rgb" / f"{index}.png", random(3, 20, 24, seed=index))
        np.save(tmp_path / "cubes" / f"{index}.npy", random(20, 24, 5, seed=index).numpy())
    model = build("mst_plus_plus", {"in_channels": 3, "n_feat": 5, "stage": 1, "num_blocks": [1, 1]})
    data = open_data(model, make_options(data=tmp_path / "rgb", targets=tmp_path / "cubes"))
    assert data.spectral
    batch = data.training(16, 0).batch(0, 0, 2)
    assert batch.inputs[0].shape == (2, 3, 16, 16)
    assert batch.ground_truth is not None and batch.ground_truth.shape == (2, 5, 16, 16)
    (example,) = data.examples(16, 0)
    assert example.ground_truth is not None and example.ground_truth.shape == (5, 16, 16)
    # Without cubes nothing says what the spectra should be, not even for a clean image.
    alone = open_data(model, make_options(data=tmp_path / "rgb", degrade="noise:10"))
    assert alone.training(16, 0).batch(0, 0, 2).ground_truth is None
    assert alone.examples(16, 0)[0].ground_truth is None
    bundled = open_data(model, make_options())
    assert bundled.degradation is None and bundled.examples(16, 0)[0].ground_truth is None
