"""The mathematics of the analysis, on tensors alone.

Shares are of energies, that is of sums of squares; errors are roots of shares, as a norm of a difference
over the norm of what it differs from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Rounding that a share may be short of what was asked for.
TOLERANCE = 1e-12


def remainder(powers: Tensor) -> Tensor:
    """The share of the sum that is left behind the first k: (..., n) in falling order, to (..., n).

    Entry k - 1 is for the first k, so the last one is 0. Where all powers are zero, nothing is ever left.
    """
    # Summed from the smallest, so that small remainders keep their digits.
    left = powers.flip(-1).cumsum(-1).flip(-1)
    behind = torch.cat((left[..., 1:], torch.zeros_like(left[..., :1])), -1)
    return behind / left[..., :1].clamp_min(torch.finfo(powers.dtype).tiny)


def cumulative_energy(maps: Tensor) -> Tensor:
    """Average cumulative distribution of the squared singular values of attention maps.

    They are the eigenvalues of A^T A. Every map counts the same, whatever its energy, as in the first figure
    of Ilyas et al., "GLMHA" (arXiv 2410.00380).

    Args:
        maps: A, (N, ..., c, c).

    Returns:
        (..., c), rising to 1: entry k - 1 is the share of the k largest, averaged over the N maps.
    """
    powers = torch.linalg.svdvals(maps.double()).square()
    return (1 - remainder(powers)).mean(0)


def energy_shares(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split the energy of attention maps into what is uniform, what is static, and what varies.

    A_s = U + (mean A - U) + (A_s - mean A), with 1/c everywhere in U, is a sum of parts that are orthogonal:
    the last over the images, since it sums to zero, and U because rows of attention sum to one.

    Args:
        maps: A, (N, ..., c, c), of N images.

    Returns:
        The shares of the three in the energy of all maps, (...) each, summing to 1. The first two together
        are that of the mean map, the same for every image; the third is the variance between images.
    """
    maps = maps.double()
    total = maps.square().sum((-2, -1)).mean(0).clamp_min(torch.finfo(maps.dtype).tiny)
    mean = maps.mean(0)
    uniform = (mean.sum((-2, -1)) / maps.shape[-1]).square() / total
    varying = (maps - mean).square().sum((-2, -1)).mean(0) / total
    return uniform, (1 - uniform - varying).clamp_min(0), varying


def relative_entropy(maps: Tensor) -> Tensor:
    """Mean entropy of the rows of attention maps (N, ..., c, c), relative to uniform rows: (...), up to 1."""
    c = maps.shape[-1]
    if c == 1:
        return maps.new_ones(maps.shape[1:-2], dtype=torch.float64)
    rows = torch.special.entr(maps.double()).sum(-1)
    share: Tensor = rows.mean((0, -1)) / torch.tensor(float(c)).log()
    return share


def truncation_errors(bank: Tensor, left_metric: Tensor, right_metric: Tensor) -> Tensor:
    """Relative error of the best factorisation T ~ G T_r of any kind, at every rank.

    That is the root of the share of the squared singular values of M^(1/2) T Omega^(1/2) that truncation
    leaves out (Eckart and Young): the error itself where T_r is free, a lower bound where it must be
    separable. No root is taken of Omega, which can be large: the squares are the eigenvalues of
    L^T (T Omega T^T) L, c x c, with M = L L^T.

    Args:
        bank: T, (..., c, D).
        left_metric: M, (..., c, c), positive definite.
        right_metric: Omega, (..., D, D), symmetric.

    Returns:
        (..., c), entry r - 1 for rank r; falls to 0.
    """
    factor = torch.linalg.cholesky(left_metric)
    energy = bank @ right_metric @ bank.transpose(-2, -1)
    powers = torch.linalg.eigvalsh(factor.transpose(-2, -1) @ energy @ factor)
    return remainder(powers.clamp_min(0).flip(-1)).sqrt()


def rank_for_energy(errors: Sequence[float], share: float) -> int:
    """The smallest rank that keeps a share of the energy.

    Args:
        errors: predicted relative error at rank 1, 2, ...; full rank, the last, is exact.
        share: 0 to 1; error^2 is to be at most 1 - share.

    Raises:
        ValueError: no errors, or not a share.
    """
    if not errors or not 0 <= share <= 1:
        raise ValueError(f"{len(errors)} errors and a share of {share}: give one or more, and 0 to 1")
    allowed = 1 - share + TOLERANCE
    return next((rank for rank, error in enumerate(errors, 1) if error**2 <= allowed), len(errors))
