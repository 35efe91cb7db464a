"""Cubes, measurements, masks and colour images that users met in the field."""

from __future__ import annotations

from pathlib import Path

import torch

from csa2glmha.data.cassi_data import open_scenes
from csa2glmha.data.spectral import SpectralPairs


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
