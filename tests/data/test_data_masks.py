"""Aperture masks from files: planes, stacks, files of several, and whether a mask is the one baked in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from csa2glmha.core.errors import DataError
from csa2glmha.data.inputs.cassi import shifted_mask
from csa2glmha.data.inputs.masks import is_made_for, load_mask, mask_provenance

MASK = np.random.default_rng(0).random((12, 10), np.float32)
BANDS = 4


def shifted() -> np.ndarray:
    return shifted_mask(torch.from_numpy(MASK), BANDS)[0].numpy()


@pytest.mark.parametrize("name", ["a.mat", "a.npy"])
@pytest.mark.parametrize("bands_last", [True, False])
@pytest.mark.parametrize("moved", [True, False])
def test_the_mask_of_a_stack(tmp_path: Path, name: str, bands_last: bool, moved: bool) -> None:
    stack = shifted() if moved else np.repeat(MASK[None], BANDS, 0)
    stack = stack.transpose(1, 2, 0) if bands_last else stack
    if name == "a.npy":
        np.save(tmp_path / name, stack)
    else:
        scipy.io.savemat(tmp_path / name, {"mask_3d_shift": stack, "other": np.ones((2, 2, 2))})
    assert torch.equal(load_mask(tmp_path / name), torch.from_numpy(MASK))


def test_stacks_that_are_no_mask(tmp_path: Path) -> None:
    other = shifted()
    other[2, 5, 6] += 0.1
    lit = shifted()
    lit[0, 0, -1] = 0.1
    turned = shifted()[::-1]
    for stack in (other, lit, turned, np.random.default_rng(1).random((5, 6, 4))):
        np.save(tmp_path / "a.npy", stack)
        with pytest.raises(DataError, match="not all the same mask") as caught:
            load_mask(tmp_path / "a.npy")
        assert "\n" not in str(caught.value)


def test_of_several_masks_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "two.mat"
    scipy.io.savemat(path, {"Mask": MASK, "CA": MASK[::-1], "stack": shifted()})
    with pytest.raises(DataError, match=r"several 2-D arrays: Mask .*, CA .*--mask-key"):
        load_mask(path)
    assert torch.equal(load_mask(path, "Mask"), torch.from_numpy(MASK))
    assert torch.equal(load_mask(path, "CA"), torch.from_numpy(MASK[::-1].copy()))
    assert torch.equal(load_mask(path, "stack"), torch.from_numpy(MASK))
    with pytest.raises(DataError, match="no array 'mask'"):
        load_mask(path, "mask")


def test_the_values_say_whether_it_is_the_same_mask(tmp_path: Path) -> None:
    path, alone = tmp_path / "two.mat", tmp_path / "one.npy"
    scipy.io.savemat(path, {"Mask": MASK, "CA": MASK[::-1]})
    np.save(alone, MASK)
    made = mask_provenance(path, "Mask")
    assert is_made_for(made, path, "Mask") and not is_made_for(made, path, "CA")
    assert is_made_for(made, alone, None)
    # Files of earlier versions say no more than the hash of the file.
    before = {"mask_sha256": made["mask_sha256"]}
    assert is_made_for(before, path, "Mask") and not is_made_for(before, alone, None)
    assert is_made_for({}, alone, None)
