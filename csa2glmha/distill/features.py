"""What modules of student and teacher make on the way to their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from csa2glmha.core.hooks import CallArguments, removed_after
from csa2glmha.networks.foreign import users_own
from csa2glmha.reading.layers import attention_layers

#: Weight of the blocks' features, where the output's own loss has one. With it 120 steps of a student of half
#: the MACs gain 0.4 dB more; three times as much gains no more.
FEATURE_WEIGHT = 1.0


class Features:
    """What the blocks around attention layers make, in the student and in its teacher."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        names = [name for name in blocks_around(teacher, attention_layers(teacher)) if name]
        self._student, self._teacher = (
            {name: users_own(network).get_submodule(name) for name in names} for network in (student, teacher)
        )
        self._own: dict[str, list[Tensor]] = {}
        self._theirs: dict[str, list[Tensor]] = {}

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Take what is made meanwhile."""
        self._own, self._theirs = {}, {}
        with (
            seen(self._student, partial(_keep, self._own)),
            seen(self._teacher, partial(_keep, self._theirs)),
        ):
            yield

    def errors(self, samples: int) -> Tensor | None:
        """Root mean square of the differences, over the deviation of the teacher's features.

        Args:
            samples: in the batch. Features that are not made of as many parts along their first axis are left
                out.

        Returns:
            (samples,), each the mean over all blocks and calls; None where nothing was seen in both networks.
        """
        found = [
            difference_over_deviation(own.reshape(samples, -1), theirs.reshape(samples, -1))
            for name, all_theirs in self._theirs.items()
            for own, theirs in zip(self._own.get(name, []), all_theirs, strict=False)
            if own.shape == theirs.shape and own.shape[0] % samples == 0
        ]
        self._own, self._theirs = {}, {}
        return torch.stack(found).mean(0) if found else None


def _keep(made: dict[str, list[Tensor]], name: str, _: CallArguments, output: Any) -> None:
    """Features of a call; whatever else a block returns has none."""
    if isinstance(output, Tensor) and output.is_floating_point():
        made.setdefault(name, []).append(output)


def difference_over_deviation(output: Tensor, expected: Tensor) -> Tensor:
    """Root mean square of the difference, over the deviation of ``expected``; both are (B, values).

    Returns:
        (B,).
    """
    expected = expected.float()
    # The root has no slope at zero: there, a student that is exact would get gradients that are not finite.
    error = ((output.float() - expected).square().mean(1) + 1e-20).sqrt()
    return error / expected.std(1).clamp_min(1e-8)


@contextmanager
def seen(modules: dict[str, nn.Module], see: Callable[[str, CallArguments, Tensor], None]) -> Iterator[None]:
    """Call ``see(name, arguments, output)`` whenever one of the modules has run."""

    def hook(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        see(name, CallArguments(args, kwargs), output)

    handles = [
        module.register_forward_hook(partial(hook, name), with_kwargs=True)
        for name, module in modules.items()
    ]
    with removed_after(handles):
        yield


def blocks_around(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """Names of the modules that some layers are called in, each once; "" is the network itself."""
    own = users_own(model)
    found: dict[str, None] = {}
    for name in layers:
        parent = name.rpartition(".")[0]
        # Lists of modules only hold others, they are never called.
        while isinstance(own.get_submodule(parent), nn.ModuleList):
            parent = parent.rpartition(".")[0]
        found[parent] = None
    return list(found)
