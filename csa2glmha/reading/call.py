"""The canonical form and the wiring of one attention, read of one call of its module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.reading.find import Pair, Side, side_of
from csa2glmha.reading.linear import Unreadable, words
from csa2glmha.reading.logits import ReadLogits, read_logits
from csa2glmha.reading.operands import codes, is_projection
from csa2glmha.reading.outputs import read_output
from csa2glmha.reading.projections import ReadSide, read_side
from csa2glmha.reading.recording import Call, Recording, Value
from csa2glmha.reading.trails import stop_at, trail
from csa2glmha.reading.wiring import (
    FLAT,
    ArgumentPlace,
    Map,
    Wiring,
    layout_of,
    place_of,
    places_of_size,
)

SIDES = ("queries", "keys", "values")


@dataclass(frozen=True)
class RecordedForm:
    """One attention as a call of its module shows it.

    Attributes:
        form: the canonical form; its tensors are copies.
        wiring: where its inputs are among the module's arguments.
        logits: (heads, c, c) as they were recorded, None where they are not visible.
    """

    form: ChannelAttention
    wiring: Wiring
    logits: Tensor | None


def enclosing_call(recording: Recording, pair: Pair) -> Call:
    """The smallest call in which both products and the projections to all three sides happen.

    Where there is none but the network itself, it is that of the products.
    """
    call = pair.first.call
    while not call.covers(pair.second) and call.parent is not None:
        call = call.parent
    within: Call | None = call
    while within is not None and within.parent is not None:
        until = stop_at(within.inputs)
        ends = (trail(getattr(pair, name), until).source.producer for name in SIDES)
        if all(is_projection(made) for made in ends):
            return within
        within = within.parent
    return call


def read_pair(recording: Recording, pair: Pair, call: Call) -> RecordedForm:
    """Read one attention.

    Args:
        recording: the pass.
        pair: its products.
        call: the call that :func:`enclosing_call` gave.

    Raises:
        Unreadable: it has no canonical form, and why.
    """
    check_sides({name: side_of(pair, name) for name in SIDES})
    sides = {name: side_of(pair, name, call.inputs) for name in SIDES}
    heads = sides["queries"].channels.shape[0]
    logits = read_logits(pair, heads)
    stops = call.inputs
    read = {name: read_side(name, sides[name], stops) for name in SIDES}
    check_norms(read, logits)
    output = read_output(recording, call, pair, sides["values"])
    wiring = Wiring(
        values=map_of(call, read["values"], "values"),
        output=output.layout,
        queries=map_of(call, read["queries"], "queries"),
        factor=_factor(call, pair, read["values"], sides["values"]),
        branch=output.branch,
    )
    if map_of(call, read["keys"], "keys") != wiring.values:
        raise Unreadable("keys and values are projected from different arguments of the module")
    own_input = wiring.queries != wiring.values
    form = ChannelAttention(
        heads=heads,
        queries=read["queries"].projection,
        keys=read["keys"].projection,
        values=read["values"].projection,
        temperature=logits.temperature * read["queries"].temperature * read["keys"].temperature,
        output=output.matrix,
        output_bias=output.bias,
        # What V is multiplied by needs all of it, too.
        value_branch=output.branch is not None or wiring.factor is not None,
        activation=logits.activation,
        query_channels=read["queries"].projection.pointwise.shape[1] if own_input else None,
    )
    sizes = [*(read[name].size for name in SIDES), output.size]
    update = {"queries": wiring.queries if own_input else None, "size": size_places(call, wiring, sizes)}
    return RecordedForm(form, wiring.model_copy(update=update), logits.recorded)


def check_sides(sides: dict[str, Side]) -> None:
    """Raise unless every side is channels, at all pixels, in an order that they share."""
    queries, keys, values = (sides[name] for name in SIDES)
    if keys.trail.source is values.trail.source and torch.equal(keys.channels, values.channels):
        raise Unreadable("keys and values are the same")
    if any(side.kind == "window" for side in sides.values()):
        pixels = min(side.pixels.numel() for side in sides.values())
        raise Unreadable(f"attention inside windows of {pixels} pixels")
    for name, side in sides.items():
        if side.kind != "channel":
            raise Unreadable(f"rows of its {name} are not channels at all pixels")
    shapes = {tuple(side.channels.shape) for side in sides.values()}
    if len(shapes) > 1:
        raise Unreadable("queries, keys and values have different numbers of channels")
    if not torch.equal(queries.pixels, keys.pixels):
        raise Unreadable("queries and keys see their pixels in different orders")


def check_norms(read: dict[str, ReadSide], logits: ReadLogits) -> None:
    """Raise unless queries and keys are normalised, and the values, if they are read, are not."""
    missing = [
        name
        for name, behind in zip(("queries", "keys"), logits.normalised, strict=True)
        if not (behind or read[name].normalised)
    ]
    if len(missing) == 2:
        raise Unreadable("no normalisation of queries and keys over the pixels")
    if missing:
        raise Unreadable(f"no normalisation of {missing[0]} over the pixels")
    if "values" in read and read["values"].normalised:
        raise Unreadable("its values are normalised")
    for name in ("queries", "keys"):
        for step in read[name].beside:
            raise Unreadable(f"{words(step.operation)} between the projection of {name} and the product")


def map_of(call: Call, side: ReadSide, name: str) -> Map:
    """Which argument a projection takes, and how it lies."""
    place = place_of(call, side.argument)
    if place is None:
        raise Unreadable(
            f"its {name} are projected from a tensor inside a structure of the module's arguments"
        )
    found = layout_of(side.argument, side.arrived)
    if found is None:
        raise Unreadable(f"its {name} are projected from pixels of the argument in another order")
    layout, order = found
    if order:
        raise Unreadable(
            f"its {name} are projected from some of the argument's channels, or in another order"
        )
    return Map(place=place, layout=layout)


def _factor(call: Call, pair: Pair, side: ReadSide, values: Side) -> Map | None:
    """The argument that V is multiplied by, if any.

    Raises:
        Unreadable: it is multiplied by something else.
    """
    if not side.beside:
        return None
    step = side.beside[0]
    other = step.beside
    if len(side.beside) > 1 or step.operation.name.rstrip("_") != "mul" or not isinstance(other, Value):
        raise Unreadable(f"{words(step.operation)} between the projection of values and the product")
    stops = call.inputs
    way = trail(other, lambda value: value in stops)
    place = place_of(call, way.source)
    if place is None or not way.only_moves:
        passed = way.first_other()
        made = way.source.producer if passed is None else passed.operation
        what = "a tensor made inside the module" if made is None else f"the result of {words(made)}"
        raise Unreadable(f"V is multiplied by {what}")
    index = way.replay(codes(way.source)).expand(step.result.shape)
    for later in values.trail.steps[values.trail.steps.index(step) + 1 :]:
        index = later.replay(index)
    rows = pair.operand("values", index).flatten(0, 1)
    ordered = torch.empty_like(rows)
    ordered[:, values.pixels] = rows
    found = layout_of(way.source, ordered)
    if found is None:
        raise Unreadable("V is multiplied by an argument of the module whose pixels are in another order")
    return Map(place=place, layout=found[0], order=found[1])


def size_places(
    call: Call, wiring: Wiring, sizes: Sequence[tuple[int, int] | None]
) -> tuple[ArgumentPlace, ArgumentPlace] | None:
    """Where height and width are, if the inputs do not say and something works on maps."""
    known = [size for size in sizes if size is not None]
    if wiring.values.layout not in FLAT or not known:
        return None
    places = places_of_size(call, known[0])
    if places is None:
        raise Unreadable("height and width of its maps are not among the module's arguments")
    return places
