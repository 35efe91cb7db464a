"""Low-rank factorisation of a projection's filter bank in the metric of its data.

A projection of one head is a filter bank T (c x D): row j is the pointwise filter of channel j
times its k x k depthwise filter. Its input is taken to be the maps *after* the teacher's own
pointwise part, so row j is simply the depthwise filter w_j placed on channel j, and D = c k^2, plus
one for a constant map when the projection has biases. (A generated channel is then a mixture of the
head's own maps; nothing outside their span can lower the error of an unconstrained factorisation,
and the problem shrinks from (k^2 C)^2 to (k^2 c)^2.)

Wanted is T ~ G T_r with r rows that are separable again, row l = beta_l (x) delta_l, minimising

    || M^(1/2) (T - G T_r) Omega^(1/2) ||_F^2

For k = 1 that is the truncated SVD of the whitened bank, in closed form. For k > 1 it is a rank-r
CP decomposition of a c x c x k^2 tensor in a metric that does not factor over the modes: start from
the best of several closed or cheap starts, eliminate G in closed form, and refine the separable
factors with L-BFGS.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorly as tl
import torch
from tensorly.decomposition import parafac
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # documented, but not in its __all__

#: Of the refinement, at most.
ITERATIONS = 150
#: Refinement ends where so many iterations lower the squared error by less than this share of it.
STRIDE, LEAST_GAIN = 25, 0.005
#: Of the CP decomposition that the refinement may start from, at most. Means over 45 projections of a
#: Restormer: refined errors are 0.999 times those from a start of 60, and 1.016 times where the refinement
#: has 25 iterations, as in a search.
CP_ITERATIONS = 15
#: Relative ridge that keeps Gram matrices invertible.
RIDGE = 1e-9


@dataclass(frozen=True)
class SeparableFactors:
    """T ~ expand * (mix (x) kernel), per head.

    Attributes:
        expand: G, (heads, c, r).
        mix: beta, (heads, r, c), mixes the head's maps after the teacher's pointwise part.
        kernel: delta, (heads, r, k^2).
        offset: (heads, r), the constant of each generated channel; zero where there are no biases.
        error: (heads,), relative error left: the minimised sum over the same with G T_r = 0, in [0, 1].
    """

    expand: Tensor
    mix: Tensor
    kernel: Tensor
    offset: Tensor
    error: Tensor

    @property
    def bank(self) -> Tensor:
        """T_r, (heads, r, c k^2)."""
        return khatri_rao_rows(self.mix, self.kernel)


def khatri_rao_rows(mix: Tensor, kernel: Tensor) -> Tensor:
    """Row-wise Kronecker product: (..., r, c) and (..., r, k^2) to (..., r, c k^2)."""
    return (mix.unsqueeze(-1) * kernel.unsqueeze(-2)).flatten(-2)


def teacher_bank(kernels: Tensor, offsets: Tensor | None) -> Tensor:
    """T of a teacher's projection: kernels (heads, c, k^2), offsets (heads, c) or None, to (heads, c, D)."""
    heads, c, _ = kernels.shape
    eye = torch.eye(c, dtype=kernels.dtype).expand(heads, c, c)
    bank = khatri_rao_rows(eye, kernels)
    return bank if offsets is None else torch.cat((bank, offsets.unsqueeze(-1)), -1)


def factorize(
    kernels: Tensor,
    offsets: Tensor | None,
    left_metric: Tensor,
    right_metric: Tensor,
    rank: int,
    iterations: int = ITERATIONS,
) -> SeparableFactors:
    """Factorise every head's filter bank at the same rank.

    Args:
        kernels: (heads, c, k^2), the teacher's depthwise filters; ones for k = 1.
        offsets: (heads, c), the teacher's biases after the depthwise part, or None.
        left_metric: M, (heads, c, c), symmetric positive semi-definite.
        right_metric: Omega, (heads, D, D), likewise.
        rank: r, 1 <= r <= c.
        iterations: of L-BFGS, at most.
    """
    kernels = kernels.double()
    has_offset = offsets is not None
    bank = teacher_bank(kernels, offsets.double() if offsets is not None else None)
    left, right = conditioned(left_metric), conditioned(right_metric)
    problem = _Problem(bank, left, right, kernels.shape[1], kernels.shape[2], has_offset)
    if kernels.shape[2] == 1:
        return problem.finish(*problem.truncated_svd(rank))
    starts = [problem.truncated_svd(rank), problem.channel_subset(rank), problem.cp(rank)]
    errors = torch.stack([problem.error(*start) for start in starts]).nan_to_num(float("inf"))
    best = errors.argmin(0)
    pick = torch.arange(len(best))
    mix, kernel, offset = (torch.stack(parts)[best, pick] for parts in zip(*starts, strict=True))
    return problem.finish(*problem.refine(mix, kernel, offset, iterations))


def conditioned(metric: Tensor) -> Tensor:
    """Metrics (heads, n, n) in double precision, positive definite whatever was measured."""
    return repaired(_nonzero(metric.double()))


def _nonzero(metric: Tensor) -> Tensor:
    """The metrics, with the identity in place of those that are zero (below any signal in float32).

    Zero they are where a head is dead: its weights, or those that read it, are all zero.
    """
    size = metric.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return torch.where(size > 1e-24, metric, torch.eye(metric.shape[-1], dtype=metric.dtype))


def repaired(metric: Tensor) -> Tensor:
    """The nearest symmetric positive definite matrices, (..., n, n): small eigenvalues are lifted."""
    metric = (metric + metric.transpose(-2, -1)) / 2
    trace = metric.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-300)
    eye = torch.eye(metric.shape[-1], dtype=metric.dtype)
    ridge = trace[..., None, None] * eye * RIDGE
    if not bool((torch.linalg.cholesky_ex(metric + ridge)[1] > 0).any()):
        return metric + ridge
    values, vectors = torch.linalg.eigh(metric)
    values = values.clamp_min(trace[..., None] * RIDGE)
    result: Tensor = vectors @ (values.unsqueeze(-1) * vectors.transpose(-2, -1))
    return result


def symmetric_root(metric: Tensor, inverse: bool = False) -> Tensor:
    """M^(1/2), or its inverse, of symmetric positive definite (..., n, n)."""
    values, vectors = torch.linalg.eigh(metric)
    values = values.clamp_min(values.amax(-1, keepdim=True) * RIDGE).sqrt()
    scaled = values.reciprocal() if inverse else values
    result: Tensor = vectors @ (scaled.unsqueeze(-1) * vectors.transpose(-2, -1))
    return result


class _Problem:
    """One factorisation, all heads at once; candidates are triples (mix, kernel, offset)."""

    def __init__(
        self, bank: Tensor, left: Tensor, right: Tensor, channels: int, area: int, has_offset: bool
    ) -> None:
        self.bank, self.left, self.right = bank, left, right
        self.channels, self.area, self.has_offset = channels, area, has_offset
        self.bank_right = bank @ right  # T Omega
        self.energy = self.bank_right @ bank.transpose(-2, -1)  # T Omega T^T
        self.scale = (left * self.energy).sum((-2, -1)).clamp_min(1e-300)

    def rows(self, mix: Tensor, kernel: Tensor, offset: Tensor) -> Tensor:
        rows = khatri_rao_rows(mix, kernel)
        return torch.cat((rows, offset.unsqueeze(-1)), -1) if self.has_offset else rows

    def moments(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """T Omega T_r^T and T_r Omega T_r^T, the latter made safely invertible."""
        cross = self.bank_right @ rows.transpose(-2, -1)
        # Omega is symmetric, so the derivative needs no product with it beyond this one, the largest here.
        half = (rows.detach() @ self.right) @ rows.transpose(-2, -1)
        gram = half + half.transpose(-2, -1) - half.detach()
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        ridge = torch.diag_embed(diagonal * RIDGE + diagonal.mean(-1, keepdim=True) * RIDGE + 1e-300)
        return cross, gram + ridge

    def error(self, mix: Tensor, kernel: Tensor, offset: Tensor) -> Tensor:
        """Relative squared error with the best G, (heads,)."""
        cross, gram = self.moments(self.rows(mix, kernel, offset))
        expand = torch.linalg.solve(gram, cross.transpose(-2, -1)).transpose(-2, -1)
        error: Tensor = 1 - (self.left * (expand @ cross.transpose(-2, -1))).sum((-2, -1)) / self.scale
        return error

    def finish(self, mix: Tensor, kernel: Tensor, offset: Tensor) -> SeparableFactors:
        """Fix the scale of every component (unit mean square in the data, unit kernel) and solve for G."""
        norm = kernel.norm(dim=-1, keepdim=True).clamp_min(1e-150)
        kernel, mix = kernel / norm, mix * norm
        rows = self.rows(mix, kernel, offset)
        power = ((rows @ self.right) * rows).sum(-1).clamp_min(1e-300).sqrt()
        mix, offset = mix / power.unsqueeze(-1), offset / power
        cross, gram = self.moments(self.rows(mix, kernel, offset))
        expand = torch.linalg.solve(gram, cross.transpose(-2, -1)).transpose(-2, -1)
        error = self.error(mix, kernel, offset).clamp_min(0)
        return SeparableFactors(*(t.float() for t in (expand, mix, kernel, offset, error)))

    def truncated_svd(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """The optimum without the separability constraint, each component split to rank one."""
        root = symmetric_root(self.left)
        vectors = torch.linalg.eigh(root @ self.energy @ root)[1][..., -rank:].flip(-1)
        rows = vectors.transpose(-2, -1) @ root @ self.bank  # r x D
        offset = rows[..., -1] if self.has_offset else rows.new_zeros(rows.shape[:-1])
        rows = rows[..., : self.channels * self.area]
        u, s, vh = torch.linalg.svd(rows.unflatten(-1, (self.channels, self.area)), full_matrices=False)
        return u[..., 0] * s[..., :1], vh[..., 0, :], offset

    def channel_subset(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """The head's own channels that explain the others best: a pivoted Cholesky factorisation."""
        root = symmetric_root(self.left)
        mix = self.bank.new_zeros(len(self.bank), rank, self.channels)
        residual = self.energy.clone()
        weighted = root @ residual
        chosen: list[Tensor] = []
        for component in range(rank):
            power = residual.diagonal(dim1=-2, dim2=-1)
            gain = weighted.square().sum(-2) / power.clamp_min(1e-300)
            for earlier in chosen:
                gain = gain.scatter(-1, earlier.unsqueeze(-1), -1.0)
            index = gain.argmax(-1)
            chosen.append(index)
            heads = torch.arange(len(index))
            mix[heads, component, index] = 1.0
            column = residual[heads, :, index]
            pivot = power[heads, index].clamp_min(1e-300)
            residual = residual - column.unsqueeze(-1) * column.unsqueeze(-2) / pivot[:, None, None]
            weighted = root @ residual
        chosen_index = torch.stack(chosen, -1)
        full = self.bank[..., : self.channels * self.area].unflatten(-1, (self.channels, self.area))
        own = full.diagonal(dim1=-3, dim2=-2).transpose(-2, -1)  # (heads, c, k^2), the kernels w_j
        kernel = own.gather(1, chosen_index.unsqueeze(-1).expand(-1, -1, self.area))
        offset = self.bank[..., -1] if self.has_offset else self.bank.new_zeros(self.bank.shape[:-1])
        return mix, kernel.clone(), offset.gather(1, chosen_index)

    def cp(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """CP decomposition (tensorly) in the nearest metric that does factor over the modes."""
        spatial = self.channels * self.area
        full = self.right[..., :spatial, :spatial].unflatten(-1, (self.channels, self.area))
        full = full.unflatten(-3, (self.channels, self.area))  # (h, c, k2, c, k2)
        over_channels = repaired(full.diagonal(dim1=-3, dim2=-1).mean(-1))
        over_pixels = repaired(full.diagonal(dim1=-4, dim2=-2).mean(-1))
        left, channel, pixel = (symmetric_root(m) for m in (self.left, over_channels, over_pixels))
        channel_inverse = symmetric_root(over_channels, inverse=True)
        pixel_inverse = symmetric_root(over_pixels, inverse=True)
        tensor = self.bank[..., :spatial].unflatten(-1, (self.channels, self.area))
        tensor = torch.einsum("hij,hjab,hac,hbd->hicd", left, tensor, channel, pixel)
        mixes, kernels = [], []
        with tl.backend_context("pytorch", local_threadsafe=True):
            for head in range(len(tensor)):
                init = "svd" if rank <= min(tensor.shape[1:3]) and rank <= self.area else "random"
                try:
                    _, factors = parafac(
                        tensor[head],
                        rank,
                        n_iter_max=CP_ITERATIONS,
                        init=init,
                        tol=1e-6,
                        random_state=0,
                        normalize_factors=False,
                    )
                except LinAlgError:
                    # A tensor of lower rank than asked for, zero for one. The other starts will do.
                    factors = [tensor.new_zeros(size, rank) for size in tensor.shape[1:]]
                mixes.append((channel_inverse[head] @ factors[1].double()).T)
                kernels.append((pixel_inverse[head] @ factors[2].double()).T)
        mix = torch.stack(mixes)
        return mix, torch.stack(kernels), mix.new_zeros(mix.shape[:-1])

    def refine(
        self, mix: Tensor, kernel: Tensor, offset: Tensor, iterations: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """L-BFGS on the separable factors with G eliminated; never returns worse than it was given."""
        start = [t.clone() for t in (mix, kernel, offset)]
        # Components of equal size condition the problem; scale is free, G absorbs it.
        rows = self.rows(*start)
        power = ((rows @ self.right) * rows).sum(-1).clamp_min(1e-300).sqrt()
        size = start[1].norm(dim=-1).clamp_min(1e-150)
        start = [
            start[0] * (size / power).unsqueeze(-1),
            start[1] / size.unsqueeze(-1),
            start[2] / power,
        ]
        variables = [t.clone().requires_grad_(True) for t in start[: 3 if self.has_offset else 2]]
        fixed = [] if self.has_offset else [start[2]]
        optimizer = torch.optim.LBFGS(
            variables,
            max_iter=STRIDE,
            history_size=20,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.error(*variables, *fixed).sum()
            loss.backward()
            return loss

        before = float(self.error(*start).sum())
        for done in range(0, iterations, STRIDE):
            optimizer.param_groups[0]["max_iter"] = min(STRIDE, iterations - done)
            optimizer.step(closure)
            after = float(self.error(*(t.detach() for t in variables), *fixed).sum())
            if not before - after > LEAST_GAIN * after:  # ends it for NaN, too
                break
            before = after
        refined = [t.detach() for t in variables] + fixed
        better = self.error(*refined) < self.error(*start)
        return tuple(  # type: ignore[return-value]
            torch.where(better.view(-1, *[1] * (old.dim() - 1)), new, old)
            for new, old in zip(refined, start, strict=True)
        )
