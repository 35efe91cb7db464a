"""Networks whose code makes plain numbers of the sizes of its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Around(nn.Module):
    """A convolution of an image to which something is added."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image + 0.1 * self.added(image))

    def added(self, image: Tensor) -> Tensor:
        raise NotImplementedError


class ImageByImage(_Around):
    """Takes the images of a batch in turn: the exporter says that the batch is a constant."""

    def added(self, image: Tensor) -> Tensor:
        return torch.cat([each[None] - each.mean() for each in image])


class Groups(_Around):
    """Counts groups of images: the exporter takes the count for a constant, and does not say so."""

    def added(self, image: Tensor) -> Tensor:
        for _ in range((image.shape[0] + 1) // 2 + image.shape[0] // 2):
            image = image + 0.1
        return image


class Rows(_Around):
    """A mask with a plain number of rows: the exporter says that the height is a constant."""

    def added(self, image: Tensor) -> Tensor:
        return image * torch.linspace(0, 1, int(image.shape[2]))[:, None]


class Windows(_Around):
    """Counts windows of 8 x 8 pixels in a loop: the exporter takes the count for a constant."""

    def added(self, image: Tensor) -> Tensor:
        for number in range((image.shape[2] // 8) * (image.shape[3] // 8)):
            image = image + 0.01 * number
        return image


class Pools(_Around):
    """Looks at parts of large images alone, as test-time local converters do."""

    largest = 100 * 100

    def added(self, image: Tensor) -> Tensor:
        if image.shape[2] * image.shape[3] > self.largest:
            return nn.functional.avg_pool2d(image, 31, 1, 15)
        return image.mean((2, 3), keepdim=True).expand_as(image)


class PoolsLater(Pools):
    """From so large a size on that nobody compares outputs there."""

    largest = 1000 * 1000


class Pieces(Pools):
    """Takes a large image in two parts: other operators, the same function."""

    def added(self, image: Tensor) -> Tensor:
        if image.shape[2] * image.shape[3] > self.largest:
            return torch.cat([part * 2 for part in image.chunk(2, dim=3)], dim=3)
        return image * 2
