"""Which families are known, and how a state dict is recognised.

The one way from the rest of the package to a family: by name, by a network of it, or by what a file holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from csa2glmha import families
from csa2glmha.core.errors import CheckpointError, UsageError
from csa2glmha.core.text import shown
from csa2glmha.families.family import Family, Lowering, Specialise, UnexpectedKeys, quote_keys
from csa2glmha.families.groups import attention_groups
from csa2glmha.feedforward.form import FeedForwardReader
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.reader import Reader


def known_families() -> tuple[Family, ...]:
    """All of them, in the order in which a file is compared with them."""
    return families.FAMILIES


def family_named(name: str) -> Family:
    """The family of that name.

    Raises:
        KeyError: there is none.
    """
    return {family.name: family for family in families.FAMILIES}[name]


def recognise(state: Mapping[str, Tensor], source: str) -> Family:
    """The family that a state dict belongs to.

    Args:
        state: parameter names and tensors, wrappers and prefixes removed.
        source: what to call the file in an error.

    Raises:
        CheckpointError: it is none of the known ones; names the closest and the first keys that differ.
    """
    known = families.FAMILIES
    supported = ", ".join(family.name for family in known)
    for family in known:
        variant = family.variant(state)
        if variant is not None:
            raise CheckpointError(
                f"{shown(source)}: is {variant}, which is not supported. Supported: {supported}"
            )
    for family in known:
        if family.signed(state) == 1:
            return family
    closest = max(known, key=lambda family: family.signed(state))
    missing = [key for key in closest.signature if key not in state]
    if closest.signed(state) > 0:
        hint = f"closest is {closest.name}, but it has no {quote_keys(missing)}"
    else:
        hint = f"it has no key of theirs ({closest.name}, for one, would have {quote_keys(missing)})"
    raise CheckpointError(
        f"{shown(source)}: not a supported architecture: {hint}; "
        f"its first keys are {quote_keys(list(state))}. Supported: {supported}{_own_code_hint(state)}"
    )


def _own_code_hint(state: Mapping[str, Tensor]) -> str:
    """What can be done with an unknown network that seems to have channel attention."""
    groups = attention_groups(state)
    if not groups:
        return ". If it is of a network of your own, name its code with --network"
    count = f"{len(groups)} groups that look" if len(groups) > 1 else "1 group that looks"
    return (
        f". It contains {count} like channel attention (first: {shown(groups[0] or 'at the top')}); if you "
        "have its code, give the network with --network"
    )


def inputs_of(name: str) -> str | None:
    """The kind of inputs that networks of the family of that name take; None: there is no such family."""
    named = [family.model for family in families.FAMILIES if family.name == name]
    return str(getattr(named[0], "inputs", RestorationModel.inputs)) if named else None


def build(name: str, hyperparameters: Mapping[str, Any]) -> RestorationModel:
    """Build a network of a family with fresh weights, in eval mode."""
    return family_named(name).build(hyperparameters)


def build_from_state(state: Mapping[str, Tensor], source: str) -> RestorationModel:
    """Recognise a state dict, build its network and load the weights.

    Returns:
        The network in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: unknown architecture, or keys or shapes that do not fit.
    """
    family = recognise(state, source)
    try:
        return family.load(state, source)
    except UnexpectedKeys as error:  # another network has all names that the family is known by
        raise CheckpointError(f"{error}{_own_code_hint(state)}") from error


def family_of_weights(state: Mapping[str, Tensor]) -> str | None:
    """The family whose network these weights fit, key by key and shape by shape; None: there is none."""
    try:
        return build_from_state(dict(state), "").architecture
    except CheckpointError:
        return None


def readers_of(model: nn.Module) -> tuple[Reader, ...]:
    """How attention modules in it are read: as its family says; of all families where it is of none."""
    own = [family.readers for family in families.FAMILIES if family.name == _name_of(model)]
    return own[0] if own else tuple(reader for family in families.FAMILIES for reader in family.readers)


def feed_forward_readers_of(model: nn.Module) -> tuple[FeedForwardReader, ...]:
    """Where the parts of feed-forward networks in it are, likewise; each kind once."""
    own = [family.feed_forwards for family in families.FAMILIES if family.name == _name_of(model)]
    found = own or [family.feed_forwards for family in families.FAMILIES]
    return tuple(dict.fromkeys(reader for readers in found for reader in readers))


def lowering_of(model: nn.Module) -> Lowering:
    """By type of module, what takes its place when a network is deployed: as its own family says.

    Families share types, GLMHA for one, and each puts something else in their place.
    """
    named = [family.lowering for family in families.FAMILIES if family.name == _name_of(model)]
    return named[0] if named else {}


def is_lowered(model: nn.Module) -> bool:
    """Whether a network can be deployed: not if it is of a family that does not say how."""
    return all(family.lowering for family in families.FAMILIES if family.name == _name_of(model))


def specialise_of(model: nn.Module) -> Specialise:
    """How a network is made for one value of an input.

    Raises:
        UsageError: its family has no such form.
    """
    for family in families.FAMILIES:
        if family.name == _name_of(model) and family.specialise is not None:
            return family.specialise
    raise UsageError(f"--mask: {_name_of(model)} has no form for one mask; leave it out")


def _name_of(model: nn.Module) -> str:
    return str(getattr(model, "architecture", type(model).__name__))
