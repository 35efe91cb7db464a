"""What is left of the logits once keys (and queries) are low-rank: scales, static bias and guide.

All in closed form, from the teacher's logits S and the student's uncorrected ones, one c x c matrix
per head and calibration image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Fitted scales stay within this factor of one; beyond it the samples are too few to be believed.
SCALE_LIMIT = 4.0
#: Candidate ridge penalties, relative to the features' mean energy.
RIDGE_PENALTIES = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)


def fit_scales(
    target: Tensor, logits: Tensor, keys: bool, queries: bool, sweeps: int = 4
) -> tuple[Tensor, Tensor]:
    """Least-squares scales that bring the logits' variation to the target's.

    Low-rank maps have other norms than the maps they stand for, so their normalised products have the
    right direction but not the right size.

    Args:
        target, logits: (N, heads, c, d), of the same images.
        keys, queries: which of the two sides to scale.

    Returns:
        Column scales (heads, 1, d) and row scales (heads, c, 1); ones where not asked for.
    """
    centred = target - target.mean(0)
    varied = logits - logits.mean(0)
    column = torch.ones_like(target[0, :, :1, :])
    row = torch.ones_like(target[0, :, :, :1])
    for _ in range(sweeps if queries and keys else 1):
        if keys:
            column = _slope(centred, varied * row, dims=(0, 2))
        if queries:
            row = _slope(centred, varied * column, dims=(0, 3))
    return column, row


def _slope(target: Tensor, source: Tensor, dims: tuple[int, int]) -> Tensor:
    """Regression slope of target on source, drawn slightly to one, keeping all dims but the first."""
    covariance = (target * source).sum(dims, keepdim=True)
    variance = source.square().sum(dims, keepdim=True)
    pull = 1e-3 * variance.mean() + 1e-30
    return ((covariance + pull) / (variance + pull)).clamp(1 / SCALE_LIMIT, SCALE_LIMIT)[0]


def low_rank(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best left (..., c, rank) and right (..., d, rank) with left @ right^T ~ matrices (..., c, d)."""
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    root = s[..., :rank].sqrt().unsqueeze(-2)
    left, right = u[..., :rank] * root, vh[..., :rank, :].transpose(-2, -1) * root
    return left.float(), right.float()


@dataclass(frozen=True)
class GuideFit:
    """The guide's logit modes and the linear map from pooled statistics to their strengths.

    Attributes:
        left, right: (heads, c, width) and (heads, d, width); mode l is left_l right_l^T per head.
        weight, bias: (width, features) and (width,).
        explained: share of the residual's variance that the strengths explain on left-out images.
    """

    left: Tensor
    right: Tensor
    weight: Tensor
    bias: Tensor
    explained: float


def fit_guide(residual: Tensor, features: Tensor, width: int) -> GuideFit:
    """Modes by SVD of the stacked residuals, strengths by ridge regression.

    Args:
        residual: (N, heads, c, d), what the static correction leaves of the logits.
        features: (N, F), pooled statistics of the layer's inputs.
        width: number of modes.
    """
    residual, features = residual.double(), features.double()
    count = residual.shape[0]
    centred = residual - residual.mean(0)
    modes = torch.linalg.svd(centred.flatten(1), full_matrices=False)[2][:width]
    modes = torch.nn.functional.pad(modes, (0, 0, 0, width - len(modes)))
    left, right = low_rank(modes.view(width, *residual.shape[1:]), 1)
    left, right = left[..., 0].double(), right[..., 0].double()  # (width, heads, c) and (width, heads, d)
    basis = torch.einsum("whc,whd->whcd", left, right).flatten(1)
    gram = basis @ basis.T
    gram = gram + torch.eye(width, dtype=gram.dtype) * (1e-9 * gram.diagonal().mean() + 1e-12)
    strengths = torch.linalg.solve(gram, basis @ centred.flatten(1).T).T  # (N, width)

    mean, deviation = features.mean(0), features.std(0, correction=0).clamp_min(1e-8)
    standard = (features - mean) / deviation
    kernel = standard @ standard.T
    energy = kernel.diagonal().mean().clamp_min(1e-12)
    eye = torch.eye(count, dtype=kernel.dtype)
    best_error, best_penalty = 1.0, None
    total = strengths.square().sum().clamp_min(1e-30)
    for penalty in RIDGE_PENALTIES:
        # Leave-one-out errors in closed form; 1/N is the intercept's share of the leverage.
        hat = torch.linalg.solve(kernel + penalty * energy * eye, kernel)
        leverage = hat.diagonal() + 1 / count
        left_out = (strengths - hat @ strengths) / (1 - leverage).clamp_min(1e-6).unsqueeze(-1)
        error = float(left_out.square().sum() / total)
        if error < best_error:
            best_error, best_penalty = error, penalty
    weight = torch.zeros(width, features.shape[1], dtype=features.dtype)
    if best_penalty is not None:
        dual = torch.linalg.solve(kernel + best_penalty * energy * eye, strengths)
        weight = (dual.T @ standard) / deviation
    return GuideFit(
        left.permute(1, 2, 0).float(),
        right.permute(1, 2, 0).float(),
        weight.float(),
        -(weight @ mean).float(),
        1 - best_error,
    )
