"""Streamed attention statistics of a teacher's layers.

One pass over the calibration images; per layer and head only sums of small matrices, and the attention maps,
are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from csa2glmha.attention.canonical import ChannelAttention, Projection, tokens

#: How much of the mean dependence is left out of the metric for keys and queries. The static bias carries the
#: mean, so low rank is spent on what varies; a tenth of it is kept because the norms depend on it.
CENTRED = 0.9


def patches(mixed: Tensor, heads: int, projection: Projection) -> Tensor:
    """What the projection's depthwise part sees of one image's maps, per head: x* of shape (heads, D, L).

    That is the k x k neighbourhoods, and a row of ones where the projection has a bias behind them.

    Args:
        mixed: (1, heads * c, H, W), as :meth:`Projection.mix` makes them.
    """
    k, dilation = projection.kernel_size, projection.dilation
    columns = (
        F.unfold(mixed, k, dilation=dilation, padding=dilation * (k // 2)) if k > 1 else mixed.flatten(2)
    )
    columns = columns.view(heads, -1, columns.shape[-1])
    if has_offset(projection):
        columns = torch.cat((columns, columns.new_ones(heads, 1, columns.shape[-1])), 1)
    return columns


@dataclass
class SideStatistics:
    """Moments of how one side of the logits (keys, or queries) depends on its own filters.

    With x* the side's patches and Z the other side's normalised maps, S = Z (x*)^T T^T; so
    Z (x*)^T (c x D), its mean and second moment over the images are all there is to know.
    """

    mean: Tensor
    second: Tensor
    power: Tensor
    images: int = 0

    def add(self, other: Tensor, columns: Tensor, maps: Tensor) -> None:
        """Add one image: other (heads, c, L) normalised, columns (heads, D, L), maps (heads, c, L)."""
        # Sums are kept on the CPU: some devices have no double precision.
        dependence = (other @ columns.transpose(-2, -1)).cpu().double()
        power = maps.square().sum(-1).cpu().double()
        # Logits divide by the norm of the side's own maps: by then the image's gain is gone.
        gain = power.sqrt().mean(-1).clamp_min(1e-12)
        dependence = dependence / gain[:, None, None]
        self.mean += dependence
        self.second += dependence.transpose(-2, -1) @ dependence
        self.power += power / gain[:, None].square()
        self.images += 1

    def metric(self, centred: float) -> Tensor:
        """Omega, (heads, D, D); ``centred`` = 1 leaves out what is the same in every image."""
        mean = self.mean / self.images
        return self.second / self.images - centred * (mean.transpose(-2, -1) @ mean)

    def norms(self) -> Tensor:
        """Root mean square norm of every channel, (heads, c), in the same units as the metric."""
        return (self.power / self.images).sqrt()


@dataclass
class LayerStatistics:
    """What the initialisation of one layer needs, accumulated over images.

    Of the attention maps themselves (heads, c, c) those of every image are kept: they are small.
    """

    form: ChannelAttention
    queries: SideStatistics | None
    keys: SideStatistics | None
    attention: Tensor | None
    values: Tensor | None
    maps: list[Tensor] = field(default_factory=list)
    images: int = 0

    @classmethod
    def empty(cls, form: ChannelAttention, queries: bool, keys: bool, values: bool) -> LayerStatistics:
        """Choose which projections will be factorised; nothing is gathered for the others."""
        heads, c = form.heads, form.head_channels

        def side(projection: Projection) -> SideStatistics:
            d = patch_size(projection, c)
            zeros = torch.zeros
            return SideStatistics(
                zeros(heads, c, d, dtype=torch.float64),
                zeros(heads, d, d, dtype=torch.float64),
                zeros(heads, c, dtype=torch.float64),
            )

        d = patch_size(form.values, c)
        return cls(
            form,
            side(form.queries) if queries else None,
            side(form.keys) if keys else None,
            torch.zeros(heads, c, c, dtype=torch.float64) if values else None,
            torch.zeros(heads, d, d, dtype=torch.float64) if values else None,
        )

    @torch.no_grad()
    def add(self, *inputs: Tensor) -> None:
        """Add a batch of the layer's input (B, C, H, W), and of that of queries where it has one."""
        for image in zip(*(x.split(1) for x in inputs), strict=True):
            self._add_image(image)

    def _add_image(self, inputs: tuple[Tensor, ...]) -> None:
        form, heads = self.form, self.form.heads
        sides = {"queries": inputs[-1], "keys": inputs[0], "values": inputs[0]}
        mixed = {name: getattr(form, name).mix(x) for name, x in sides.items()}
        maps = {name: tokens(getattr(form, name).spread(m), heads)[0] for name, m in mixed.items()}
        unit = {name: F.normalize(maps[name], dim=-1) for name in ("queries", "keys")}

        def patches_of(name: str) -> Tensor:
            return patches(mixed[name], heads, getattr(form, name))

        if self.keys is not None:
            self.keys.add(unit["queries"], patches_of("keys"), maps["keys"])
        if self.queries is not None:
            self.queries.add(unit["keys"], patches_of("queries"), maps["queries"])
        logits = (unit["queries"] @ unit["keys"].transpose(-2, -1)) * form.temperature.view(-1, 1, 1)
        self.maps.append(form.attention(logits).cpu())
        if self.attention is not None and self.values is not None:
            attention = self.maps[-1].double()
            output = form.output.cpu().double().view(-1, heads, form.head_channels).permute(1, 0, 2)
            mapped = output @ attention
            self.attention += mapped.transpose(-2, -1) @ mapped
            columns = patches_of("values")
            self.values += (columns @ columns.transpose(-2, -1)).cpu().double() / columns.shape[-1]
        self.images += 1


def has_offset(projection: Projection) -> bool:
    """Whether generated channels carry a constant."""
    return projection.depthwise_bias is not None


def patch_size(projection: Projection, c: int) -> int:
    """D of a head of c channels."""
    return c * projection.kernel_size**2 + has_offset(projection)
