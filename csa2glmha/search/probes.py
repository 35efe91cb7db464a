"""What a change of one layer does to the network's output: a few backward passes tell for all layers.

A layer whose output changes by d changes the network's output by J d, to first order, with J the derivative
of the one by the other. Let u be a random vector of the output's size, with independent entries of mean 0 and
variance 1. Then

    |J d|^2 = E (u^T J d)^2 = E (g . d)^2        g = J^T u: one backward pass gives it for every layer

(Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990). So no network has to be run
for a change. Only the changed layer is, on what it is called with. Against errors of whole networks, measured
on a denoising Restormer for ranks from 32 to 2 and for widths, on 8 crops of 128 x 128 with 8 vectors each:
0.8 to 1.2 of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from csa2glmha.core.hooks import removed_after
from csa2glmha.core.progress import progress
from csa2glmha.data.batches import Inputs
from csa2glmha.distill.held_out import errors, teacher_outputs
from csa2glmha.metrics.outputs import Outputs
from csa2glmha.networks import run
from csa2glmha.networks.foreign import users_own

#: Random vectors for each image.
VECTORS = 8

#: A change of a layer: what takes its place, called as it is.
Changes = Mapping[str, Sequence[nn.Module]]


@dataclass
class _Call:
    """One call of a layer: its arguments and what it gave, from which the gradients are taken."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


@dataclass
class Probe:
    """One image's way through a network, with gradients of random vectors at some layers.

    Attributes:
        calls: of each layer, in order.
        gradients: likewise, (vectors, *output).
    """

    calls: dict[str, list[_Call]] = field(default_factory=dict)
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        names: Sequence[str],
        inputs: Inputs,
        outputs: Outputs,
        generator: torch.Generator,
    ) -> Probe:
        """Run a network forward and backward.

        Args:
            model: in eval mode.
            names: of layers, in :func:`~csa2glmha.networks.foreign.users_own`.
            inputs: one image, with what else the network takes.
            outputs: of the network.
            generator: of the vectors, on the CPU.

        Raises:
            NoGradientError: a layer has no part in the output that derivatives could tell of.
        """
        found = cls({name: [] for name in names})
        with torch.enable_grad(), found._watched(model):
            output = run(
                model, tuple(each.clone().requires_grad_(each.is_floating_point()) for each in inputs)
            )
        ends = [call.output for name in names for call in found.calls[name]]
        if not output.requires_grad or not all(each.requires_grad for each in ends):
            raise NoGradientError
        vectors = outputs.probes(output.detach().cpu(), VECTORS, generator).to(output)
        taken: list[tuple[Tensor, ...]] = []
        for index, vector in enumerate(vectors):
            last = index == len(vectors) - 1
            gradients = torch.autograd.grad(output, ends, vector, retain_graph=not last, allow_unused=True)
            if any(each is None for each in gradients):
                raise NoGradientError
            taken.append(tuple(gradients))
        stacked = iter([torch.stack(each) for each in zip(*taken, strict=True)])
        for name in names:
            found.gradients[name] = [next(stacked) for _ in found.calls[name]]
            for call in found.calls[name]:
                call.output = call.output.detach()
        return found

    @contextmanager
    def _watched(self, model: nn.Module) -> Iterator[None]:
        def watch(name: str) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
                if not isinstance(output, Tensor):
                    raise NoGradientError
                self.calls[name].append(_Call(_detached(args), _detached(kwargs), output))
                # A tensor of its own goes on, which the network may write to.
                return output.clone()

            return hook

        own = users_own(model)
        handles = [
            own.get_submodule(name).register_forward_hook(watch(name), with_kwargs=True)
            for name in self.calls
        ]
        with removed_after(handles):
            yield

    @torch.no_grad()
    def error(self, name: str, change: nn.Module) -> float:
        """What a change of a layer adds to the output's error, in the outputs' own measure."""
        products: Tensor | None = None
        for call, gradients in zip(self.calls[name], self.gradients[name], strict=True):
            difference = change(*call.args, **call.kwargs) - call.output
            own = gradients.flatten(1) @ difference.flatten()
            products = own if products is None else products + own
        return 0.0 if products is None else float(products.double().square().mean())


class NoGradientError(Exception):
    """Derivatives do not go through a network, or not through one of its layers."""


def _detached(value: Any) -> Any:
    return tree_map(lambda each: each.detach() if isinstance(each, Tensor) else each, value)


def errors_of_changes(
    model: nn.Module, changes: Changes, images: Sequence[Inputs], outputs: Outputs
) -> dict[str, list[float]]:
    """What each change, alone, does to a network's output: mean over images.

    Args:
        model: in eval mode.
        changes: of layers, by name.
        images: one in each.
        outputs: of the network, whose measure errors are in. Its vectors are the same for the same image,
            whatever the changes are.

    Raises:
        NoGradientError: derivatives cannot tell.
    """
    sums = {name: [0.0] * len(each) for name, each in changes.items()}
    for number, inputs in enumerate(images):
        generator = torch.Generator().manual_seed(number)
        probe = Probe.of(model, list(changes), inputs, outputs, generator)
        for name, each in changes.items():
            for index, change in enumerate(each):
                sums[name][index] += probe.error(name, change) / len(images)
    return sums


@torch.no_grad()
def errors_of_networks(
    model: nn.Module, changes: Changes, images: Sequence[Inputs]
) -> dict[str, list[float]]:
    """The same, of networks that are run: one for each change.

    Args: as :func:`errors_of_changes`.
    """
    held_out = teacher_outputs(model, images)
    network = copy.deepcopy(model)
    found: dict[str, list[float]] = {}
    for name, each in progress(changes.items(), what="running changed networks", unit="layer"):
        original = users_own(network).get_submodule(name)
        found[name] = []
        for change in each:
            users_own(network).set_submodule(name, change)
            found[name].append(float(errors(network, held_out)[0].mean()))
        users_own(network).set_submodule(name, original)
    return found
