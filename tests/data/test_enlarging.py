"""Data of networks whose outputs are larger than their inputs: reduced images, pairs of different size."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from csa2glmha.core.errors import UsageError
from csa2glmha.data import write_image
from csa2glmha.data.crops import TrainingCrops, calibration_crops, random_crop
from csa2glmha.data.degrade import parse_degradation
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.images import MemoryImages
from csa2glmha.data.sources import fitting_degradation, image_example


def smooth(height: int, width: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0].clamp(0, 1)


@pytest.mark.parametrize("spec, times", [("down:2", 2), ("noise:0+down:4", 4), ("down:2+blur:0+down:2", 4)])
def test_down_makes_images_smaller(spec: str, times: int) -> None:
    degradation, image = parse_degradation(spec), smooth(66, 47)
    reduced = degradation(image, torch.Generator())
    assert degradation.times == times and reduced.shape == (3, 66 // times, 47 // times)
    clean = image[:, : 66 // times * times, : 47 // times * times]
    # Of a smooth image it is the mean of what it stands for, away from the borders.
    inner = (..., slice(2, -2), slice(2, -2))
    assert float((reduced - F.avg_pool2d(clean, times))[inner].abs().max()) < 0.02


@pytest.mark.parametrize("spec", ["down:2-4", "down:0", "down:17", "down:1.5"])
def test_what_down_does_not_take(spec: str) -> None:
    with pytest.raises(UsageError, match="bad degradation"):
        parse_degradation(spec)


@pytest.mark.parametrize("spec", ["down:2", "blur:1+down:2", "down:4"])
def test_a_crop_is_degraded_as_the_whole_image_is(spec: str) -> None:
    """Its pixels are among those of the reduced image, and its reference is what they show."""
    image, degradation = (
        torch.rand(3, 60, 84, generator=torch.Generator().manual_seed(3)),
        parse_degradation(spec),
    )
    whole, times = degradation(image, torch.Generator()), degradation.times
    inputs, references = calibration_crops(MemoryImages([("a", image)]), degradation, 8, 6, seed=1)
    assert references is not None and references.shape == (6, 3, 8 * times, 8 * times)
    windows = whole.unfold(1, 8, 1).unfold(2, 8, 1)  # (3, rows, columns, 8, 8)
    for crop, reference in zip(inputs, references, strict=True):
        distance = (windows - crop[:, None, None]).abs().amax((0, 3, 4))
        row, column = divmod(int(distance.argmin()), distance.shape[1])
        assert float(distance.min()) < 1e-5
        top, left = times * row, times * column
        assert torch.equal(reference, image[:, top : top + 8 * times, left : left + 8 * times])


def test_a_small_image_gives_crops_all_the_same() -> None:
    crops = TrainingCrops(MemoryImages([("a", smooth(15, 9))]), parse_degradation("down:2"), 16, 0)
    batch = crops.batch(0, 0, 3)
    assert batch.inputs[0].shape == (3, 3, 16, 16)
    assert batch.ground_truth is not None and batch.ground_truth.shape == (3, 3, 32, 32)


def test_pairs_of_different_size_are_cut_in_the_same_place() -> None:
    image = smooth(20, 30)
    target = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
    crop, larger = random_crop(image, target, 8, torch.Generator().manual_seed(1))
    assert larger is not None and torch.equal(larger[:, ::2, ::2], crop)


def test_examples_have_their_input_s_size() -> None:
    images = MemoryImages([("a", smooth(61, 83))])
    example = image_example(images, 0, parse_degradation("down:2"), 0, 16)
    assert example.inputs[0].shape == (1, 3, 16, 16)
    assert example.ground_truth is not None and example.ground_truth.shape == (3, 32, 32)
    whole = image_example(images, 0, parse_degradation("down:2"), 0, None)
    assert whole.inputs[0].shape == (1, 3, 30, 41)
    assert whole.ground_truth is not None and whole.ground_truth.shape == (3, 60, 82)


def test_pairs_are_found_where_targets_are_so_many_times_larger(tmp_path: Path) -> None:
    for name, side in (("a", 40), ("b", 60)):
        write_image(tmp_path / "in" / f"{name}.png", smooth(20, 20))
        write_image(tmp_path / "out" / f"{name}.png", smooth(side, side))
    found = ImageSet.find(tmp_path / "in", 3, tmp_path / "out", scale=Fraction(2))
    assert found.names == ["a.png"]
    ((_, reason),) = found.skipped
    assert reason == "not of its target's size: 20x20 against 60x60, which is to be 2 times as large"


@pytest.mark.parametrize(
    "spec, scale, said",
    [
        ("noise:25", Fraction(4), "images 4 times as large as their inputs; add down:4"),
        ("down:2", Fraction(1), "images of the size of their inputs; leave out down"),
        ("noise:5", Fraction(1, 2), "no degradation is for networks that make images smaller"),
    ],
)
def test_a_degradation_of_another_scale_is_refused(spec: str, scale: Fraction, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fitting_degradation(spec, scale)
