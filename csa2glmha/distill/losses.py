"""What a difference costs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

#: From a difference of any shape to its mean cost, a scalar.
Loss = Callable[[Tensor], Tensor]

#: The Charbonnier loss is quadratic below this difference, and nearly linear above it. Students start some
#: hundredths away from their teachers.
CHARBONNIER_SCALE = 1e-3


def l1(difference: Tensor) -> Tensor:
    """The mean absolute difference."""
    return difference.abs().mean()


def l2(difference: Tensor) -> Tensor:
    """The mean squared difference."""
    return difference.square().mean()


def charbonnier(difference: Tensor) -> Tensor:
    """The mean of sqrt(d^2 + s^2), s = :data:`CHARBONNIER_SCALE`.

    Source: Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed
    imaging", ICIP 1994.
    """
    return (difference.square() + CHARBONNIER_SCALE**2).sqrt().mean()


LOSSES: dict[str, Loss] = {"l1": l1, "charbonnier": charbonnier, "l2": l2}
