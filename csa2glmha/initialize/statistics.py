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
from csa2glmha.attention.guide import pooled_statistics
from csa2glmha.initialize.pixels import Pixels

#: How much of the mean dependence is left out of the metric for keys and queries. The static bias carries the
#: mean, so low rank is spent on what varies; a tenth of it is kept because the norms depend on it.
CENTRED = 0.9


def patches(mixed: Tensor, heads: int, projection: Projection, pixels: Pixels) -> Tensor:
    """What the projection's depthwise part sees at pixels of one image, per head: x* of shape (heads, D, n).

    That is the k x k neighbourhoods, and a row of ones where the projection has a bias behind them.

    Args:
        mixed: (1, heads * c, H, W), as :meth:`Projection.mix` makes them.
        pixels: of the image.
    """
    k, dilation = projection.kernel_size, projection.dilation
    reach = dilation * (k // 2)
    framed = F.pad(mixed, (reach, reach, reach, reach))
    steps = dilation * torch.arange(k)
    taps = (steps[:, None] * framed.shape[-1] + steps).flatten()
    places = taps[:, None] + pixels.rows * framed.shape[-1] + pixels.columns
    columns = framed.flatten(2)[0].index_select(1, places.flatten().to(mixed.device))
    columns = columns.view(heads, -1, places.shape[1])
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
class LogitSamples:
    """Of every image, on the CPU: they are small.

    Attributes:
        logits: (heads, c, c) each.
        features: (2C,) each, pooled statistics of the inputs.
    """

    logits: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)


@dataclass
class LayerStatistics:
    """What the initialisation of one layer needs, accumulated over images.

    Moments of neighbourhoods are taken at :class:`Pixels`, a sample of them; logits are those of all pixels.
    """

    form: ChannelAttention
    queries: SideStatistics | None
    keys: SideStatistics | None
    attention: Tensor | None
    values: Tensor | None
    samples: LogitSamples = field(default_factory=LogitSamples)
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

    def maps(self) -> Tensor:
        """The attention of every image, (N, heads, c, c)."""
        return self.form.attention(torch.stack(self.samples.logits))

    def _add_image(self, inputs: tuple[Tensor, ...]) -> None:
        form = self.form
        mixed = {"queries": form.queries.mix(inputs[-1]), "keys": form.keys.mix(inputs[0])}
        maps = {"queries": form.queries.spread(mixed["queries"]), "keys": form.keys.spread(mixed["keys"])}
        self.samples.logits.append(form.logits(maps["queries"], maps["keys"])[0].cpu())
        self.samples.features.append(pooled_statistics(*inputs)[0].cpu())
        pixels = Pixels.of(inputs[0].shape[-2], inputs[0].shape[-1], seed=self.images)
        at = {name: tokens(pixels.of_maps(m), form.heads)[0] for name, m in maps.items()}
        for name, other, side in (("keys", "queries", self.keys), ("queries", "keys", self.queries)):
            if side is not None:
                columns = patches(mixed[name], form.heads, getattr(form, name), pixels)
                side.add(F.normalize(at[other], dim=-1), columns, at[name])
        if self.attention is not None and self.values is not None:
            attention = form.attention(self.samples.logits[-1]).double()
            output = form.output.cpu().double().view(-1, form.heads, form.head_channels).permute(1, 0, 2)
            mapped = output @ attention
            self.attention += mapped.transpose(-2, -1) @ mapped
            columns = patches(form.values.mix(inputs[0]), form.heads, form.values, pixels)
            self.values += symmetric_product(columns).cpu().double() / columns.shape[-1]
        self.images += 1


def symmetric_product(rows: Tensor) -> Tensor:
    """X X^T of X (..., D, n), of which only the blocks on and above the diagonal are computed."""
    blocks = rows.split(max(64, -(-rows.shape[-2] // 4)), -2)
    product = rows.new_empty(*rows.shape[:-1], rows.shape[-2])
    start = 0
    for block in blocks:
        end = start + block.shape[-2]
        part = block @ rows[..., start:, :].transpose(-2, -1)
        product[..., start:end, start:] = part
        product[..., start:, start:end] = part.transpose(-2, -1)
        start = end
    return product


def has_offset(projection: Projection) -> bool:
    """Whether generated channels carry a constant."""
    return projection.depthwise_bias is not None


def patch_size(projection: Projection, c: int) -> int:
    """D of a head of c channels."""
    return c * projection.kernel_size**2 + has_offset(projection)
