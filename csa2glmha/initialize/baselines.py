"""Other ways to make keys and values low-rank, to compare with.

Each gets the best start that its form allows:

- "svd": the projections' filters truncated by their singular values alone, no data: for depthwise projections
  the best separable factors in that same sense.
- "static": after Linformer (Wang et al., arXiv 2006.04768), with channels for tokens: a static projection of
  the c keys and values of a head to r, generated as such, and a softmax over them. Columns are clustered by
  the attention they receive; a key is the mean of its cluster, a value the mean weighted by what it drives.
- "compact": the same with what GLMHA adds to it, a static bias on the logits, which contains the log of a
  cluster's size, and the guide: the paper's own form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import UsageError
from csa2glmha.data.batches import Inputs
from csa2glmha.initialize.configure import layer_config, plan_layers
from csa2glmha.initialize.moments import LayerMoments
from csa2glmha.initialize.statistics import LayerStatistics, SideStatistics, has_offset
from csa2glmha.initialize.student import Statistics, initialise_student
from csa2glmha.reading.layers import AttentionLayer, attention_layers

ModelT = TypeVar("ModelT", bound=nn.Module)

SVD, STATIC, COMPACT = "svd", "static", "compact"
DESCRIPTIONS = {
    SVD: "projections truncated by their singular values, without data",
    STATIC: "static projection of keys and values to r channels, as in Linformer",
    COMPACT: "softmax over r generated keys, with bias and guide, as in the paper",
}


def baseline_configs(layers: Mapping[str, AttentionLayer], kind: str, rank: int) -> dict[str, GLMHAConfig]:
    """The configuration of every layer at one rank.

    Raises:
        UsageError: these layers have no such form.
    """
    ranks = Ranks(k=rank, v=rank)
    if kind == COMPACT:
        return plan_layers(dict(layers), ranks, "compact")
    if kind == STATIC:
        configs = plan_layers(dict(layers), ranks, "compact")
    else:
        configs = {name: layer_config(layer.form, ranks) for name, layer in layers.items()}
    return {name: replace(config, bias_rank=0, guide_width=0) for name, config in configs.items()}


def initialise_baseline(
    teacher: ModelT, kind: str, rank: int, batches: Sequence[Inputs]
) -> tuple[ModelT, dict[str, GLMHAConfig]]:
    """A student of another kind.

    Args:
        teacher: in eval mode.
        kind: SVD, STATIC or COMPACT.
        rank: per head, of keys and values.
        batches: calibration inputs; SVD does not look at them.

    Raises:
        UsageError: the teacher's layers have no such form.
    """
    layers = attention_layers(teacher)
    configs = baseline_configs(layers, kind, rank)
    statistics: Statistics | None = None
    if kind == SVD:
        statistics = {name: _white(layer.form) for name, layer in layers.items()}
    student, _ = initialise_student(teacher, configs, batches, statistics)
    return student, configs


def _white(form: ChannelAttention) -> LayerStatistics | LayerMoments:
    """Statistics that know nothing of the data: every input channel and pixel is noise of the same power.

    In these metrics the whitened filter bank is the filter bank, and its truncation plain.
    """
    heads, c = form.heads, form.head_channels
    if form.from_moments:
        eye = torch.eye(form.channels, dtype=torch.float64)
        weight = form.values.pointwise.detach().cpu().double()
        features = torch.zeros(2 * form.channels, dtype=torch.float64)
        return LayerMoments(form, [eye], [weight @ weight.T], [features])
    eye = torch.eye(c, dtype=torch.float64).expand(heads, c, c)

    def side(projection: Projection) -> SideStatistics:
        metric = _metric(projection, heads, c)
        nothing = metric.new_zeros(heads, c, metric.shape[-1])
        return SideStatistics(nothing, metric, metric.new_ones(heads, c), images=1)

    return LayerStatistics(
        form, side(form.queries), side(form.keys), eye.clone(), _metric(form.values, heads, c), images=1
    )


def _metric(projection: Projection, heads: int, c: int) -> Tensor:
    """Second moments (heads, D, D) of a head's own maps' neighbourhoods, for noise at the input."""
    weight = projection.pointwise.detach().cpu().double().view(heads, c, -1)
    area = projection.kernel_size**2
    gram = weight @ weight.transpose(-2, -1)
    metric = torch.stack([torch.kron(head, torch.eye(area, dtype=head.dtype)) for head in gram])
    if has_offset(projection):  # of a constant one, which has nothing in common with noise
        metric = torch.nn.functional.pad(metric, (0, 1, 0, 1))
        metric[:, -1, -1] = 1.0
    return metric


def supported(layers: Mapping[str, AttentionLayer], kind: str) -> bool:
    """Whether these layers have that form."""
    try:
        baseline_configs(layers, kind, 2)
    except UsageError:
        return False
    return True
