"""How the attention map of one call of a module is made, where the rest of the module stays as it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.reading.call import SIDES, check_norms, check_sides, map_of, size_places
from csa2glmha.reading.find import Pair, side_of
from csa2glmha.reading.given_map import GivenMap, read_given_map
from csa2glmha.reading.left_out import LeftOut, needed_values, read_left_out
from csa2glmha.reading.logits import read_logits
from csa2glmha.reading.projections import read_side
from csa2glmha.reading.recording import Call, Recording
from csa2glmha.reading.wiring import Wiring


@dataclass(frozen=True)
class RecordedMap:
    """One attention map as a call of its module shows it.

    Attributes:
        form: the canonical form, without an output; its values are not those of the module.
        wiring: where the inputs of queries and keys are among the module's arguments.
        logits: (heads, c, c) as they were recorded, None where they are not visible.
        given: where the module uses the map.
        left_out: what it does not need where the map is given.
        operators: indices of those that make the map.
    """

    form: ChannelAttention
    wiring: Wiring
    logits: Tensor | None
    given: GivenMap
    left_out: LeftOut
    operators: frozenset[int]


def read_map(recording: Recording, pair: Pair, call: Call, beside: str) -> RecordedMap:
    """Read queries and keys of one attention, and nothing of the rest.

    Args:
        recording: the pass.
        pair: its products.
        call: the call that :func:`~csa2glmha.reading.call.enclosing_call` gave.
        beside: what lies beside the attention, in words.

    Raises:
        Unreadable: its map has no canonical form, or is made where it cannot be left out, and why.
    """
    check_sides({name: side_of(pair, name) for name in SIDES})
    sides = {name: side_of(pair, name, call.inputs) for name in SIDES[:2]}
    heads = sides["queries"].channels.shape[0]
    logits = read_logits(pair, heads)
    read = {name: read_side(name, side, call.inputs) for name, side in sides.items()}
    check_norms(read, logits)
    queries, keys = read["queries"], read["keys"]
    wiring = Wiring(
        values=map_of(call, keys, "keys"), output="maps", queries=map_of(call, queries, "queries")
    )
    own_input = wiring.queries != wiring.values
    form = ChannelAttention(
        heads=heads,
        queries=queries.projection,
        keys=keys.projection,
        values=keys.projection,
        temperature=logits.temperature * queries.temperature * keys.temperature,
        output=torch.zeros(0, keys.projection.pointwise.shape[0]),
        value_branch=True,
        activation=logits.activation,
        query_channels=queries.projection.pointwise.shape[1] if own_input else None,
        beside=beside,
    )
    size = size_places(call, wiring, [queries.size, keys.size])
    update = {"queries": wiring.queries if own_input else None, "size": size}
    needed = needed_values(call, pair)
    operators = recording.operations[call.first : call.last]
    return RecordedMap(
        form,
        wiring.model_copy(update=update),
        logits.recorded,
        read_given_map(call, pair, heads),
        read_left_out(recording, call, needed, (queries, keys)),
        frozenset(each.index for each in operators if each is pair.second or needed.isdisjoint(each.outputs)),
    )
