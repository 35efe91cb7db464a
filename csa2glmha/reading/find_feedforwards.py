"""Finding feed-forward networks in a recording: read, checked, or left at their width one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from csa2glmha.attention.layout import Layout
from csa2glmha.feedforward.form import FeedForward, Parts
from csa2glmha.feedforward.tensors import Cut
from csa2glmha.reading.check import TOLERANCE, difference
from csa2glmha.reading.hidden import HiddenChannels, NoHidden, expansion_behind, hidden_channels
from csa2glmha.reading.linear import Unreadable, words
from csa2glmha.reading.operands import codes, is_product, is_projection
from csa2glmha.reading.recording import Call, Operation, Recording, Value
from csa2glmha.reading.trails import MOVES, trail
from csa2glmha.reading.wiring import LAYOUTS, as_matrix


@dataclass(frozen=True)
class Contraction:
    """One call of a pointwise layer that gives no more channels than it takes.

    Attributes:
        axis: of channels, in what it takes.
    """

    call: Call
    features: Value
    axis: int


@dataclass(frozen=True)
class FoundFeedForwards:
    """What a recording shows of feed-forward networks.

    Attributes:
        layers: by name: of the module that is one, or else of the contraction.
        refused: names of contractions with hidden channels that cannot be left out, and why.
    """

    layers: dict[str, FeedForward]
    refused: dict[str, str]


def find_feed_forwards(
    module: nn.Module, recording: Recording, second: Recording | None, attention: Collection[str]
) -> FoundFeedForwards:
    """All feed-forward networks of a network.

    Args:
        module: the network.
        recording: one pass.
        second: one at another size, if there is one.
        attention: names of modules that are attention and are read as such: what is in them is no matter.
    """
    consumers = _consumers(recording)
    layers: dict[str, FeedForward] = {}
    refused: dict[str, str] = {}
    attended = tuple(f"{name}." for name in attention)
    every = _contractions(recording)
    again = {} if second is None else _contractions(second)
    for path, calls in every.items():
        if f"{path}.".startswith(attended):
            continue
        try:
            layers[path] = _read(recording, path, calls, consumers)
            _check((*calls, *again.get(path, ())))
        except Unreadable as problem:
            wide = (expansion_behind(each.features, each.features.shape[each.axis]) for each in calls)
            if not isinstance(problem, NoHidden) and any(wide):
                refused[path] = str(problem)
    layouts = {path: _layout(every[path][0]) for path in layers}
    return FoundFeedForwards(_named(module, layers, layouts, attended), refused)


def _contractions(recording: Recording) -> dict[str, list[Contraction]]:
    """Calls of pointwise layers that may be contractions, by the names of the layers."""
    found: dict[str, list[Contraction]] = defaultdict(list)
    for call in recording.calls:
        layer = call.module
        if not isinstance(layer, nn.Conv2d | nn.Linear) or call.kwargs or len(call.args) != 1:
            continue
        (features,), weight = call.args, layer.weight
        dims = (4,) if isinstance(layer, nn.Conv2d) else (3, 4)
        if (
            not isinstance(features, Value)
            or len(features.shape) not in dims
            or weight.shape[0] > weight.shape[1]
        ):
            continue
        if isinstance(layer, nn.Conv2d) and not _pointwise(layer):
            continue
        operators = [each for each in recording.operations[call.first : call.last] if each.name not in MOVES]
        # PyTorch adds the bias by itself where its input lies in memory in another order.
        if operators and is_projection(operators[0]) and all(each.name == "add" for each in operators[1:]):
            found[call.path].append(Contraction(call, features, 1 if isinstance(layer, nn.Conv2d) else -1))
    return found


def _pointwise(layer: nn.Conv2d) -> bool:
    strides = (layer.kernel_size, layer.stride)
    return strides == ((1, 1), (1, 1)) and layer.padding in ((0, 0), "valid", "same") and layer.groups == 1


def _consumers(recording: Recording) -> dict[Value, list[Operation]]:
    """The operators that take each tensor."""
    found: dict[Value, list[Operation]] = defaultdict(list)
    for operation in recording.operations:
        for value in dict.fromkeys(operation.inputs):
            found[value].append(operation)
    return found


def _read(
    recording: Recording,
    path: str,
    calls: list[Contraction],
    consumers: dict[Value, list[Operation]],
) -> FeedForward:
    """One feed-forward network from all calls of its contraction; the names in it are the network's.

    Raises:
        Unreadable: there is none, or its channels cannot be left out.
    """
    read = [hidden_channels(each.features, each.axis) for each in calls]
    first = read[0]
    if not first.expanded:
        raise NoHidden("nothing expands them")
    if any(set(each.cuts) != set(first.cuts) for each in read):
        raise Unreadable("it is called in different ways")
    own = set[Operation]().union(*(each.operations for each in read))
    for each in calls:
        own.update(recording.operations[each.call.first : each.call.last])
    outputs = set(recording.outputs)
    for hidden in read:
        _check_alone(hidden, own, outputs, consumers)
    weight = Cut(f"{path}.weight", 1)
    if any(value.name == weight.tensor for value in first.tensors):
        raise Unreadable("its contraction makes hidden channels, too")
    _check_weight(calls[0], weight.tensor, own, consumers)
    cuts = (weight, *first.cuts)
    around, output = _whole(recording, _around(calls[0], first, cuts), calls[0], first)
    parts = Parts(path, cuts, output is not None, output or "maps")
    return FeedForward(around.module, parts, around.path)


def _check_alone(
    hidden: HiddenChannels, own: set[Operation], outputs: set[Value], consumers: dict[Value, list[Operation]]
) -> None:
    """Raise Unreadable where something else sees hidden channels, or has the same parameters."""
    for value in (*hidden.values, *hidden.tensors):
        more = [each for each in consumers[value] if each not in own]
        if value in outputs or more:
            if value.name:
                raise Unreadable(f"{value.name!r} is used elsewhere, too")
            what = words(more[0]) if more else "the network's output"
            raise Unreadable(f"its hidden channels also go into {what}")


def _check_weight(
    contraction: Contraction, name: str, own: set[Operation], consumers: dict[Value, list[Operation]]
) -> None:
    """Raise Unreadable where the contraction's weight is no parameter of its own."""
    layer = contraction.call.module
    taken = [value for value in consumers if value.name == name]
    if not isinstance(layer.weight, nn.Parameter) or len(taken) != 1:
        raise Unreadable("the weight of its contraction is another layer's, too, or made of other tensors")
    if any(each not in own for each in consumers[taken[0]]):
        raise Unreadable(f"{name!r} is used elsewhere, too")


def _around(contraction: Contraction, hidden: HiddenChannels, cuts: Sequence[Cut]) -> Call:
    """The smallest call in which all of it happens, of a module that has all of its parameters."""

    def has_all(call: Call) -> bool:
        inside = all(each.tensor.startswith(f"{call.path}.") for each in cuts)
        return inside and all(call.covers(each) for each in hidden.operations)

    call = contraction.call.parent
    assert call is not None
    while call.parent is not None and not has_all(call):
        call = call.parent
    return call


def _layout(contraction: Contraction) -> Layout:
    """How the contraction's output lies."""
    if contraction.axis == 1:
        return "maps"
    return "tokens" if len(contraction.features.shape) == 3 else "channels last"


def _whole(
    recording: Recording, around: Call, contraction: Contraction, hidden: HiddenChannels
) -> tuple[Call, Layout | None]:
    """The module that is the feed-forward network, with the layout of its output; None: there is none.

    Modules around it that do no more than bring its output into another layout are a part of it: what they
    give is what a stream gets. Of those that give the same, it is the innermost.
    """
    found: list[tuple[Call, Layout]] = []
    call: Call | None = around
    while call is not None:
        layout = _output(recording, call, contraction, hidden)
        if layout is None:
            break
        found.append((call, layout))
        call = call.parent
    return next((each for each in found if each[0].result is found[-1][0].result), (around, None))


def _output(
    recording: Recording, around: Call, contraction: Contraction, hidden: HiddenChannels
) -> Layout | None:
    """How a module lays out the contraction's output; None: it gives something else, or does more."""
    (made,) = contraction.call.outputs
    if not around.path or len(around.outputs) != 1 or not isinstance(around.result, Value):
        return None
    for operation in recording.operations[around.first : around.last]:
        weighing = (
            is_projection(operation) or is_product(operation) or operation.name.startswith("_scaled_dot")
        )
        if weighing and operation not in hidden.operations and not contraction.call.covers(operation):
            return None
    way = trail(around.outputs[0], lambda value: value is made)
    own = as_matrix(codes(made), _layout(contraction))
    if way.source is not made or not way.only_moves or own is None:
        return None
    arrived = way.replay(codes(made))
    for layout in LAYOUTS:
        matrix = as_matrix(arrived, layout)
        if matrix is not None and torch.equal(matrix, own):
            return layout
    return None


@torch.no_grad()
def _check(calls: Sequence[Contraction]) -> None:
    """Raise Unreadable where a contraction gives something else than W h + b."""
    for each in calls:
        contraction = each.call.module
        assert isinstance(contraction, nn.Conv2d | nn.Linear)
        rows = each.features.tensor.movedim(each.axis, 0).flatten(1)
        result = contraction.weight.flatten(1) @ rows
        if contraction.bias is not None:
            result = result + contraction.bias[:, None]
        (output,) = each.call.outputs
        error = difference(result, output.tensor.movedim(each.axis, 0).flatten(1))
        if not error <= TOLERANCE:
            raise Unreadable(f"its contraction gives something else than W h + b: {error:.1e} of the largest")


def _named(
    module: nn.Module,
    layers: Mapping[str, FeedForward],
    layouts: Mapping[str, Layout],
    attended: tuple[str, ...],
) -> dict[str, FeedForward]:
    """By name, in order of definition, with names of parts within the module around them.

    Args:
        module: the network.
        layers, layouts: the networks, and how their contractions' outputs lie, by names of contractions.
        attended: beginnings of names of what is in attention.
    """
    found: dict[str, FeedForward] = {}
    around = [layer.path for layer in layers.values()]
    for path, layer in layers.items():
        inner = f"{layer.path}."
        shared = sum(each == layer.path or each.startswith(inner) for each in around) > 1
        shared |= any(each.startswith(inner) or inner.startswith(each) for each in attended)
        whole = layer.parts.whole and not shared
        found[layer.path if whole else path] = _within(layer, whole, layouts[path])
    places = {name: index for index, (name, _) in enumerate(module.named_modules())}
    return dict(sorted(found.items(), key=lambda each: places[each[0]]))


def _within(layer: FeedForward, whole: bool, layout: Layout) -> FeedForward:
    """The same with names of parts as they are within its module."""
    start = len(layer.path) + 1 if layer.path else 0
    parts = layer.parts
    cuts = tuple(replace(each, tensor=each.tensor[start:]) for each in parts.cuts)
    output = parts.output if whole else layout
    return replace(layer, parts=Parts(parts.contraction[start:], cuts, whole, output))
