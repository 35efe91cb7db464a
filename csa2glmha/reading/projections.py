"""Reading the projections to queries, keys and values from a recording."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from csa2glmha.attention.canonical import Projection
from csa2glmha.reading.find import Side
from csa2glmha.reading.linear import Linear, Unreadable, read_linear, words
from csa2glmha.reading.operands import channel_axis, channels_of, codes, is_projection, pixels_of
from csa2glmha.reading.recording import Operation, Value
from csa2glmha.reading.trails import Step, Trail, constant_of, stop_at, trail


@dataclass(frozen=True)
class ReadSide:
    """Queries, keys or values as the module makes them.

    Attributes:
        projection: onto heads * c channels, in the order of the product's rows.
        argument: of the module, from which it is projected.
        arrived: the argument's codes at the projection's input: (channels, pixels).
        normalised: every row is divided by its norm, or by something made of it that is still to be checked.
        temperature: (heads,), what rows are multiplied by behind that.
        beside: the steps that multiply by what is not constant.
        size: height and width of the maps that a depthwise part works on.
        made: the operators that project, the last one first, with the channels of their results that count.
        sources: of two, the channel of the first one's result that each channel of the last one's is made of.
    """

    projection: Projection
    argument: Value
    arrived: Tensor
    normalised: bool
    temperature: Tensor
    beside: tuple[Step, ...]
    size: tuple[int, int] | None
    made: tuple[tuple[Operation, Tensor], ...]
    sources: Tensor | None


def read_side(name: str, side: Side, stops: Collection[Value]) -> ReadSide:
    """Read the projection behind a side, up to one of the module's arguments.

    Args:
        name: "queries", "keys" or "values", for messages.
        side: as :func:`~csa2glmha.reading.find.side_of` gave it.
        stops: the arguments of the module.

    Raises:
        Unreadable: it is not a pointwise projection, maybe with a depthwise one behind it.
    """
    made = side.trail.source.producer
    if not is_projection(made):
        raise Unreadable(f"no projection of {name} inside the module")
    assert made is not None
    last = read_linear(made, name)
    scale, shift, temperature, normalised, beside = _along(name, side)
    table = side.channels.flatten()
    sources = None
    if last.kernel is None:
        assert last.matrix is not None
        projection, first, size = Projection(last.matrix, last.bias), last, None
    else:
        projection, first, sources = _separable(name, last, stops)
        size = (last.source.shape[-2], last.source.shape[-1])
    way = trail(first.source, lambda value: value in stops)
    _only_moves(name, way, stops)
    arrived = first.rows(way.replay(codes(way.source)))
    projection = chosen(affine(projection, scale, shift), table)
    parts = ((made, table),) if sources is None else ((made, table), (first.operation, sources[table]))
    return ReadSide(projection, way.source, arrived, normalised, temperature, beside, size, parts, sources)


def _along(name: str, side: Side) -> tuple[Tensor, Tensor | None, Tensor, bool, tuple[Step, ...]]:
    """Between a projection and its product: scale and shift of channels, temperature, and the rest."""
    steps, source = side.trail.steps, side.trail.source
    width = source.shape[channel_axis(source)]
    channels = channels_of(source)
    own = [position for position, step in enumerate(steps) if step.kind == "own"]
    scale, shift, after = torch.ones(width), None, torch.ones(width)
    beside = []
    for position, step in enumerate(steps):
        if step.kind == "scale":
            factor = by_channel(step, channels, width, name)
            if own and position > own[-1]:
                after = after * factor
            else:
                scale, shift = scale * factor, None if shift is None else shift * factor
        elif step.kind == "shift" and not own:
            term = by_channel(step, channels, width, name)
            shift = term if shift is None else shift + term
        elif step.kind not in ("move", "own"):
            beside.append(step)
        channels = step.replay(channels)
    rows = after[side.channels]
    if not torch.allclose(rows, rows[:, :1].expand_as(rows), rtol=1e-6):
        raise Unreadable(f"a temperature for every channel of its {name}, not for every head")
    return scale, shift, rows[:, 0], bool(own), tuple(beside)


def by_channel(step: Step, channels: Tensor, width: int, name: str) -> Tensor:
    """The constant of a step for every channel, given the channel of every number of its source.

    Raises:
        Unreadable: it differs from pixel to pixel.
    """
    constant = constant_of(step).float().cpu().expand(step.result.shape)
    channels = channels.expand(step.result.shape).long()
    values = torch.ones(width)
    values[channels.flatten()] = constant.flatten()
    if not torch.equal(values[channels], constant):
        raise Unreadable(
            f"its {name} are multiplied by, or shifted by, constants that differ from pixel to pixel"
        )
    return values


def _separable(name: str, last: Linear, stops: Collection[Value]) -> tuple[Projection, Linear, Tensor | None]:
    """A depthwise layer with the pointwise one before it, if any, and the first of the two.

    Where there are two, also the channel of the first one's result that each channel is made of.
    """
    assert last.kernel is not None and last.inputs is not None
    between = trail(last.source, stop_at(stops))
    made = between.source.producer
    if between.source in stops:
        width = last.source.shape[1]
        first, matrix, bias = last, torch.eye(width), None
        channels = torch.arange(width)
    else:
        if not is_projection(made):
            raise Unreadable(f"no projection of {name} inside the module")
        assert made is not None
        first = read_linear(made, name)
        if first.matrix is None:
            raise Unreadable(f"two depthwise convolutions make its {name}")
        problem = between.first_other()
        if problem is not None:
            raise Unreadable(f"{words(problem.operation)} between the projections of its {name}")
        matrix, bias = first.matrix, first.bias
        channels = _channels_between(name, between)
    rows = channels[last.inputs]
    pointwise_bias = None if bias is None else bias[rows]
    projection = Projection(matrix[rows], pointwise_bias, last.kernel, last.bias, last.dilation)
    return projection, first, None if first is last else rows


def _channels_between(name: str, between: Trail) -> Tensor:
    """The channel of the trail's source behind every channel of the map that it ends in."""
    source = between.source
    channel = between.replay(channels_of(source)).flatten(2)[0]
    pixel = between.replay(pixels_of(source)).flatten(2)[0]
    raster = torch.arange(pixel.shape[1])
    if not bool((channel == channel[:, :1]).all()) or not bool((pixel == raster).all()):
        raise Unreadable(f"pixels or channels are exchanged between the projections of its {name}")
    return channel[:, 0].long()


def _only_moves(name: str, way: Trail, stops: Collection[Value]) -> None:
    if way.source in stops and way.only_moves:
        return
    other = way.first_other()
    made = other.operation if other is not None else way.source.producer
    if made is None:
        raise Unreadable(f"its {name} are projected from something that is no argument of the module")
    raise Unreadable(f"{words(made)} before the projection of its {name}, inside the module")


def affine(projection: Projection, scale: Tensor, shift: Tensor | None) -> Projection:
    """The projection with every channel of its result multiplied, and shifted."""
    changed = not torch.equal(scale, torch.ones_like(scale))
    if changed:
        by = scale.to(projection.pointwise)
        if projection.depthwise is None:
            bias = projection.pointwise_bias
            projection = replace(
                projection,
                pointwise=projection.pointwise * by[:, None],
                pointwise_bias=None if bias is None else bias * by,
            )
        else:
            bias = projection.depthwise_bias
            projection = replace(
                projection,
                depthwise=projection.depthwise * by[:, None, None],
                depthwise_bias=None if bias is None else bias * by,
            )
    if shift is None:
        return projection
    if projection.depthwise is None:
        bias = projection.pointwise_bias
        return replace(projection, pointwise_bias=shift if bias is None else bias + shift)
    bias = projection.depthwise_bias
    return replace(projection, depthwise_bias=shift if bias is None else bias + shift)


def chosen(projection: Projection, rows: Tensor) -> Projection:
    """The projection onto these channels, in this order."""

    def of(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows].clone()

    pointwise = of(projection.pointwise)
    assert pointwise is not None
    return Projection(
        pointwise,
        of(projection.pointwise_bias),
        of(projection.depthwise),
        of(projection.depthwise_bias),
        projection.dilation,
    )
