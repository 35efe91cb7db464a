"""Small networks of our own with channel attention in every form, and with attention that is refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

#: Called with a map (B, C, H, W).
Block = Callable[[int], nn.Module]


class Network(nn.Module):
    """Two blocks of attention, each with a shortcut, between two convolutions: (B, 3, H, W) to the same.

    Args:
        block: makes a block from its channels; it is called with the maps alone.
        channels: of the maps.
        seed: of all weights; those that start as zeros or ones are random, too.
    """

    def __init__(self, block: Block, channels: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(block(channels) for _ in range(2))
        self.last = nn.Conv2d(channels, 3, 3, padding=1)
        randomise(self, seed)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x) + image


def randomise(module: nn.Module, seed: int) -> None:
    """Random weights of a size that leaves no part of an attention without effect."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 1
        values = torch.randn(parameter.shape, generator=generator) * (1.5 / fan**0.5)
        positive = "temperature" in name or "scale" in name
        parameter.data = 1 + values.abs() if positive else values


def image(height: int = 12, width: int = 20, seed: int = 1) -> Tensor:
    """(1, 3, height, width)."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
