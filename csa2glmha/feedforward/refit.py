"""Refitting what is linear in its weights, anchored to the teacher: in closed form, layer by layer.

A layer adds W h + rest to the stream x of its network, h its features. In a student x is not the teacher's
any more, nor is h. W is refitted so that the sum comes close to the teacher's sum t all the same:

    W' = W + R (C + l I)^-1     C = sum h h^T, R = sum (t - x - rest - W h) h^T, all but t of the student

So a layer also corrects what those before it did. How large l is to be, the images say: each l is tried with
a part of them left out, on which it is judged, and the best is taken with all of them. That needs sums alone,
and some small systems of equations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

#: l, as shares of the mean diagonal of C: how firmly the weights are held where the data say little.
ANCHORS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
#: That of a single image, which leaves none to judge on.
ANCHOR = 1e-3
#: Parts of the images, each of which is left out once.
PARTS = 4


@dataclass
class _Sums:
    """Of some images: C (d, d), R (out, d), and the sum of squares of what is missing."""

    features: Tensor
    products: Tensor
    missing: float

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.features + other.features, self.products + other.products, self.missing + other.missing
        )

    def __sub__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.features - other.features, self.products - other.products, self.missing - other.missing
        )

    def change(self, anchor: float) -> Tensor:
        """R (C + l I)^-1."""
        hold = self.features.diagonal().mean() * anchor + 1e-300
        system = self.features + hold * torch.eye(len(self.features), dtype=torch.float64)
        solved: Tensor = torch.linalg.solve(system, self.products.T)
        return solved.T

    def missing_after(self, change: Tensor) -> float:
        """The sum of squares that a change of the weights leaves."""
        gained = 2 * float((self.products * change).sum())
        return max(self.missing - gained + float(((change @ self.features) * change).sum()), 0.0)


@dataclass
class AnchoredMoments:
    """What the refit of one layer needs, summed up over images.

    Products of an image are made in the network's own precision, which is enough where they are made of what
    is missing, not of what is there; sums of them are double.
    """

    _parts: list[_Sums] = field(default_factory=list)
    _images: int = 0

    def add(self, features: Tensor, missing: Tensor) -> None:
        """Add images.

        Args:
            features: h, (B, d, pixels).
            missing: t - x - rest - W h, (B, out, pixels).
        """
        for h, lacks in zip(features.detach(), missing.detach(), strict=True):
            energy = float(lacks.square().sum(dtype=torch.float64))
            own = _Sums((h @ h.T).cpu().double(), (lacks @ h.T).cpu().double(), energy)
            if self._images < PARTS:
                self._parts.append(own)
            else:
                self._parts[self._images % PARTS] += own
            self._images += 1

    def change(self) -> Tensor:
        """W' - W, (out, d): the smaller, the less the data say; zero if no change helps on other images."""
        whole = self._whole
        if len(self._parts) == 1:
            return whole.change(ANCHOR)
        left = dict.fromkeys(ANCHORS, 0.0)
        for part in self._parts:
            rest = whole - part
            for anchor in ANCHORS:
                left[anchor] += part.missing_after(rest.change(anchor))
        best = min(ANCHORS, key=left.__getitem__)
        return whole.change(best) if left[best] < whole.missing else torch.zeros_like(whole.products)

    def errors(self, weight: Tensor, change: Tensor) -> tuple[float, float]:
        """What is missing with W and with the weight after a change, as shares of what W h is to be."""
        whole = self._whole
        goal = max(whole.missing_after(-weight.detach().cpu().double()), 1e-300)
        return whole.missing / goal, whole.missing_after(change) / goal

    @property
    def _whole(self) -> _Sums:
        first, *others = self._parts
        return sum(others, start=first)
