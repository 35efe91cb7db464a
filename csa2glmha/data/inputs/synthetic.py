"""Synthetic spectra of RGB images, for want of real ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from csa2glmha.data.crops import ImageSource

#: Ranges in nm by number of bands: those of the published MST (KAIST) and MST++ (ARAD 1K).
WAVELENGTH_RANGES = {28: (450.0, 650.0), 31: (400.0, 700.0)}


VISIBLE_RANGE = (400.0, 700.0)


_PRIMARIES_NM = (620.0, 540.0, 465.0)


_PRIMARY_WIDTH_NM = 35.0


def wavelengths(bands: int) -> Tensor:
    """Centres in nm, evenly spaced, of this many bands: (bands,).

    The range is that of :data:`WAVELENGTH_RANGES`, for other numbers of bands the visible one.
    """
    return torch.linspace(*WAVELENGTH_RANGES.get(bands, VISIBLE_RANGE), bands)


def synthetic_spectra(rgb: Tensor, bands: int = 28) -> Tensor:
    """Make a spectral cube (..., bands, H, W) of an RGB image (..., 3, H, W), both in [0, 1].

    Each of the :func:`wavelengths` gets a smooth mixture of the linearised R, G and B (sRGB,
    IEC 61966-2-1), of weights that add up to one: gray gives a flat spectrum. No real spectra: name every
    figure that rests on them "synthetic spectra".
    """
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    distance = (wavelengths(bands)[:, None] - torch.tensor(_PRIMARIES_NM)) / _PRIMARY_WIDTH_NM
    weights = torch.softmax(-distance.square() / 2, dim=1)
    return torch.einsum("bc,...chw->...bhw", weights.to(linear), linear)


@dataclass(frozen=True)
class SyntheticSpectra:
    """The images of an RGB source as cubes of :func:`synthetic_spectra`.

    Attributes:
        images: of 3 channels.
        bands: of every cube.
    """

    images: ImageSource
    bands: int = 28

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Return the image's name, its synthetic spectra (bands, H, W), and None."""
        name, rgb, _ = self.images.read(index)
        return name, synthetic_spectra(rgb, self.bands), None
