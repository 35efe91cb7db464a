"""What a layer's logits lack, from samples of them: scales, static bias and guide."""

from __future__ import annotations

from torch import Tensor

from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.guided import GuidedAttention
from csa2glmha.initialize.compact import compact_target
from csa2glmha.initialize.fit import LayerFit
from csa2glmha.initialize.logits import fit_guide, fit_scales, low_rank


def set_corrections(
    core: GuidedAttention, target: Tensor, logits: Tensor, features: Tensor, fit: LayerFit
) -> None:
    """Fit scales, static bias and guide to what a layer's logits lack, and set them.

    Args:
        core: the layer, with everything else in place.
        target, logits: the teacher's and the layer's own before correction, (N, heads, c, c or rank_k).
        features: (N, 2C), pooled statistics of the inputs, C of all that a layer has.
        fit: takes the errors; holds the clusters of a compact layer.
    """
    config = core.config
    if config.compact:
        assert fit.clusters is not None
        target = compact_target(target, fit.clusters, config.rank_k)
    keys = core.temperature is not None and core.temperature.shape[-1] > 1
    column, row = fit_scales(target, logits, keys, core.query_scale is not None)
    logits = logits * column * row
    if core.temperature is not None and keys:
        core.temperature.mul_(column.to(core.temperature))
    if core.query_scale is not None:
        core.query_scale.copy_(row)
    residual = _that_counts(target - logits, config)
    static = config.bias_rank
    assert core.mode_left is not None and core.mode_right is not None and core.guide is not None
    left, right = low_rank(residual.mean(0), static)
    core.mode_left[..., :static], core.mode_right[..., :static] = left, right
    varied = _that_counts(target, config)
    spread = (varied - varied.mean(0)).square().sum().clamp_min(1e-30)
    fit.logit_error = float((residual - left @ right.transpose(-2, -1)).square().sum() / spread)
    guide = fit_guide(residual, features, config.guide_width)
    core.mode_left[..., static:], core.mode_right[..., static:] = guide.left, guide.right
    core.guide.hidden.weight.copy_(guide.weight)
    core.guide.hidden.bias.copy_(guide.bias)
    fit.guide_explained = guide.explained


def _that_counts(logits: Tensor, config: GLMHAConfig) -> Tensor:
    """A constant along a row of logits does nothing to its softmax: do not spend rank on it."""
    return logits if config.activation == "relu" else logits - logits.mean(-1, keepdim=True)
