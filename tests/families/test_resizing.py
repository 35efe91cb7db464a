"""Resized maps of a part of an image are that part of the resized maps."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from csa2glmha.core.errors import Csa2GlmhaError
from csa2glmha.families.resizing import Rescale, ResizeLike
from csa2glmha.reading.placed import Extent, Place


@given(
    size=st.integers(1, 9),
    whole=st.integers(1, 40),
    start=st.integers(0, 39),
    length=st.integers(1, 40),
    level=st.sampled_from([1, 4]),
)
def test_a_part_of_maps_resized_like_the_image(
    size: int, whole: int, start: int, length: int, level: int
) -> None:
    """Also where an image is smaller than the maps, or one pixel wide."""
    start = min(start, whole - 1)
    length = min(length, whole - start)
    maps = torch.rand(2, 3, size, 5, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps, (whole, 7), mode="bilinear", align_corners=False)
    place = Place(Extent(level * start, level * length, level * whole), Extent(0, 7 * level, 7 * level))
    like = torch.empty(2, 1, length, 7)
    part = ResizeLike().forward_at(place, maps, like)
    torch.testing.assert_close(part, expected[:, :, start : start + length], rtol=1e-5, atol=1e-5)


@given(
    whole=st.integers(1, 24),
    start=st.integers(0, 23),
    length=st.integers(1, 24),
    factor=st.sampled_from([0.5, 2, 3]),
)
def test_a_part_of_maps_rescaled(whole: int, start: int, length: int, factor: float) -> None:
    """But for pixels at its border that come from beyond it."""
    start = min(start, whole - 1)
    length = min(length, whole - start)
    maps = torch.rand(1, 2, 2 * whole, 6, generator=torch.Generator().manual_seed(0))
    expected = Rescale(factor)(maps)
    place = Place(Extent(2 * start, 2 * length, 2 * whole), Extent(0, 6, 6))
    part = Rescale(factor).forward_at(place, maps[:, :, 2 * start : 2 * (start + length)])
    first, count = round(2 * start * factor), round(2 * length * factor)
    assert part.shape[2:] == (count, expected.shape[3])
    expected = expected[:, :, first : first + count]
    rim = math.ceil(factor)
    inner = slice(0 if start == 0 else rim, count if start + length == whole else count - rim)
    torch.testing.assert_close(part[:, :, inner], expected[:, :, inner], rtol=1e-5, atol=1e-5)


def test_the_whole_image_is_a_part_too() -> None:
    maps, like = torch.rand(1, 2, 4, 6), torch.empty(1, 3, 9, 11)
    place = Place(Extent(0, 9, 9), Extent(0, 11, 11))
    torch.testing.assert_close(ResizeLike().forward_at(place, maps, like), ResizeLike()(maps, like))


def test_a_part_between_the_pixels_of_maps_is_an_error() -> None:
    assert Extent(8, 16, 40).of_maps(4) == Extent(2, 4, 10)
    with pytest.raises(Csa2GlmhaError, match="of 16 pixels it makes 4 rows or columns"):
        Extent(6, 16, 40).of_maps(4)
