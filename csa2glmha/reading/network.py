"""All attention layers of any network, by recording: read, checked, or refused one by one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from csa2glmha.feedforward.form import FeedForward
from csa2glmha.reading.call import enclosing_call
from csa2glmha.reading.check import TOLERANCE, difference
from csa2glmha.reading.find import Pair, across_channels, find_attention
from csa2glmha.reading.find_feedforwards import find_feed_forwards
from csa2glmha.reading.linear import Unreadable
from csa2glmha.reading.operators import GlobalOperator, global_operators
from csa2glmha.reading.recorded_feedforward import RecordedFeedForward, carry
from csa2glmha.reading.recorded_layer import (
    RecordedLayer,
    canonical_layer,
    checked,
    projected_outside,
    read_layer,
)
from csa2glmha.reading.recording import Call, Recording, record
from csa2glmha.reading.trial import refused_by_trial


@dataclass(frozen=True)
class Refusal:
    """One attention across channels that is not read, or a feed-forward network.

    Attributes:
        name: of the module that it is in.
        reason: why, in the field's words.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Readings:
    """What a network shows when it is run.

    Attributes:
        layers: what can be converted, by the names of their modules, in the order in which they run.
        refused: other attention across channels.
        operators: what else sees all pixels at once, attention that is refused included.
        difference: of the network's output to that with all layers in canonical form, at another size, as a
            share of its largest number; None where there are no layers.
        other_size: shapes of the inputs at that size; None: the network runs at one size only.
        random: modules that draw random numbers.
        feed_forwards: feed-forward networks that can be narrowed, by name, in order of definition.
        refused_feed_forwards: others.
    """

    layers: dict[str, RecordedLayer]
    refused: tuple[Refusal, ...]
    operators: tuple[GlobalOperator, ...] = ()
    difference: float | None = None
    other_size: tuple[tuple[int, ...], ...] | None = None
    random: tuple[str, ...] = ()
    feed_forwards: dict[str, FeedForward] = field(default_factory=dict)
    refused_feed_forwards: tuple[Refusal, ...] = ()

    def carried_by(self, module: nn.Module) -> None:
        """Let the network that was read carry the readers, as its copies do: layers are found by them."""
        vars(module)["recorded_readers"] = {name: layer.reader for name, layer in self.layers.items()}
        carry(module, {name: RecordedFeedForward.of(each) for name, each in self.feed_forwards.items()})


def read_network(
    module: nn.Module,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    other: Sequence[Any] | None = None,
) -> Readings:
    """Find, read and check the channel attention of any network, and its feed-forward networks.

    It is run a few times. What it raises is raised.

    Args:
        module: the network; it is not changed.
        inputs, kwargs: of one call, for one image that is not square.
        other: inputs of another size, not square either; None: twice the width by the height.

    Returns:
        What can be converted, and what not and why.

    Example:
        >>> from torch import rand
        >>> read_network(nn.Conv2d(3, 3, 3, padding=1), (rand(1, 3, 8, 12),)).layers
        {}
    """
    recording = record(module, inputs, kwargs)
    layers, refused = _read_all(recording)
    other = _turned(inputs) if other is None else other
    second = _again(module, other, kwargs)
    if second is not None:
        layers, more = _hold_again(layers, second)
        refused += more
    error = None
    if layers:
        seen, given = (recording, inputs) if second is None else (second, other)
        error = _whole_difference(module, layers, seen, given, kwargs)
        if not error <= TOLERANCE:
            reason = (
                f"the whole network differs by {error:.1e} of its largest output with it in canonical form"
            )
            refused += [Refusal(name, reason) for name in layers]
            layers = {}
    found = find_feed_forwards(module, recording, second, layers.keys())
    tried = inputs if second is None else other
    wide = found.refused | refused_by_trial(module, found.layers, tried, kwargs)
    return Readings(
        layers,
        tuple(refused),
        () if second is None else _global_operators(recording, second, layers),
        error,
        None if second is None else _shapes(other),
        _random(recording),
        {name: layer for name, layer in found.layers.items() if name not in wide},
        tuple(Refusal(name, reason) for name, reason in wide.items()),
    )


def _global_operators(
    first: Recording, second: Recording, layers: Mapping[str, RecordedLayer]
) -> tuple[GlobalOperator, ...]:
    """What sees all pixels at once besides these layers."""
    whole = [name for name, layer in layers.items() if not layer.form.map_only]
    known = frozenset[int]().union(*(layer.operators for layer in layers.values()))
    return global_operators(first, second, whole, known)


def _again(module: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Recording | None:
    """A recording at another size; None: the network does not run there."""
    try:
        return record(module, inputs, kwargs)
    except Exception:  # the network's own
        return None


def _read_all(recording: Recording) -> tuple[dict[str, RecordedLayer], list[Refusal]]:
    found: dict[str, list[tuple[Pair, Call]]] = {}
    for pair in find_attention(recording):
        if across_channels(pair):
            call = enclosing_call(recording, pair)
            found.setdefault(call.path, []).append((pair, call))
    layers, refused = {}, []
    for name, pairs in found.items():
        try:
            layers[name] = read_layer(recording, name, pairs)
        except Unreadable as problem:
            refused.append(_refusal(name, pairs, problem))
    return layers, refused


def _refusal(name: str, pairs: list[tuple[Pair, Call]], problem: Unreadable) -> Refusal:
    """Of the module that attends, which is inside of another where that one projects for it."""
    pair, call = pairs[0]
    if not projected_outside(pair, call):
        return Refusal(name, str(problem))
    reason = f"its projections are outside of the module; the one around it: {problem}"
    return Refusal(pair.first.call.path, reason)


def _hold_again(
    layers: dict[str, RecordedLayer], second: Recording
) -> tuple[dict[str, RecordedLayer], list[Refusal]]:
    """The layers that compute what their modules compute at another size, too, and the others."""
    kept, refused = {}, []
    for name, layer in layers.items():
        try:
            kept[name] = checked(layer, second.calls_of(name))
        except Unreadable as problem:
            refused.append(Refusal(name, f"at another size {problem}"))
    return kept, refused


@torch.no_grad()
def _whole_difference(
    module: nn.Module,
    layers: dict[str, RecordedLayer],
    recording: Recording,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
) -> float:
    """Of the network's outputs with all layers in canonical form to those recorded."""
    # The copy shares all tensors; only the modules are new, and these are others.
    memo: dict[int, object] = {id(each): each for each in (*module.parameters(), *module.buffers())}
    for layer in layers.values():
        memo[id(layer.module)] = canonical_layer(layer)
    copied = copy.deepcopy(module, memo).eval()
    results = [leaf for leaf in tree_leaves(copied(*inputs, **(kwargs or {}))) if isinstance(leaf, Tensor)]
    expected = [value.tensor for value in recording.outputs]
    if len(results) != len(expected):
        return float("inf")
    return max((difference(one, other) for one, other in zip(results, expected, strict=True)), default=0.0)


def _turned(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The same inputs with heights and widths exchanged, and one of them doubled."""

    def turned(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim < 4:
            return leaf
        return torch.cat((leaf.transpose(-2, -1), leaf.transpose(-2, -1).flip(-2)), -2).contiguous()

    return tuple(tree_map(turned, list(inputs)))


def _shapes(inputs: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(leaf.shape) for leaf in tree_leaves(list(inputs)) if isinstance(leaf, Tensor))


def _random(recording: Recording) -> tuple[str, ...]:
    """Modules whose operators draw random numbers that matter."""
    drawing = {
        operation.call.path: None
        for operation in recording.operations
        if torch.Tag.nondeterministic_seeded in getattr(operation.function, "tags", ())
        and not operation.name.startswith(("dropout", "native_dropout", "_scaled_dot_product"))
    }
    return tuple(drawing)
