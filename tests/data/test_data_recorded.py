"""Recorded measurements: which scale the numbers of a file are in, and what does not fit the mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from csa2glmha.core.errors import DataError
from csa2glmha.data.inputs.cassi import measure
from csa2glmha.data.inputs.recorded import RecordedMeasurements, misfit

BANDS, HEIGHT, WIDTH = 28, 24, 32
MASK = (torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def scene(brightness: float = 0.9, seed: int = 1) -> np.ndarray:
    """The measurement of a smooth scene."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, BANDS, 3, 4, generator=generator)
    cube = torch.nn.functional.interpolate(small, (HEIGHT, WIDTH), mode="bilinear")[0]
    return measure(brightness * cube, MASK).numpy()


def found(folder: Path, *stored: np.ndarray, scale: float | None = None) -> RecordedMeasurements:
    folder.mkdir()
    for index, array in enumerate(stored):
        np.save(folder / f"{index}.npy", array)
    return RecordedMeasurements.find(folder, MASK, BANDS, scale=scale)


@pytest.mark.parametrize(
    ("white", "kind", "says"),
    [
        (1.0, float, "relative to white"),
        (14.0, float, "sums over 28 bands"),
        (255, np.uint8, "8 bits"),
        (1023, np.float32, "10 bits"),
        (4095, float, "12 bits"),
        (4095, np.uint16, "12 bits"),
        (16383, np.int32, "14 bits"),
        (65535, np.uint16, "16 bits"),
    ],
)
def test_scales_that_are_recognised(tmp_path: Path, white: float, kind: type, says: str) -> None:
    """All files have the scale that all together show: a dark one is not taken for something else."""
    exact = scene(1.0), scene(0.02)
    stored = [y / 14 * white for y in exact]
    stored = [y if white in (1, 14) else y.round() for y in stored]
    data = found(tmp_path / "a", *(y.astype(kind) for y in stored))
    assert says in data.notes[0] and "--measurement-scale" in data.notes[0]
    for index, y in enumerate(exact):
        step = 0 if white in (1, 14) else 14 / white
        assert np.abs(data.read(index)[1][0].numpy() - y).max() <= 0.51 * step + 1e-4


def test_scales_that_are_asked_for(tmp_path: Path) -> None:
    for index, stored in enumerate(
        [
            scene() / 14 * 2.8,  # too bright for white, too dark for sums
            scene() / 14 * 4095.5,  # counts, averaged
            scene() * 3,  # more than a white scene gives
            scene().round(),  # whole numbers that could be sums
            (scene() * 1e5).round(),
        ]
    ):
        with pytest.raises(DataError, match="give --measurement-scale") as caught:
            found(tmp_path / str(index), stored)
        assert "\n" not in str(caught.value)
    given = found(tmp_path / "given", scene() / 14 * 300.5, scale=300.5)
    assert np.allclose(given.read(0)[1][0].numpy(), scene(), atol=1e-4)
    assert "divided by 300.5" in given.notes[0]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((WIDTH, HEIGHT + 54), "seems transposed"),
        ((HEIGHT, WIDTH), "54 columns wider"),
        ((16, 16 + 54), "cut the mask"),
        ((HEIGHT + 2, WIDTH + 54), "needs 24x86"),
        ((HEIGHT, WIDTH + 55), "needs 24x86"),
    ],
)
def test_masks_that_do_not_fit(shape: tuple[int, int], words: str) -> None:
    assert words in (misfit(torch.zeros(shape), MASK, BANDS) or "")
    assert misfit(torch.zeros(HEIGHT, WIDTH + 54), MASK, BANDS) is None


def test_measurements_of_no_use_are_named(tmp_path: Path) -> None:
    bad = scene()
    bad[3, 3] = np.nan
    flat = np.ones((HEIGHT, WIDTH + 54))
    data = found(tmp_path / "a", scene() / 14, bad, flat.astype(complex), -0.5 * scene(), 0 * flat)
    assert len(data) == 1
    words = ("NaN", "complex128", "light is not negative", "the value 0 only")
    assert len(data.skipped) == len(words)
    for (_, reason), word in zip(data.skipped, words, strict=True):
        assert word in reason
