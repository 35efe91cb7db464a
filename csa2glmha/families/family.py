"""What a family of networks says of itself; everything else in the package asks this and names none.

What a family leaves out is derived or refused: without lowering its networks are exported as they are,
without readers they are inspected and nothing more, without specialise the options on masks are refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from csa2glmha.core.errors import CheckpointError
from csa2glmha.core.text import quoted, shown
from csa2glmha.families.hyperparameters import Hyperparameters, check_hyperparameters
from csa2glmha.feedforward.form import FeedForwardReader
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.reader import Reader

State = Mapping[str, Tensor]


class UnexpectedKeys(CheckpointError):
    """A state dict has more than the network that it is loaded into."""


#: By type of module, what takes its place in the deployed network.
Lowering = Mapping[type[nn.Module], Callable[[Any], nn.Module]]


@dataclass(frozen=True)
class Specialise:
    """A network for one value of its second input, which is a constant from then on.

    Attributes:
        bake: from a network and the value to the network for it alone, which takes one input; a copy.
        unbake: the inverse: from that, and the network whose branch it had, to one of two inputs; a copy.
        freeze: keeps training away from what the constants are made by, in place.
    """

    bake: Callable[[Any, Tensor], RestorationModel]
    unbake: Callable[[Any, Any], RestorationModel]
    freeze: Callable[[Any], None]


def _no_variant(state: State) -> str | None:
    return None


@dataclass(frozen=True)
class Family:
    """Networks of one architecture, of any size.

    Attributes:
        name: in messages and student files; that of its ``model``.
        model: the class; called with the hyper-parameters as keywords.
        signature: keys that together occur in this family's state dicts alone.
        hyperparameters: what they may be.
        hyperparameters_from: reads them from a state dict that has every key of ``signature``.
        readers: how its attention is read, one for each kind of module.
        feed_forwards: where the parts of its feed-forward networks are, likewise.
        lowering: by type of module, what takes its place in the deployed network.
        specialise: where its networks can be made for one value of an input.
        unused: modules that published checkpoints have and that nothing goes through; they are left out.
        variant: what network a state dict is of that is close to this family and is none of it, or None.
    """

    name: str
    model: Callable[..., RestorationModel]
    signature: tuple[str, ...]
    hyperparameters: type[Hyperparameters]
    hyperparameters_from: Callable[[State], dict[str, Any]]
    readers: tuple[Reader, ...] = ()
    feed_forwards: tuple[FeedForwardReader, ...] = ()
    lowering: Lowering = field(default_factory=dict)
    specialise: Specialise | None = None
    unused: tuple[str, ...] = ()
    variant: Callable[[State], str | None] = _no_variant

    def signed(self, state: State) -> float:
        """How much of the signature is in a state dict, 0 to 1."""
        return sum(key in state for key in self.signature) / len(self.signature)

    def check(self, values: Mapping[str, Any], tensors: int) -> dict[str, Any]:
        """The hyper-parameters, if a network of them can be in a file of so many tensors.

        Raises:
            ValueError, TypeError: the first problem, in one line.
        """
        return check_hyperparameters(self.hyperparameters, values, tensors)

    def build(self, hyperparameters: Mapping[str, Any]) -> RestorationModel:
        """A network with fresh weights, in eval mode."""
        return self.model(**hyperparameters).eval()

    def load(self, state: State, source: str) -> RestorationModel:
        """The network of a state dict that is taken to be of this family, whatever it looks like.

        Args:
            state: parameter names and tensors, wrappers and prefixes removed.
            source: what to call the file in an error.

        Returns:
            The network in eval mode, float32, on the CPU.

        Raises:
            CheckpointError: keys or shapes do not fit, in one line.
        """
        missing = [key for key in self.signature if key not in state]
        if missing:
            raise CheckpointError(
                f"{shown(source)} ({self.name}): keys do not fit: "
                f"{len(missing)} missing: {quote_keys(missing)}"
            )
        state = {key: value for key, value in state.items() if key.partition(".")[0] not in self.unused}
        try:
            hyperparameters = self.check(self.hyperparameters_from(state), len(state))
            with torch.device("meta"):
                model = self.build(hyperparameters)
        except (LookupError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            raise CheckpointError(
                f"{shown(source)}: looks like {self.name}, but its hyper-parameters cannot be read from it "
                f"({quoted(error)})"
            ) from error
        load_strictly(model, state, f"{source} ({self.name})")
        return model


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load ``state`` into ``model``, which may be on the meta device; every key and shape must fit.

    Raises:
        CheckpointError: names the first missing, unexpected, misshapen or integer keys.
    """
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"{len(missing)} missing: {quote_keys(missing)}")
        if extra:
            # Its time grows with the length of names and their number.
            near = difflib.get_close_matches(extra[0][:200], missing[:1000], n=1)
            parts.append(
                f"{len(extra)} unexpected: {quote_keys(extra)}" + (f" (meant {near[0]}?)" if near else "")
            )
        misfit = UnexpectedKeys if extra else CheckpointError
        raise misfit(f"{shown(source)}: keys do not fit: {'; '.join(parts)}")
    wrong = [key for key in wanted if wanted[key].shape != state[key].shape]
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"{shown(source)}: {len(wrong)} tensors have an unexpected shape, first {key}: "
            f"{tuple(state[key].shape)} where {tuple(wanted[key].shape)} is expected"
        )
    integers = [key for key in wanted if wanted[key].is_floating_point() > state[key].is_floating_point()]
    if integers:
        kind = str(state[integers[0]].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{shown(source)}: {len(integers)} tensors hold no floating-point numbers, first {integers[0]}: "
            f"{kind}; give the checkpoint from before quantisation"
        )
    model.load_state_dict(dict(state), assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def quote_keys(keys: list[str], limit: int = 3) -> str:
    """The first of some keys, and how many there are."""
    return ", ".join(shown(key) for key in keys[:limit]) + (
        f", ... ({len(keys)} in all)" if len(keys) > limit else ""
    )
