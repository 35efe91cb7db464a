"""What is to be factorised, and in which metrics, from the statistics of a layer.

Whoever factorises a layer and whoever predicts what that will lose take the problem from here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.initialize.moments import LayerMoments, Moments
from csa2glmha.initialize.statistics import CENTRED, LayerStatistics, SideStatistics, has_offset

#: Statistics of a layer, of either kind.
Gathered = LayerStatistics | LayerMoments


class LowRankProblem(NamedTuple):
    """The first arguments of :func:`csa2glmha.initialize.factorize.factorize`, see there."""

    kernels: Tensor
    offsets: Tensor | None
    left_metric: Tensor
    right_metric: Tensor


def side_problem(projection: Projection, form: ChannelAttention, side: SideStatistics) -> LowRankProblem:
    """Of keys or queries: each channel counts by its norm, in the metric of the logits."""
    kernels, offsets = teacher_filters(projection, form)
    weight = side.norms().clamp_min(1e-12).reciprocal().square()
    return LowRankProblem(kernels, offsets, torch.diag_embed(weight), side.metric(CENTRED))


def value_problem(statistics: LayerStatistics) -> LowRankProblem:
    """Of values: in the metric of the layer's output."""
    assert statistics.attention is not None and statistics.values is not None
    kernels, offsets = teacher_filters(statistics.form.values, statistics.form)
    return LowRankProblem(kernels, offsets, statistics.attention, statistics.values)


def subspace_problem(moments: Moments) -> LowRankProblem:
    """Of a pointwise layer's queries and keys together: the 2c maps that one projection is to express."""
    filters = moments.stacked()
    metric, power = _logit_metric(filters @ moments.grams.unsqueeze(1) @ filters.transpose(-2, -1))
    return _of_maps(torch.diag_embed(power.reciprocal()), metric)


def moment_value_problem(moments: Moments) -> LowRankProblem:
    """Of a pointwise layer's values: V ~ H U^T V where the output is sensitive to it."""
    outputs = moments.outputs()
    return _of_maps((outputs.transpose(-2, -1) @ outputs).mean(0), moments.head_values())


def branch_problem(moments: Moments) -> LowRankProblem:
    """Of the values that the branch beside the attention takes.

    Every channel has an embedding of its own, so none counts for more.
    """
    filters = moments.per_head(moments.form.values.pointwise)
    second = (filters @ moments.grams.mean(0) @ filters.transpose(-2, -1)).contiguous()
    return _of_maps(torch.eye(second.shape[-1]).expand_as(second), second)


def teacher_filters(projection: Projection, form: ChannelAttention) -> tuple[Tensor, Tensor | None]:
    """Depthwise kernels (heads, c, k^2) and offsets (heads, c) of a projection, on the CPU."""
    heads, c = form.heads, form.head_channels
    kernels = (
        torch.ones(heads, c, 1)
        if projection.depthwise is None
        else projection.depthwise.cpu().reshape(heads, c, -1)
    )
    bias = projection.depthwise_bias
    return kernels, None if bias is None or not has_offset(projection) else bias.cpu().view(heads, c)


def _of_maps(left_metric: Tensor, right_metric: Tensor) -> LowRankProblem:
    """The identity on d maps of each head, by least squares in two metrics (heads, d, d)."""
    heads, maps, _ = right_metric.shape
    return LowRankProblem(torch.ones(heads, maps, 1), None, left_metric, right_metric)


def _logit_metric(products: Tensor) -> tuple[Tensor, Tensor]:
    """How logits depend on queries and keys, and the mean square of each.

    Args:
        products: (N, heads, 2c, 2c), mean products of each head's queries and keys, in this order.

    Returns:
        The metric (heads, 2c, 2c), as :meth:`SideStatistics.metric`, and (heads, 2c), in the same units.
    """
    power = products.diagonal(dim1=-2, dim2=-1).clamp_min(1e-24)
    # Each side's slope is the other side, normalised; their order does not matter to the sum of both.
    slope = products / power.sqrt().unsqueeze(-1)
    gain = power.sqrt().mean(-1)  # logits do not depend on an image's brightness
    slope = slope / gain[..., None, None]
    mean = slope.mean(0)
    metric = (slope.transpose(-2, -1) @ slope).mean(0) - CENTRED * mean.transpose(-2, -1) @ mean
    return metric, (power / gain.square().unsqueeze(-1)).mean(0)
