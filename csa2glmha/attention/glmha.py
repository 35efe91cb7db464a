"""Guided low-rank multi-head self-attention (GLMHA), the replacement of a CSA layer.

After Ilyas et al., "GLMHA: A Guided Low-rank Multi-Head Self-Attention for Efficient Image
Restoration and Spectral Reconstruction" (arXiv 2410.00380), in a form that a trained CSA layer can
be converted to: keys and values are generated in low rank straight from the input, the softmax runs
over the *expanded* c x c logits, so that full rank is CSA exactly,

    K ~ G_k K_r    V ~ H V_r    (optionally R ~ G_r R_r)
    S = temperature * normalised(R K^T) + B
    Y = (output * softmax(S) * H) V_r        B, G, H: static and small, they touch no map.

The ``compact`` form is the paper's: the softmax runs over the r generated keys themselves.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .canonical import normalised_logits, tokens


@dataclass(frozen=True)
class GLMHAConfig:
    """Everything that fixes the shapes of one GLMHA layer.

    Attributes:
        channels: C, of the input.
        out_channels: rows of the output projection.
        heads: number of heads.
        head_channels: c of every head.
        rank_q, rank_k, rank_v: channels generated per head for rows, columns and values; c means full,
            and then the maps are used as they are, with no expansion.
        attention: "expanded" (softmax over c x c) or "compact" (softmax over rank_k = rank_v keys).
        kernel_size: of the depthwise part of the generators, 1 for none.
        bias: the generators carry biases.
        output_bias: the output projection carries a bias.
        bias_rank: the static logit bias B is the sum of this many rank-one modes per head, whose
            strengths the guide adapts to the image; 0 leaves B out.
        guide_width: hidden units of the calibration network; 0 leaves it out.
    """

    channels: int
    out_channels: int
    heads: int
    head_channels: int
    rank_q: int
    rank_k: int
    rank_v: int
    attention: str = "expanded"
    kernel_size: int = 3
    bias: bool = False
    output_bias: bool = False
    bias_rank: int = 0
    guide_width: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; ``GLMHAConfig(**value)`` restores them."""
        return asdict(self)

    @property
    def full(self) -> bool:
        """Nothing is approximated: the layer computes what the CSA layer did."""
        return self.rank_q == self.rank_k == self.rank_v == self.head_channels


class CalibrationNetwork(nn.Module):
    """The guide: pooled statistics of the input to per-image gates and logit modes.

    The first layer's outputs z serve twice: the first of them, linearly, as the image's logit-mode
    strengths (fitted in closed form at initialisation), and all of them, through a GELU and a second
    layer that starts at zero, as corrections to gates and strengths. So it starts as the closed form.

    Args:
        channels: C of the input.
        width: hidden units.
        modes: number of logit modes.
        gates_k, gates_v: numbers of gates.
    """

    def __init__(self, channels: int, width: int, modes: int, gates_k: int, gates_v: int) -> None:
        super().__init__()
        self.split = [modes, gates_k, gates_v]
        self.linear_modes = min(width, modes)
        self.hidden = nn.Linear(2 * channels, width)
        self.out = nn.Linear(width, sum(self.split))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) to mode strengths (B, modes) and gates (B, gates_k), (B, gates_v)."""
        z = self.hidden(pooled_statistics(x))
        strengths, gates_k, gates_v = self.out(F.gelu(z)).split(self.split, dim=1)
        strengths = strengths + F.pad(z[:, : self.linear_modes], (0, self.split[0] - self.linear_modes))
        return strengths, 1 + gates_k, 1 + gates_v


def pooled_statistics(x: Tensor) -> Tensor:
    """Mean and standard deviation of every channel: (B, C, H, W) to (B, 2C)."""
    mean = x.mean((2, 3))
    power = x.square().mean((2, 3))
    return torch.cat((mean, (power - mean.square()).clamp_min(NORM_FLOOR_STD).sqrt()), 1)


#: Floor under the variance whose root is taken: the root's gradient is infinite at zero.
NORM_FLOOR_STD = 1e-12


class GLMHA(nn.Module):
    """The layer, (B, C, H, W) to (B, out_channels, H, W)."""

    def __init__(self, config: GLMHAConfig) -> None:
        super().__init__()
        self.config = config
        heads, c = config.heads, config.head_channels
        self.widths = [heads * config.rank_q, heads * config.rank_k, heads * config.rank_v]
        generated = sum(self.widths)
        self.pointwise = nn.Conv2d(config.channels, generated, 1, bias=config.bias)
        k = config.kernel_size
        self.depthwise = (
            nn.Conv2d(generated, generated, k, padding=k // 2, groups=generated, bias=config.bias)
            if k > 1
            else None
        )
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.output = nn.Parameter(torch.zeros(config.out_channels, heads * c))
        self.output_bias = nn.Parameter(torch.zeros(config.out_channels)) if config.output_bias else None

        def expansion(rank: int) -> nn.Parameter | None:
            return None if rank == c else nn.Parameter(torch.zeros(heads, c, rank))

        compact = config.attention == "compact"
        self.expand_rows = expansion(config.rank_q)
        self.expand_columns = None if compact else expansion(config.rank_k)
        self.expand_values = None if compact else expansion(config.rank_v)
        # B = left * diag(strength + guide) * right^T, per head.
        modes = config.bias_rank
        if modes:
            columns = config.rank_k if compact else c
            self.mode_left = nn.Parameter(torch.zeros(heads, c, modes))
            self.mode_right = nn.Parameter(torch.zeros(heads, columns, modes))
        self.guide = (
            CalibrationNetwork(config.channels, config.guide_width, modes, self.widths[1], self.widths[2])
            if config.guide_width
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        rows, columns, values = self.generate(x)
        strengths, gates_k, gates_v = self.guidance(x)
        attention = self.logits(rows, columns, strengths, gates_k).softmax(-1)
        y = self.fold(attention, gates_v) @ values.flatten(2)
        if self.output_bias is not None:
            y = y + self.output_bias.view(-1, 1)
        return y.view(batch, self.config.out_channels, height, width)

    def generate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The maps R_r, K_r and V_r: (B, heads * rank, H, W) each."""
        maps = self.pointwise(x)
        if self.depthwise is not None:
            maps = self.depthwise(maps)
        rows, columns, values = maps.split(self.widths, dim=1)
        return rows, columns, values

    def guidance(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Mode strengths (B, modes) and gates (B, heads * rank) of keys and values; None: no guide."""
        return (None, None, None) if self.guide is None else self.guide(x)

    def logits(
        self,
        rows: Tensor,
        columns: Tensor,
        strengths: Tensor | None = None,
        gates: Tensor | None = None,
    ) -> Tensor:
        """S for generated maps: (B, heads, c, c), or (B, heads, c, rank_k) in the compact form."""
        heads = self.config.heads
        rows, columns = tokens(rows, heads), tokens(columns, heads)
        pixels = rows.shape[-1]
        gate = None if gates is None else gates.view(gates.shape[0], heads, 1, -1)
        cross = rows @ columns.transpose(-2, -1) / pixels
        expand = self.expand_columns
        if self.config.attention == "compact" or expand is None:
            column_power = columns.square().mean(-1)
            if gate is not None and expand is None and self.config.attention == "expanded":
                gate = None  # a factor on a whole key cancels in the normalisation
        else:
            expand = expand if gate is None else expand * gate
            column_power = _expanded_power(expand, columns @ columns.transpose(-2, -1) / pixels)
            cross = cross @ expand.transpose(-2, -1)
        if self.expand_rows is None:
            row_power = rows.square().mean(-1)
        else:
            row_power = _expanded_power(self.expand_rows, rows @ rows.transpose(-2, -1) / pixels)
            cross = self.expand_rows @ cross
        logits = normalised_logits(cross, row_power, column_power, self.temperature)
        if self.config.attention == "compact" and gate is not None:
            logits = logits * gate
        if self.config.bias_rank:
            logits = logits + self.static_logits(strengths)
        return logits

    def static_logits(self, strengths: Tensor | None = None) -> Tensor:
        """B, (1 or B, heads, c, c), with the guide's strengths (B, modes) added to its own."""
        scale = torch.ones(1) if strengths is None else 1 + strengths
        left = self.mode_left * scale.to(self.mode_left).view(scale.shape[0], 1, 1, -1)
        return left @ self.mode_right.transpose(-2, -1)

    def fold(self, attention: Tensor, gates: Tensor | None = None) -> Tensor:
        """Output projection, attention and value expansion in one matrix: (B, out, heads * rank_v)."""
        heads, c = self.config.heads, self.config.head_channels
        if self.expand_values is not None:
            attention = attention @ self.expand_values
        if gates is not None:
            attention = attention * gates.view(gates.shape[0], heads, 1, -1)
        output = self.output.view(-1, heads, c).transpose(0, 1)
        return (output @ attention).transpose(1, 2).flatten(2)


def _expanded_power(expand: Tensor, gram: Tensor) -> Tensor:
    """Mean square of every row of expand * maps, from the maps' Gram matrix: (B, heads, c)."""
    return ((expand @ gram) * expand).sum(-1)
