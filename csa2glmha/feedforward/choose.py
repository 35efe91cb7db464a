"""Which hidden channels a feed-forward network needs least: optimal brain surgeon.

With the second moment C of the hidden channels, a contraction W and a metric M of the output, leaving out
channel i and refitting all others costs

    (w_i^T M w_i) / [C^-1]_ii          w_i: column i of W

and changes W to W - w_i [C^-1]_i / [C^-1]_ii; C^-1 is downdated likewise (Hassibi and Stork, "Second order
derivatives for network pruning", NIPS 1992). Always the cheapest channel goes next. So one sweep gives an
order, and with it the error at every width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Added to second moments, as a share of their mean diagonal, so that they can be inverted.
RIDGE = 1e-6
#: The matrices of a sweep are made smaller when so few of their channels are left.
_COMPACT = 0.8


@dataclass(frozen=True)
class Removal:
    """In which order hidden channels go.

    Attributes:
        order: (n,) channels, the first one that goes first.
        errors: (n + 1,) what is lost of the output after k of them have gone and the rest was refitted, as a
            share of the output's energy in the metric; errors[0] is 0 and errors[n] about 1.
    """

    order: Tensor
    errors: Tensor

    def kept(self, count: int) -> Tensor:
        """The channels that are left at a width, in ascending order."""
        return self.order[len(self.order) - count :].sort().values

    def error(self, count: int) -> float:
        """What is lost at that width."""
        return float(self.errors[len(self.order) - count])


def removal_order(moment: Tensor, weight: Tensor, metric: Tensor | None = None) -> Removal:
    """Sweep through all hidden channels of a feed-forward network.

    Args:
        moment: (n, n), second moment of the hidden channels, in any scale.
        weight: (out, n), the contraction.
        metric: (out, out), symmetric and not negative, of errors of the output; None: all channels alike.

    Returns:
        The order and the errors, in float64 on the CPU.

    >>> moment = torch.diag(torch.tensor([4.0, 1.0, 9.0]))
    >>> removal_order(moment, torch.ones(1, 3)).order.tolist()
    [1, 0, 2]
    """
    moment = ridged(moment.detach().cpu().double())
    weight = weight.detach().cpu().double().clone()
    n = len(moment)

    def weighed() -> Tensor:
        return weight if weigh is None else weigh @ weight

    weigh = None if metric is None else metric.detach().cpu().double()
    whole = float(((weighed() @ moment) * weight).sum())
    inverse = torch.linalg.inv(moment)
    channels, alive = torch.arange(n), torch.ones(n, dtype=torch.bool)
    order, lost = [], [0.0]
    for gone in range(n):
        if n - gone < _COMPACT * len(channels):  # rows and columns of those that have gone are zero
            inverse, weight, channels = inverse[alive][:, alive], weight[:, alive], channels[alive]
            alive = torch.ones(len(channels), dtype=torch.bool)
        energy = (weighed() * weight).sum(0)
        costs = energy / inverse.diagonal().clamp_min(1e-300)
        index = int(costs.masked_fill(~alive, torch.inf).argmin())
        order.append(int(channels[index]))
        lost.append(lost[-1] + max(float(costs[index]), 0.0))
        alive[index] = False
        row = inverse[index] / inverse[index, index].clamp_min(1e-300)
        weight -= torch.outer(weight[:, index].clone(), row)
        inverse -= torch.outer(inverse[:, index].clone(), row)
    return Removal(torch.tensor(order), torch.tensor(lost, dtype=torch.float64) / max(whole, 1e-300))


def refitted(moment: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    """The contraction of the channels that are kept which comes closest to the whole one.

    Args:
        moment: (n, n), second moment of the hidden channels.
        weight: (out, n).
        kept: (k,) channels.

    Returns:
        (out, k), float64 on the CPU.
    """
    moment, weight, kept = ridged(moment.detach().cpu().double()), weight.detach().cpu().double(), kept.cpu()
    solved: Tensor = torch.linalg.solve(moment[kept][:, kept], (weight @ moment[:, kept]).T)
    return solved.T


def ridged(moment: Tensor) -> Tensor:
    """A second moment that can be inverted, whatever the channels are.

    Products in float32 leave one of channels that depend on each other slightly negative: that is repaired.
    """
    values, vectors = torch.linalg.eigh(moment)
    raised = values.clamp_min(0.0) + moment.diagonal().mean() * RIDGE + 1e-300
    repaired: Tensor = vectors @ (raised.unsqueeze(-1) * vectors.T)
    return repaired
