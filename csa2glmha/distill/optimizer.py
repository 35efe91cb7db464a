"""How the weights follow their gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MUON, ADAM = "muon", "adam"

#: Decay of Muon's momentum.
MOMENTUM = 0.95
#: The gradient near the teacher is mostly noise: a short second moment (0.99) made the agreement swing by
#: 3 dB between evaluations, 0.999 does not.
BETAS = (0.9, 0.999)
EPSILON = 1e-8
#: Matrices with fewer rows or columns are left to Adam: they have too few directions.
SMALLEST = 9
#: Coefficients of the iteration that brings all singular values near one, and how often it is done.
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
#: Root mean square of a matrix's step over the learning rate: about that of Adam's, so one rate fits both.
RMS = 0.2


def make_optimizer(name: str, parameters: Sequence[nn.Parameter], learning_rate: float) -> Optimizer:
    """The optimizer of that name, "muon" or "adam"."""
    if name == ADAM:
        return torch.optim.Adam(parameters, learning_rate, betas=BETAS)
    return Muon(parameters, learning_rate)


class Muon(Optimizer):
    """Matrices take orthogonalised steps, all other weights those of Adam.

    A matrix steps along its momentum orthogonalised: the nearest matrix whose singular values are all about
    one. A student of closed form is already right along the directions that move its output most. What is
    left lies along the others, where gradients are small. Orthogonalised steps are as long along these, and
    do not disturb the first.

    A matrix is the weight of a linear map or of a convolution over all channels, (O, I, kh, kw) taken as
    (O, I kh kw), with at least :data:`SMALLEST` rows and columns.

    Sources: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, for the method
    and :data:`QUINTIC`; Liu et al., "Muon is scalable for LLM training", 2025, for :data:`RMS`.

    Args:
        parameters: to train.
        learning_rate: of all of them.

    Example:
        >>> optimizer = Muon(list(student.parameters()), 2e-4)
    """

    def __init__(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> None:
        super().__init__(parameters, {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of all that have a gradient; closures are not taken."""
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if is_matrix(parameter):
                    alike[parameter.flatten(1).shape, parameter.device].append(parameter)
                else:
                    self._adam(parameter, group["lr"])
            for parameters in alike.values():
                self._orthogonal(parameters, group["lr"])

    def _orthogonal(self, parameters: Sequence[Tensor], rate: float) -> None:
        """Of matrices of one shape, which are worked on together."""
        directions = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = state["momentum"].mul_(MOMENTUM).add_(parameter.grad)
            directions.append((parameter.grad + MOMENTUM * momentum).flatten(1))
        steps = orthogonalised(torch.stack(directions))
        scale = RMS * max(steps.shape[1:]) ** 0.5
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.sub_(step.view_as(parameter), alpha=rate * scale)

    def _adam(self, parameter: Tensor, rate: float) -> None:
        """Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = BETAS
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - second)
        taken = float(state["step"])
        deviation = (state["exp_avg_sq"] / (1 - second**taken)).sqrt_().add_(EPSILON)
        parameter.addcdiv_(state["exp_avg"], deviation, value=-rate / (1 - first**taken))


def is_matrix(weight: Tensor) -> bool:
    """Whether a weight maps all channels to all: not of a norm, nor one of a grouped convolution."""
    if weight.ndim < 2 or (weight.ndim > 2 and weight.shape[1] == 1):
        return False
    return min(weight.flatten(1).shape) >= SMALLEST


def orthogonalised(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices near one, keeping their singular vectors.

    Args:
        matrices: (N, rows, columns).

    Returns:
        The same shape. Singular values that were within a factor of a hundred or so of the largest are
        between 0.7 and 1.2; zero stays zero.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    found: Tensor = matrices.float()
    found = found.mT if tall else found
    # Of 2-norm at most one, for which the iteration is made.
    found = found / (found.norm(dim=(1, 2), keepdim=True) + 1e-12)
    first, third, fifth = QUINTIC
    for _ in range(ITERATIONS):
        square = found @ found.mT
        found = first * found + (third * square + fifth * square @ square) @ found
    return (found.mT if tall else found).to(matrices.dtype)
