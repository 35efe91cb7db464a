"""Channel-wise self-attention in one form, whatever the network it comes from.

Per head, from an input x of C channels and L pixels:

    R, K, V = queries, keys, values: c x L each, a projection of x (pointwise, then maybe depthwise);
              queries may have an input of their own, with the same pixels
    S = temperature * R^ K^T       R^, K^: every row divided by its L2 norm over the L pixels
    Y = output * blockdiag_h(softmax(S_h)) * V        in some networks ReLU in place of the softmax

A reader reads a layer of a particular network into :class:`ChannelAttention`; everything else in
the package works on that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from csa2glmha.attention.core import Activation, Moments, activated, folded

#: Smallest mean square of a map in a norm. Maps this weak carry no signal; the floor keeps the
#: division finite.
NORM_FLOOR = 1e-12


@dataclass(frozen=True)
class Projection:
    """A projection of (B, C, H, W) onto heads * c channels, split into its two linear parts.

    Attributes:
        pointwise: (heads * c, C).
        pointwise_bias: (heads * c,) or None.
        depthwise: (heads * c, k, k), k odd, applied to the result with zero padding that keeps its size, or
            None.
        depthwise_bias: (heads * c,) or None.
        dilation: of the depthwise part.
    """

    pointwise: Tensor
    pointwise_bias: Tensor | None = None
    depthwise: Tensor | None = None
    depthwise_bias: Tensor | None = None
    dilation: int = 1

    @property
    def kernel_size(self) -> int:
        """k, 1 where there is no depthwise part."""
        return 1 if self.depthwise is None else int(self.depthwise.shape[-1])

    def maps(self, x: Tensor) -> Tensor:
        """The projection of (B, C, H, W): (B, heads * c, H, W)."""
        return self.spread(self.mix(x))

    def mix(self, x: Tensor) -> Tensor:
        """The pointwise part: (B, C, H, W) to (B, heads * c, H, W)."""
        return F.conv2d(x, self.pointwise[:, :, None, None], self.pointwise_bias)

    def spread(self, mixed: Tensor) -> Tensor:
        """The depthwise part, on the result of :meth:`mix`."""
        if self.depthwise is None:
            return mixed
        return F.conv2d(
            mixed,
            self.depthwise[:, None],
            self.depthwise_bias,
            padding=self.dilation * (self.kernel_size // 2),
            dilation=self.dilation,
            groups=mixed.shape[1],
        )


@dataclass(frozen=True)
class ChannelAttention:
    """One CSA layer.

    Attributes:
        heads: number of heads; every projection yields heads * c channels.
        queries, keys, values: the projections to R, K and V.
        temperature: (heads,), multiplies the logits.
        output: (C, heads * c), the output projection.
        output_bias: (C,) or None.
        value_branch: all of V is needed, because something is made of it beside the attention and added, or
            because it is multiplied by something before.
        query_channels: channels of an input that queries alone are made from; None: one input for all.
        activation: what makes the map of the logits.
        beside: in words, what lies beside the attention, where the module makes and mixes its values itself;
            then ``output`` has no rows, and ``values`` are those of the keys. Empty: nothing of that kind.
    """

    heads: int
    queries: Projection
    keys: Projection
    values: Projection
    temperature: Tensor
    output: Tensor
    output_bias: Tensor | None = None
    value_branch: bool = False
    query_channels: int | None = None
    activation: Activation = "softmax"
    beside: str = ""

    @property
    def map_only(self) -> bool:
        """Only the map is made anew: the rest of the module stays as it is."""
        return bool(self.beside)

    @property
    def pointwise(self) -> bool:
        """No projection has a depthwise part."""
        return all(part.kernel_size == 1 for part in self._projections)

    @property
    def from_moments(self) -> bool:
        """Second moments of the input give its logits, and V is made in full: see :mod:`.pointwise`."""
        one_input = self.query_channels is None
        whole = not self.map_only
        return whole and self.value_branch and self.pointwise and one_input and not self.biased

    @property
    def biased(self) -> bool:
        """A projection carries a bias."""
        biases = [(part.pointwise_bias, part.depthwise_bias) for part in self._projections]
        return any(bias is not None for pair in biases for bias in pair)

    @property
    def _projections(self) -> tuple[Projection, Projection, Projection]:
        return self.queries, self.keys, self.values

    def aligned(self) -> ChannelAttention:
        """The same attention, with depthwise parts of one size and dilation in all projections, or in none.

        Kernels of even size have no centre: with one of those it stays as it is.
        """
        if self.pointwise or any(part.kernel_size % 2 == 0 for part in self._projections):
            return self
        dilations = {part.dilation for part in self._projections if part.kernel_size > 1}
        dilation = dilations.pop() if len(dilations) == 1 else 1
        reach = max(part.dilation * (part.kernel_size // 2) for part in self._projections)
        size = 2 * (reach // dilation) + 1
        queries, keys, values = (_with_kernel(part, size, dilation) for part in self._projections)
        return replace(self, queries=queries, keys=keys, values=values)

    @property
    def channels(self) -> int:
        """C, the width of the layer's input: of keys and values, where queries have one of their own."""
        return int(self.keys.pointwise.shape[1])

    @property
    def head_channels(self) -> int:
        """c, the channels of one head."""
        return int(self.queries.pointwise.shape[0]) // self.heads

    def queries_and_keys(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """R and K (B, heads * c, H, W) of the layer's inputs: one, or a second one for queries."""
        return self.queries.maps(inputs[-1]), self.keys.maps(inputs[0])

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """S for maps (B, heads * c, H, W): (B, heads, c, c)."""
        return self.logits_of(self.moments(queries, keys))

    def moments(self, queries: Tensor, keys: Tensor) -> Moments:
        """All that the logits need of maps (B, heads * c, H, W), as means over pixels."""
        queries, keys = tokens(queries, self.heads), tokens(keys, self.heads)
        cross = queries @ keys.transpose(-2, -1) / queries.shape[-1]
        return cross, queries.square().mean(-1), keys.square().mean(-1)

    def logits_of(self, moments: Moments) -> Tensor:
        """As :meth:`logits`, from :meth:`moments`."""
        cross, query_power, key_power = moments
        temperature = self.temperature.view(-1, 1, 1)
        return normalised_logits(cross, query_power.unsqueeze(-1), key_power.unsqueeze(-2), temperature)

    def attention(self, logits: Tensor) -> Tensor:
        """The map that logits (..., c, c) make."""
        return activated(logits, self.activation)

    def matrix(self, moments: Moments) -> Tensor:
        """Output projection and attention in one, from :meth:`moments`: (B, out, heads * c)."""
        return folded(self.output, self.attention(self.logits_of(moments)))


def tokens(maps: Tensor, heads: int) -> Tensor:
    """(B, heads * c, H, W) to (B, heads, c, H * W)."""
    batch, channels, height, width = maps.shape
    return maps.reshape(batch, heads, channels // heads, height * width)


def normalised_logits(cross: Tensor, query_power: Tensor, key_power: Tensor, scale: Tensor) -> Tensor:
    """Attention logits from second moments.

    Working on second moments instead of normalising the maps saves two passes over them, and means over
    pixels stay in range however large the image.

    Args:
        cross: (B, heads, c, d), mean over pixels of the products of queries and keys.
        query_power: (B, heads, c, 1), mean square of each query.
        key_power: (B, heads, 1, d).
        scale: (heads, c or 1, d or 1), what the normalised products are multiplied by: the temperature.

    Returns:
        (B, heads, c, d).
    """
    queries, keys = (power.clamp_min(NORM_FLOOR).rsqrt() for power in (query_power, key_power))
    return cross * queries * (keys * scale)


def generated_logits(
    products: tuple[Tensor, Tensor, Tensor],
    expand_queries: Tensor | None,
    expand_keys: Tensor | None,
    scale: Tensor,
    gate: Tensor | None = None,
) -> Tensor:
    """Attention logits of queries and keys that are mixtures of generated ones, or these themselves.

    Args:
        products: means over pixels of the generated maps' products: of queries with keys (B, heads, q, k); of
            queries with each other (B, heads, q, q), or their squares (B, heads, c, 1) where they are used as
            they are; of keys likewise, (B, heads, k, k) or (B, heads, 1, k).
        expand_queries, expand_keys: the mixtures, (heads, c, q) and (heads, c, k); None: used as they are.
        scale: as of :func:`normalised_logits`.
        gate: (B, heads, 1, k), weight of each generated key; None: all count the same.

    Returns:
        (B, heads, c, c), or (B, heads, c, k) where keys are used as they are.
    """
    cross, queries, keys = products
    if expand_keys is not None:
        expand = expand_keys if gate is None else expand_keys * gate
        keys = expanded_power(expand, keys).unsqueeze(-2)
        cross = cross @ expand.transpose(-2, -1)
    if expand_queries is not None:
        queries = expanded_power(expand_queries, queries).unsqueeze(-1)
        cross = expand_queries @ cross
    logits = normalised_logits(cross, queries, keys, scale)
    return logits if gate is None or expand_keys is not None else logits * gate


def gram_logits(gram: Tensor, queries: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """Attention logits of queries and keys that are mixtures of the same maps.

    Args:
        gram: (B, heads or 1, r, r), means over pixels of the maps' products.
        queries, keys: the mixtures, (heads, c, r) each.
        scale: as of :func:`normalised_logits`.

    Returns:
        (B, heads, c, c).
    """
    seen = queries @ gram
    query_power = (seen * queries).sum(-1, keepdim=True)
    key_power = expanded_power(keys, gram).unsqueeze(-2)
    return normalised_logits(seen @ keys.transpose(-2, -1), query_power, key_power, scale)


def expanded_power(expand: Tensor, gram: Tensor) -> Tensor:
    """Mean square of every row of expand * maps, from the maps' Gram matrix.

    Args:
        expand: (..., c, d).
        gram: (..., d, d), means over pixels of the maps' products.

    Returns:
        (..., c).
    """
    return ((expand @ gram) * expand).sum(-1)


def _with_kernel(projection: Projection, size: int, dilation: int) -> Projection:
    """The same projection with a depthwise part that is at least as large as its own.

    Args:
        projection: any, its kernel of odd size.
        size, dilation: of the new kernel. The dilation is the projection's own, or 1.
    """
    width = projection.pointwise.shape[0]
    kernel = projection.depthwise
    if kernel is None:
        kernel = projection.pointwise.new_ones(width, 1, 1)
    step = projection.dilation // dilation if projection.kernel_size > 1 else 1
    reach = step * (projection.kernel_size // 2)
    middle, taps = size // 2, slice(size // 2 - reach, size // 2 + reach + 1, step)
    assert middle >= reach
    spread = kernel.new_zeros(width, size, size)
    spread[:, taps, taps] = kernel
    return replace(projection, depthwise=spread, dilation=dilation)


def stack_projections(parts: list[Projection]) -> Projection:
    """One projection that computes several of the same kind at once, their channels concatenated."""

    def cat(tensors: list[Tensor | None]) -> Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(present) if present else None

    pointwise = cat([part.pointwise for part in parts])
    (dilation,) = {part.dilation for part in parts}
    assert pointwise is not None
    return Projection(
        pointwise,
        cat([part.pointwise_bias for part in parts]),
        cat([part.depthwise for part in parts]),
        cat([part.depthwise_bias for part in parts]),
        dilation,
    )
