"""Other ways to choose the hidden channels that go: what they are compared with.

Whole channels are pruned, with everything that belongs to them: a gate and its value go together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csa2glmha.feedforward.form import FeedForward


def magnitudes(layer: FeedForward) -> Tensor:
    """How large the weights of every hidden channel are: (n,), float64 on the CPU.

    The product of the L2 norms of its filters in all convolutions and linear layers: those of gate and value,
    and its column of the contraction. A channel's output scales with each of them.
    """
    hidden = layer.hidden
    found = torch.ones(hidden, dtype=torch.float64)
    for cut in layer.parts.cuts:
        owner = layer.module.get_submodule(cut.module)
        if not (isinstance(owner, nn.Conv2d | nn.Linear) and cut.tensor.endswith("weight")):
            continue
        weight = owner.weight.detach().cpu().double()
        norms: Tensor = weight.transpose(0, cut.axis).flatten(1).norm(dim=1)
        found *= norms.view(hidden, -1).prod(1) if cut.together else norms.view(-1, hidden).prod(0)
    return found


def activity(layer: FeedForward, moment: Tensor) -> Tensor:
    """What every hidden channel adds to the output by itself: (n,), float64 on the CPU.

    The root mean square of its activations times the L2 norm of its column of the contraction. So Wanda
    measures single weights (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
    ICLR 2024); here it is whole channels.

    Args:
        layer: the feed-forward network.
        moment: (n, n), second moment of its hidden channels.
    """
    columns: Tensor = layer.weight.cpu().double().norm(dim=0)
    power: Tensor = moment.diagonal().cpu().double().clamp_min(0)
    return columns * power.sqrt()


def largest(scores: Tensor, count: int) -> Tensor:
    """The channels of the highest scores, in ascending order.

    >>> largest(torch.tensor([3.0, 1.0, 2.0]), 2).tolist()
    [0, 2]
    """
    return scores.topk(count).indices.sort().values
