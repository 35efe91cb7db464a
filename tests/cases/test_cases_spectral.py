"""Cubes, measurements, masks and colour images that users met in the field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from csa2glmha.checkpoint.student import load
from csa2glmha.commands.evaluate import OpenModel
from csa2glmha.commands.run import run_files
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import DataError
from csa2glmha.data.inputs.cassi import initial_cube
from csa2glmha.data.inputs.kind import NetworkFacts
from csa2glmha.data.inputs.masks import load_mask
from csa2glmha.data.inputs.scenes import open_scenes
from csa2glmha.data.inputs.spectral import SpectralPairs
from csa2glmha.inference.jobs import find_jobs


def test_cubes_in_counts(cases: Path) -> None:
    """Doubles of 0 to 65535 are the cubes that the same scenes are in fractions, but for rounding."""
    mask = cases / "cassi" / "real_mask.mat"
    counts, _, _, _, notes = open_scenes(cases / "cassi/counts_as_double", mask, None, 28, 256, 0)
    unit, _, _, _, silent = open_scenes(cases / "cassi/unit", mask, None, 28, 256, 0)
    assert "counts of 16 bits and divided by 65535" in notes[0] and silent == ()
    for index in range(2):
        assert (counts.read(index)[1] - unit.read(index)[1]).abs().max() <= 0.51 / 65535


def test_cubes_that_h5py_wrote(cases: Path) -> None:
    """Height x width x bands, square: in the same places as the images that they were made of."""
    pairs = SpectralPairs.find(cases / "rgb/square", cases / "rgb/square_h5py", 31)
    assert len(pairs) == 2 and pairs.notes == ()
    for index in range(2):
        _, image, cube = pairs.read(index)
        assert cube is not None
        green, band = image[1] ** 2.2, cube[14]  # 540 nm
        found = torch.corrcoef(torch.stack([green.flatten(), band.flatten()]))[0, 1]
        turned = torch.corrcoef(torch.stack([green.flatten(), band.T.flatten()]))[0, 1]
        assert found > 0.99 > turned


def inputs_of(folder: Path, mask: Path, **choices: object) -> list[torch.Tensor]:
    """What `run` feeds MST with."""
    bands = 28
    model = OpenModel(lambda inputs: inputs[0][0], NetworkFacts("mst", "cassi", bands, bands, 2))
    kind = model.kind.open_files(model.facts, make_options(mask=mask, **choices), ".npy")
    jobs = find_jobs([folder], folder / "out", kind.formats, overwrite=True).jobs
    read = kind.reader([job.sources for job in jobs])
    return [read(job.sources, 2**30).inputs[0][0] for job in jobs]


def test_measurements_in_counts(cases: Path, shared: Path) -> None:
    mask = cases / "cassi/real_mask.mat"
    real = scipy.io.loadmat(shared / "data/cassi/real_scene1.mat")["meas_real"][:256, :310]
    for name in ("measurement_12bit", "measurement_12bit_uint16"):
        (start,) = inputs_of(cases / "cassi" / name, mask)
        for band in (0, 27):
            stored = torch.from_numpy(real[:, 2 * band : 2 * band + 256])
            assert (start[band] - stored).abs().max() <= 0.51 / 4095
        scenes, _, recorded, _, notes = open_scenes(cases / "cassi" / name, mask, None, 28, 256, 0)
        assert recorded and "counts of 12 bits" in notes[0]
        assert torch.equal(initial_cube(scenes.read(0)[1][0]), start)


def test_measurements_that_are_sums(cases: Path, shared: Path) -> None:
    """They lead to what the cubes that they were made of lead to."""
    mask = shared / "data/cassi/simu_mask.mat"
    found = inputs_of(cases / "cassi/measurement_sum", mask)
    for start, wanted in zip(found, inputs_of(cases / "cassi/unit", mask), strict=True):
        assert (start - wanted).abs().max() < 1e-5
    told = inputs_of(cases / "cassi/measurement_sum", mask, measurement_scale=14)
    assert all(torch.equal(one, other) for one, other in zip(told, found, strict=True))


def test_masks(cases: Path, shared: Path) -> None:
    wanted = load_mask(shared / "data/cassi/simu_mask.mat")
    assert torch.equal(load_mask(cases / "cassi/mask_3d_shift.mat"), wanted)
    assert torch.equal(load_mask(cases / "cassi/mask_two.mat", "Mask"), wanted)
    with pytest.raises(DataError, match=r"Mask \(256x256\), CA \(256x256\); say which with --mask-key"):
        load_mask(cases / "cassi/mask_two.mat")


def test_images_of_little_contrast(cases: Path, shared: Path, tmp_path: Path) -> None:
    """As the official code has it: whole images stretched, outputs clipped."""
    checkpoint = shared / "parity/mstpp_stage1.pth"
    result = run_files(checkpoint, [cases / "rgb/low_contrast"], tmp_path / "out")
    model = load(checkpoint)
    for path in result.written:
        image = torch.from_numpy(np.array(Image.open(cases / "rgb/low_contrast" / f"{path.stem}.png")))
        image = image.float().permute(2, 0, 1)
        with torch.no_grad():
            official = model(((image - image.min()) / (image.max() - image.min()))[None])[0]
            unstretched = model(image[None] / 255)[0]
        found = torch.from_numpy(np.load(path)).permute(2, 0, 1)
        clipped, scale = official.clamp(0, 1), official.abs().max()  # random weights: far beyond 1
        assert (found - clipped).abs().max() < 1e-4 * scale
        assert (unstretched.clamp(0, 1) - clipped).abs().mean() > 0.05
