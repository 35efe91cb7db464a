"""The contrast stretch that networks from RGB to spectra are trained with.

The official code of MST++ and of the networks published beside it brings every image to [0, 1] by its own
minimum and maximum, over all pixels and channels together, before it cuts crops from it; of the spectra that
come out it keeps what lies in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from csa2glmha.data.crops import ImageSource

NOTE = (
    "each whole image is stretched to [0, 1] first, as networks from RGB to spectra are trained; "
    "--no-stretch takes images as they are"
)


def stretch(image: Tensor) -> Tensor:
    """Bring an image (C, H, W) to [0, 1] by its smallest and largest value; one without contrast is kept."""
    low, high = image.min(), image.max()
    return image if low == high else (image - low) / (high - low)


@dataclass(frozen=True)
class Stretched:
    """Images of a source, stretched; their targets are as they were.

    Attributes:
        images: whole ones, so that crops of them are cut afterwards.
    """

    images: ImageSource

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Name, stretched image, and target or None."""
        name, image, target = self.images.read(index)
        return name, stretch(image), target
