"""The calibration network, which guides a GLMHA layer by what its input is like."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.attention.canonical import NORM_FLOOR


class CalibrationNetwork(nn.Module):
    """The guide: pooled statistics of the input to per-image gates and logit-mode strengths.

    The hidden units serve twice. As they are, they are the strengths of the logit modes, fitted in
    closed form at initialisation; through a GELU and a second layer, which starts at zero, they correct
    gates and strengths. So the network starts as the closed form, with every gate at one.

    Args:
        channels: C of the input, or of all inputs together.
        width: hidden units, and logit modes.
        gates_k, gates_v: numbers of gates on keys and on values.
    """

    def __init__(self, channels: int, width: int, gates_k: int, gates_v: int) -> None:
        super().__init__()
        self.split = [width, gates_k, gates_v]
        self.hidden = nn.Linear(2 * channels, width)
        self.out = nn.Linear(width, sum(self.split))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) to mode strengths (B, width) and gates (B, gates_k), (B, gates_v)."""
        return self.from_statistics(pooled_statistics(*inputs))

    def from_statistics(self, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`forward`, from :func:`pooled_statistics` (B, 2C)."""
        strengths = self.hidden(statistics)
        correction, gates_k, gates_v = self.out(F.gelu(strengths)).split(self.split, dim=1)
        return strengths + correction, 1 + gates_k, 1 + gates_v


def pooled_statistics(*inputs: Tensor) -> Tensor:
    """Mean and standard deviation of every channel: (B, C, H, W) to (B, 2C), C of all inputs together."""
    return statistics_of_moments(*pooled_moments(*inputs))


def pooled_moments(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square of every channel: (B, C, H, W) to (B, C) each, C of all inputs together."""
    mean = torch.cat([x.mean((2, 3)) for x in inputs], 1)
    return mean, torch.cat([x.square().mean((2, 3)) for x in inputs], 1)


def statistics_of_moments(mean: Tensor, square: Tensor) -> Tensor:
    """As :func:`pooled_statistics`, from :func:`pooled_moments`."""
    variance = square - mean.square()
    # The floor is for the root's gradient, which is infinite at zero.
    return torch.cat((mean, variance.clamp_min(NORM_FLOOR).sqrt()), 1)
