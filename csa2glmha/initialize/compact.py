"""Starting point of the compact form, in which the softmax runs over r keys per head.

The c columns of a head are clustered by what they respond to; a generated key stands for the mean key
of its cluster, a generated value for the mean value, weighted by how much each drives the output.
The exact logit of a cluster is the log of its summed exponentials, so the static bias that is fitted
to it later contains the cluster's log-size.
"""

from __future__ import annotations

import warnings

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from csa2glmha.initialize.factorize import (
    RIDGE,
    SeparableFactors,
    khatri_rao_rows,
    repaired,
    teacher_bank,
)
from csa2glmha.initialize.statistics import LayerStatistics

ALS_SWEEPS = 30


def compact_factors(
    statistics: LayerStatistics,
    keys: tuple[Tensor, Tensor | None],
    values: tuple[Tensor, Tensor | None],
    rank: int,
) -> tuple[SeparableFactors, SeparableFactors, Tensor]:
    """Generators for r keys and r values per head, and the cluster of every column.

    Args:
        statistics: with moments of keys and values.
        keys, values: the teacher's depthwise kernels (heads, c, k^2) and offsets (heads, c) or None.
        rank: r.

    Returns:
        Factors of keys and of values (their ``expand`` is the membership), clusters (heads, c).
    """
    side = statistics.keys
    assert side is not None and statistics.attention is not None and statistics.values is not None
    bank = teacher_bank(keys[0].double(), None if keys[1] is None else keys[1].double())
    bank = bank / side.norms().clamp_min(1e-12).unsqueeze(-1)
    metric = repaired(side.metric(0.0))
    similarity = bank @ metric @ bank.transpose(-2, -1)
    clusters = torch.stack([_cluster(head, rank) for head in similarity])
    member = torch.nn.functional.one_hot(clusters, rank).double()  # (heads, c, r)
    key_rows = (member / member.sum(1, keepdim=True).clamp_min(1.0)).transpose(1, 2) @ bank
    drive = member * statistics.attention.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt().unsqueeze(-1)
    drive = drive / drive.sum(1, keepdim=True).clamp_min(1e-12)
    value_bank = teacher_bank(values[0].double(), None if values[1] is None else values[1].double())
    value_rows = drive.transpose(1, 2) @ value_bank
    c, area = keys[0].shape[1:]
    return (
        _separable(key_rows, metric, c, area, member),
        _separable(value_rows, repaired(statistics.values), c, area, member),
        clusters,
    )


def compact_target(logits: Tensor, clusters: Tensor, rank: int) -> Tensor:
    """The logits (N, heads, c, r) whose softmax gives every cluster the attention of its columns.

    Args:
        logits: the teacher's, (N, heads, c, c).
        clusters: (heads, c), values below ``rank``.
    """
    outside = clusters.unsqueeze(-1) != torch.arange(rank)  # (heads, c, r)
    masked = logits.unsqueeze(-1).masked_fill(outside.unsqueeze(1), float("-inf"))
    return masked.logsumexp(-2)


def _cluster(similarity: Tensor, rank: int) -> Tensor:
    """k-means of the points whose Gram matrix is ``similarity`` (c, c); no cluster is empty."""
    values, vectors = torch.linalg.eigh((similarity + similarity.T) / 2)
    points = vectors * values.clamp_min(0).sqrt()
    best: Tensor | None = None
    best_spread = float("inf")
    for seed in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about empty clusters and equal points, both dealt with below
            centres, labels = kmeans2(points.numpy(), rank, minit="++", rng=seed, missing="warn")
        assigned = torch.from_numpy(labels).long()
        spread = float((points - torch.from_numpy(centres)[assigned]).square().sum())
        if len(assigned.unique()) == rank and spread < best_spread:
            best, best_spread = assigned, spread
    if best is None:
        # Duplicate points can leave clusters empty; an even split is as good as any there.
        best = torch.arange(len(points)) % rank
    return best


def _separable(rows: Tensor, metric: Tensor, c: int, area: int, member: Tensor) -> SeparableFactors:
    """The best mix (x) kernel for every row (heads, r, D) by itself, by alternating least squares."""
    spatial = c * area
    matrix = rows[..., :spatial].unflatten(-1, (c, area))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    mix, kernel = u[..., 0] * s[..., :1], vh[..., 0, :]
    offset = rows[..., spatial] if rows.shape[-1] > spatial else None
    full = metric[:, :spatial, :spatial].unflatten(-1, (c, area)).unflatten(1, (c, area))
    # The offset stays the row's own; what it contributes to the fit of the rest is subtracted nowhere,
    # since the residual's constant part is zero.
    target = (metric[:, :spatial, :spatial] @ rows[..., :spatial].transpose(-2, -1)).transpose(-2, -1)
    target = target.unflatten(-1, (c, area))
    for _ in range(ALS_SWEEPS if area > 1 else 0):
        gram = torch.einsum("hapbq,hrp,hrq->hrab", full, kernel, kernel)
        mix = _solve(gram, torch.einsum("hrap,hrp->hra", target, kernel))
        gram = torch.einsum("hapbq,hra,hrb->hrpq", full, mix, mix)
        kernel = _solve(gram, torch.einsum("hrap,hra->hrp", target, mix))
        size = kernel.norm(dim=-1, keepdim=True).clamp_min(1e-150)
        kernel, mix = kernel / size, mix * size
    difference = rows[..., :spatial] - khatri_rao_rows(mix, kernel)
    lost = ((difference @ metric[:, :spatial, :spatial]) * difference).sum((-2, -1))
    whole = ((rows @ metric) * rows).sum((-2, -1)).clamp_min(1e-300)
    offset = offset if offset is not None else rows.new_zeros(rows.shape[:-1])
    parts = (member, mix, kernel, offset, (lost / whole).clamp_min(0))
    return SeparableFactors(*(part.float() for part in parts))


def _solve(gram: Tensor, target: Tensor) -> Tensor:
    ridge = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * RIDGE + 1e-300
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    solution: Tensor = torch.linalg.solve(gram + ridge * eye, target.unsqueeze(-1))
    return solution.squeeze(-1)
