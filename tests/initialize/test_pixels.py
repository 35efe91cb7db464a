"""Moments from a sample of an image's pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from csa2glmha.attention import Projection
from csa2glmha.initialize.pixels import SAMPLE, Pixels
from csa2glmha.initialize.statistics import LayerStatistics, patches, symmetric_product
from tests.initialize.test_initialize import form_of, mdta, moments, randn, smooth_images


def flat(pixels: Pixels, width: int) -> list[int]:
    return sorted((pixels.rows * width + pixels.columns).tolist())


def test_small_images_give_every_pixel_once() -> None:
    assert flat(Pixels.of(5, 7, seed=3), 7) == list(range(35))


@pytest.mark.parametrize(("height", "width"), [(128, 128), (100, 130), (67, 300)])
def test_large_images_give_different_pixels_of_all_parts(height: int, width: int) -> None:
    pixels = Pixels.of(height, width, seed=0)
    found = flat(pixels, width)
    assert len(set(found)) == len(found)
    assert 0.4 * SAMPLE < len(found) <= 1.1 * SAMPLE
    for part, size in ((pixels.rows, height), (pixels.columns, width)):
        assert part.min() >= 0
        assert part.max() < size
        share = torch.histc(part.float(), 4, 0, size) / len(found)
        torch.testing.assert_close(share, torch.full((4,), 0.25), atol=0.04, rtol=0)


def test_every_pixel_has_the_same_chance() -> None:
    """Those in the cells that the border cuts, too."""
    counts = torch.zeros(7, 10)
    for seed in range(3000):
        pixels = Pixels.of(7, 10, seed, sample=8)  # cells of 3 x 3
        counts[pixels.rows, pixels.columns] += 1
    torch.testing.assert_close(counts / 3000, torch.full_like(counts, 1 / 9), atol=0.03, rtol=0)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_patches_are_neighbourhoods(kernel: int, dilation: int) -> None:
    mixed = randn(1, 6, 8, 9)
    projection = Projection(torch.eye(6), depthwise=torch.ones(6, kernel, kernel), dilation=dilation)
    pixels = Pixels.of(8, 9, seed=1, sample=20)
    found = patches(mixed, 2, projection, pixels)
    padding = dilation * (kernel // 2)
    whole = F.unfold(mixed, kernel, dilation=dilation, padding=padding).view(2, 3 * kernel**2, 72)
    assert torch.equal(found, whole[..., pixels.rows * 9 + pixels.columns])


@pytest.mark.parametrize("size", [3, 64, 65, 300])
def test_symmetric_product(size: int) -> None:
    rows = randn(2, size, 10)
    torch.testing.assert_close(symmetric_product(rows), rows @ rows.mT)


def gathered(images: Tensor, monkeypatch: pytest.MonkeyPatch, sample: int) -> LayerStatistics:
    whole = Pixels.of.__func__
    monkeypatch.setattr(
        Pixels, "of", classmethod(lambda cls, height, width, seed: whole(cls, height, width, seed, sample))
    )
    statistics = LayerStatistics.empty(form_of(mdta(6, 2, True)), queries=True, keys=True, values=True)
    statistics.add(images)
    monkeypatch.undo()
    return statistics


def test_sampled_moments_are_close_to_those_of_all_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    images = smooth_images(12, 6, 64, 0)
    full, sampled = (gathered(images, monkeypatch, sample) for sample in (64 * 64, 1024))
    for name, expected in moments(full).items():
        difference = (moments(sampled)[name] - expected).norm() / expected.norm()
        assert difference < (1e-5 if name == "attention" else 0.03), name
        assert (difference > 0) == (name != "attention")  # it is another sample
    # Logits are those of all pixels.
    assert torch.equal(full.maps(), sampled.maps())
