"""Trying to leave hidden channels out: the network must give what it gives where their weight is zero.

Code may depend on a width that it has stored, and not on the shapes of its tensors. Running it shows that.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from csa2glmha.core.hooks import removed_after
from csa2glmha.core.users_code import calls_users_code, described
from csa2glmha.feedforward.form import FeedForward
from csa2glmha.reading.check import TOLERANCE, difference

calls_users_code(__file__)

#: What a run shows: the network's outputs, and the hidden channels of each layer in all of its calls.
_Seen = tuple[list[Tensor], dict[str, list[Tensor]]]


def refused_by_trial(
    module: nn.Module,
    layers: Mapping[str, FeedForward],
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The feed-forward networks that cannot be narrowed, and why.

    Half of the hidden channels of all of them are left out at once. Only if that fails, parts of them are
    tried.

    Args:
        module: the network; it is not changed.
        layers: of it, by name.
        inputs, kwargs: of one call.
    """
    if not layers:
        return {}
    reason = _problem(module, layers, inputs, kwargs or {})
    if reason is None:
        return {}
    if len(layers) == 1:
        return dict.fromkeys(layers, reason)
    names = list(layers)
    refused: dict[str, str] = {}
    for part in (names[: len(names) // 2], names[len(names) // 2 :]):
        refused |= refused_by_trial(module, {name: layers[name] for name in part}, inputs, kwargs)
    return refused


def _problem(
    module: nn.Module, layers: Mapping[str, FeedForward], inputs: Sequence[Any], kwargs: Mapping[str, Any]
) -> str | None:
    generator = torch.Generator().manual_seed(0)
    kept = {}
    for name, layer in layers.items():
        order = torch.randperm(layer.hidden, generator=generator)
        kept[name] = order[: (layer.hidden + 1) // 2].sort().values
    whole, narrow = _copied(module, layers), _copied(module, layers)
    for name, layer in whole[1].items():
        weight = torch.zeros_like(layer.weight)
        columns = kept[name].to(weight.device)
        weight[:, columns] = layer.weight[:, columns]
        layer.contraction.weight = nn.Parameter(weight.view_as(layer.contraction.weight))
    for name, layer in narrow[1].items():
        layer.keep(kept[name])
    expected = _run(*whole, inputs, kwargs)
    try:
        found = _run(*narrow, inputs, kwargs)
    except Exception as error:  # the network's own
        return f"it cannot have fewer hidden channels: {described(error)}"
    if _alike(found, expected, kept):
        return None
    return "with fewer hidden channels those that are left are others than they were"


def _copied(module: nn.Module, layers: Mapping[str, FeedForward]) -> tuple[nn.Module, dict[str, FeedForward]]:
    """A copy that shares all tensors, in evaluation mode, and its feed-forward networks."""
    memo: dict[int, object] = {id(each): each for each in (*module.parameters(), *module.buffers())}
    model = copy.deepcopy(module, memo).eval()
    return model, {
        name: replace(layer, module=model.get_submodule(layer.path)) for name, layer in layers.items()
    }


@torch.no_grad()
def _run(
    model: nn.Module, layers: Mapping[str, FeedForward], inputs: Sequence[Any], kwargs: Mapping[str, Any]
) -> _Seen:
    seen: dict[str, list[Tensor]] = defaultdict(list)

    def hook(name: str, layer: FeedForward) -> Any:
        return lambda _, args: seen[name].append(layer.rows(args[0]))

    handles = [
        layer.contraction.register_forward_pre_hook(hook(name, layer)) for name, layer in layers.items()
    ]
    with removed_after(handles), torch.random.fork_rng():
        torch.manual_seed(0)  # a network that draws numbers draws the same in all runs
        result = model(*inputs, **kwargs)
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)], seen


def _alike(found: _Seen, expected: _Seen, kept: Mapping[str, Tensor]) -> bool:
    """The same outputs and hidden channels, of those that are kept."""
    pairs = list(zip(found[0], expected[0], strict=True))
    for name, channels in kept.items():
        calls = zip(found[1][name], expected[1][name], strict=True)
        pairs += [(own, full[:, channels.to(full.device)]) for own, full in calls]
    return all(difference(own, full) <= TOLERANCE for own, full in pairs)
