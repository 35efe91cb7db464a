"""What of a module is not needed where its attention map is made by another: left out of a copy of it.

Queries and keys often come from one layer together with the values. Their channels are taken out of its
weights, and ones stand in their places, so that the module's code runs as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.reading.find import Pair
from csa2glmha.reading.linear import Unreadable
from csa2glmha.reading.projections import ReadSide
from csa2glmha.reading.recording import Call, Operation, Recording, Value
from csa2glmha.reading.wiring import Index, WiringPart


class LeftOut(WiringPart):
    """What the logits alone need of a module.

    Attributes:
        kept: of the layers that queries and keys come from, by name, the channels that others need, too.
        parameters: names of others.
    """

    kept: tuple[tuple[str, tuple[Index, ...]], ...]
    parameters: tuple[str, ...]

    def check(self, module: nn.Module) -> None:
        """Raise ValueError, in one line, unless a module has all this."""
        layers, own = dict(module.named_modules()), dict(module.named_parameters())
        for name, kept in self.kept:
            layer = layers.get(name)
            if type(layer) not in (nn.Linear, nn.Conv2d) or not name:
                raise ValueError(f"left_out: its module has no layer {name!r}")
            if list(kept) != sorted({each for each in kept if each < len(own[f"{name}.weight"])}):
                raise ValueError(f"left_out: {name!r} has no such channels")
            if isinstance(layer, nn.Conv2d) and layer.groups not in (1, layer.out_channels):
                raise ValueError(f"left_out: {name!r} is a grouped convolution")
        for name in self.parameters:
            if name not in own or name.rpartition(".")[0] in dict(self.kept):
                raise ValueError(f"left_out: its module has no parameter {name!r}")

    def without(self, module: nn.Module) -> nn.Module:
        """The module itself, in which these are no parameters any more."""
        for name, kept in self.kept:
            module.set_submodule(name, Remaining(module.get_submodule(name), kept))
        for name in self.parameters:
            path, _, own = name.rpartition(".")
            owner = module.get_submodule(path)
            value = owner.get_parameter(own).detach()
            delattr(owner, own)
            # The code reads it, but what becomes of it is not used.
            owner.register_buffer(own, value, persistent=False)
        return module


class Remaining(nn.Module):
    """A linear layer, or a pointwise or depthwise convolution, of which only some channels are computed.

    Args:
        layer: the whole one.
        kept: which, in rising order.
    """

    def __init__(self, layer: nn.Module, kept: Sequence[int]) -> None:
        super().__init__()
        self.last = isinstance(layer, nn.Linear)
        self.total = len(layer.get_parameter("weight"))
        self.kept = tuple(kept)
        self.each_its_own = isinstance(layer, nn.Conv2d) and layer.groups > 1
        self.layer = _narrowed(layer, self.kept) if kept else None

    def forward(self, x: Tensor) -> Tensor:
        """As of the whole layer, with ones in the channels that are left out."""
        axis = x.ndim - 1 if self.last else 1
        if self.layer is None:
            return x.new_ones((*x.shape[:axis], self.total, *x.shape[axis + 1 :]))
        y: Tensor = self.layer(_chosen(x, self.kept, axis) if self.each_its_own else x)
        first, count = self.kept[0], len(self.kept)
        if self.kept == tuple(range(first, first + count)):
            beside = [0, 0] * (y.ndim - 1 - axis)
            return F.pad(y, (*beside, first, self.total - first - count), value=1.0)
        place = {channel: index for index, channel in enumerate(self.kept)}
        order = [place.get(channel, count) for channel in range(self.total)]
        one = torch.ones_like(y.narrow(axis, 0, 1))
        return torch.cat((y, one), axis).index_select(axis, torch.tensor(order, device=y.device))


def _chosen(x: Tensor, kept: tuple[int, ...], axis: int) -> Tensor:
    first, count = kept[0], len(kept)
    if kept == tuple(range(first, first + count)):
        return x.narrow(axis, first, count)
    return x.index_select(axis, torch.tensor(kept, device=x.device))


def _narrowed(layer: nn.Module, kept: Sequence[int]) -> nn.Module:
    """A layer of these channels alone."""
    small, count = copy.deepcopy(layer), len(kept)
    for name, whole in layer.named_parameters():
        rows = whole.detach()[list(kept)].clone()
        setattr(small, name, nn.Parameter(rows, requires_grad=whole.requires_grad))
    if isinstance(small, nn.Linear):
        small.out_features = count
    elif isinstance(small, nn.Conv2d):
        small.out_channels = count
        if small.groups > 1:
            small.in_channels = small.groups = count
    return small


def read_left_out(
    recording: Recording, call: Call, needed: Collection[Value], sides: Sequence[ReadSide]
) -> LeftOut:
    """What queries and keys alone need in one call of their module.

    Args:
        recording: the pass.
        call: the call.
        needed: as :func:`needed_values` gives it.
        sides: queries and keys.

    Raises:
        Unreadable: they are made where their channels cannot be taken out.
    """
    dropped: dict[Operation, set[int]] = {}
    for side in sides:
        for operation, channels in side.made:
            dropped.setdefault(operation, set()).update(channels.tolist())
    for side in sides:  # a channel that feeds one that is kept is kept, too
        if side.sources is not None:
            (last, _), (first, _) = side.made
            kept_last = set(range(len(side.sources))) - dropped[last]
            dropped[first] -= {int(side.sources[channel]) for channel in kept_last}
    found: dict[str, tuple[int, ...]] = {}
    for operation, gone in dropped.items():
        name = _layer_of(recording, call, operation)
        layer = call.module.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and layer.groups not in (1, layer.out_channels):
            raise Unreadable("queries and keys are made by a grouped convolution")
        others = tuple(each for each in range(_width(call.module, name)) if each not in gone)
        found[name] = others if any(value in needed for value in operation.outputs) else ()
    kept = {name: each for name, each in found.items() if len(each) < _width(call.module, name)}
    return LeftOut(kept=tuple(sorted(kept.items())), parameters=_parameters(recording, call, needed, kept))


def _width(module: nn.Module, name: str) -> int:
    return len(module.get_submodule(name).get_parameter("weight"))


def _layer_of(recording: Recording, call: Call, operation: Operation) -> str:
    """The name in the module of the linear layer or convolution that an operator ran for.

    Raises:
        Unreadable: it ran for the code of a larger module.
    """
    inner = operation.call
    name = inner.path[len(call.path) + 1 :]
    plain = type(inner.module) in (nn.Linear, nn.Conv2d) and inner.path.startswith(call.path + ".")
    if not plain:
        raise Unreadable("queries and keys are not made by layers that can be left out")
    within = [each for each in recording.calls_of(inner.path) if call.first <= each.first < call.last]
    if len(within) > 1:
        raise Unreadable("a layer that makes its queries or keys is called several times")
    return name


def needed_values(call: Call, pair: Pair) -> set[Value]:
    """All values that what the module returns is made of, where the attention map is given."""
    needed: set[Value] = set()
    todo = list(call.outputs)
    while todo:
        value = todo.pop()
        if value in needed:
            continue
        needed.add(value)
        made = value.producer
        if made is None or not call.covers(made):
            continue
        todo.extend([pair.values] if made is pair.second else made.inputs)
    return needed


def _parameters(
    recording: Recording, call: Call, needed: Collection[Value], kept: dict[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Names of the parameters that are used for the logits alone, besides those of the layers left out."""
    prefix = call.path + "."
    own = {prefix + name for name, _ in call.module.named_parameters()}
    used = {
        value
        for operation in recording.operations[call.first : call.last]
        for value in operation.inputs
        if value.name in own
    }
    names = (value.name.removeprefix(prefix) for value in used.difference(needed))
    return tuple(sorted(name for name in names if name.rpartition(".")[0] not in kept))
