"""Refitting what is linear in its weights, anchored to the teacher: in closed form, layer by layer.

A layer adds W h + rest to the stream x of its network, h its features. In a student x is not the teacher's
any more, nor is h. W is refitted so that the sum comes close to the teacher's sum t all the same:

    W' = (Y + l W)(C + l I)^-1      C = sum h h^T, Y = sum (t - x - rest) h^T, all but t of the student

So a layer also corrects what those before it did.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: l, as a share of the mean diagonal of C: how firmly the weights are held where the data say little.
ANCHOR = 1e-5


@dataclass
class AnchoredMoments:
    """What the refit of one layer needs, summed up over images.

    Attributes:
        features: C, (d, d).
        products: Y, (out, d).
        target: sum of squares of what is to be reached.
    """

    features: Tensor | None = None
    products: Tensor | None = None
    target: float = 0.0

    def add(self, features: Tensor, target: Tensor) -> None:
        """Add images.

        Args:
            features: h, (B, d, pixels).
            target: t - x - rest, (B, out, pixels).
        """
        h = features.detach().transpose(0, 1).flatten(1).cpu().double()
        y = target.detach().transpose(0, 1).flatten(1).cpu().double()
        own, products = h @ h.T, y @ h.T
        self.features = own if self.features is None else self.features + own
        self.products = products if self.products is None else self.products + products
        self.target += float(y.square().sum())

    def solve(self, weight: Tensor) -> Tensor:
        """W', like ``weight`` (out, d); the nearer to it, the less the data say."""
        assert self.features is not None and self.products is not None
        hold = self.features.diagonal().mean() * ANCHOR + 1e-300
        system = self.features + hold * torch.eye(len(self.features), dtype=torch.float64)
        goal = self.products + hold * weight.detach().cpu().double()
        solved: Tensor = torch.linalg.solve(system, goal.T)
        return solved.T.to(weight)

    def error(self, weight: Tensor) -> float:
        """What a weight leaves of the target, as a share of its energy."""
        assert self.features is not None and self.products is not None
        w = weight.detach().cpu().double()
        left = self.target - 2 * float((self.products * w).sum()) + float(((w @ self.features) * w).sum())
        return max(left, 0.0) / max(self.target, 1e-300)
