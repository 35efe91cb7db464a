"""From the attended values to what the module returns: output projection, bias, and what is added."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from csa2glmha.attention.layout import Layout
from csa2glmha.reading.find import Pair, Side
from csa2glmha.reading.linear import Linear, Unreadable, read_linear, words
from csa2glmha.reading.operands import channel_axis, channels_of, codes, is_projection, pixels_of
from csa2glmha.reading.projections import by_channel
from csa2glmha.reading.recording import Call, Recording, Value, values_in
from csa2glmha.reading.trails import Step, Trail, last_step, trail
from csa2glmha.reading.wiring import LAYOUTS, Branch, as_matrix, layout_of, size_in


@dataclass(frozen=True)
class ReadOutput:
    """What is made of the attended values.

    Attributes:
        matrix: (out, heads * c).
        bias: (out,) or None.
        layout: of what the module returns.
        branch: a module that makes something of V, which is added.
        size: height and width of the result, or of what the branch takes; None: neither is a map.
    """

    matrix: Tensor
    bias: Tensor | None
    layout: Layout
    branch: Branch | None
    size: tuple[int, int] | None


def read_output(recording: Recording, call: Call, pair: Pair, values: Side) -> ReadOutput:
    """Read what happens between the second product and the end of the call.

    Raises:
        Unreadable: more than an output projection, constants, and a branch that one module makes of V.
    """
    outputs = call.outputs
    if len(outputs) != 1:
        raise Unreadable(f"the module returns {len(outputs)} tensors")
    (output,) = outputs
    dependent = _dependent(recording, pair.result, call)
    steps, linear = _steps_behind(output, dependent, pair)
    start = pair.result if linear is None else linear.operation.outputs[0]
    width = pair.mixed(pair.result.tensor).shape[:2].numel()
    if linear is None:
        matrix, bias, arrived = torch.eye(width), None, _attended(pair, values, codes(pair.result))
    else:
        matrix, bias, arrived = _projection(linear, pair, values, dependent)
    order = _order(start, arrived, steps, output)
    matrix, bias, layout = _affine(matrix, bias, start, steps, output, order)
    added = [step for step in steps if step.kind == "other"]
    branch, size = None, size_in(output.shape, layout)
    if added:
        branch, taken = _branch(recording, call, added, steps, layout, values)
        size = size or size_in(taken.shape, branch.entry)
    return ReadOutput(matrix, bias, layout, branch, size)


def _dependent(recording: Recording, result: Value, call: Call) -> set[Value]:
    """All values of the call that the attended values have a part in."""
    reached = {result}
    for operation in recording.operations[: call.last]:
        if any(value in reached for value in operation.inputs):
            reached.update(operation.outputs)
    return reached


def _steps_behind(
    output: Value, dependent: Collection[Value], pair: Pair
) -> tuple[list[Step], Linear | None]:
    """The steps from the output projection, or the attended values, to the output, in their order."""
    steps: list[Step] = []
    at = output
    while at is not pair.result:
        made = at.producer
        if at not in dependent or made is None:
            raise Unreadable("what the module returns is not made of the attention alone")
        if is_projection(made):
            return steps, read_linear(made, "result")
        step = last_step(at)
        sources = [value for value in made.inputs if value in dependent]
        if step is None or len(sources) != 1:
            twice = len(sources) > 1
            raise Unreadable(
                "the attended values are used twice" if twice else f"{words(made)} after the attention"
            )
        if step.kind == "own":
            step = Step("other", made, sources[0], at, step.beside)
        if step.kind == "other":
            beside = [value for value in values_in((made.args, dict(made.kwargs))) if value is not sources[0]]
            if (
                made.name.rstrip("_") != "add"
                or made.kwargs
                or len(beside) != 1
                or beside[0].shape != at.shape
            ):
                raise Unreadable(f"{words(made)} after the attention")
            step = Step("other", made, sources[0], at, beside[0])
        steps.insert(0, step)
        at = step.source
    return steps, None


def _attended(pair: Pair, values: Side, index: Tensor) -> Tensor:
    """A tensor of numbers of the attended values as (heads * c, pixels in raster order)."""
    rows = pair.mixed(index).flatten(0, 1)
    ordered = torch.empty_like(rows)
    ordered[:, values.pixels] = rows
    return ordered


def _projection(
    linear: Linear, pair: Pair, values: Side, dependent: Collection[Value]
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The output projection in the order of the canonical form, its bias, and codes of its result."""
    if linear.matrix is None:
        raise Unreadable("its output is projected by a depthwise convolution")
    if linear.source not in dependent:
        raise Unreadable("what the module returns is not made of the attention alone")
    way = trail(linear.source, lambda value: value is pair.result or is_projection(value.producer))
    other = way.first_other()
    if other is not None:
        raise Unreadable(f"{words(other.operation)} between the attention and its output projection")
    if way.source is not pair.result:
        made = way.source.producer
        assert made is not None
        raise Unreadable(f"{words(made)} between the attention and its output projection")
    arrived = linear.rows(way.replay(codes(pair.result)))
    attended = _attended(pair, values, codes(pair.result))
    where = {code: row for row, code in enumerate(attended[:, 0].tolist())}
    order = [where.get(code, -1) for code in arrived[:, 0].tolist()]
    if -1 in order or not torch.equal(attended[order], arrived):
        raise Unreadable("channels and pixels of the attended values are mixed before the output projection")
    matrix = torch.zeros_like(linear.matrix)
    matrix[:, order] = linear.matrix
    result = linear.operation.outputs[0]
    return matrix, linear.bias, linear.rows(codes(result))


def _order(start: Value, arrived: Tensor, steps: list[Step], output: Value) -> tuple[Layout, tuple[int, ...]]:
    """The layout of the output, and which channel of the start each of its channels is."""
    index = codes(start)
    for step in steps:
        index = step.replay(index)
    known = {code: channel for channel, code in enumerate(arrived[:, 0].tolist())}
    for layout in LAYOUTS:
        matrix = as_matrix(index, layout)
        if matrix is None or matrix.shape != arrived.shape:
            continue
        order = [known.get(code, -1) for code in matrix[:, 0].tolist()]
        if -1 not in order and torch.equal(arrived[order], matrix):
            return layout, tuple(order)
    raise Unreadable("what the module returns is no map of its pixels in their order")


def _affine(
    matrix: Tensor,
    bias: Tensor | None,
    start: Value,
    steps: list[Step],
    output: Value,
    order: tuple[Layout, tuple[int, ...]],
) -> tuple[Tensor, Tensor | None, Layout]:
    """Constants behind the projection in its matrix and bias, channels in the order of the output."""
    layout, channels = order
    width = start.shape[channel_axis(start)]
    index = channels_of(start)
    constants = [step for step in steps if step.kind in ("scale", "shift")]
    if constants and width != matrix.shape[0]:
        raise Unreadable(f"{words(constants[0].operation)} after the attention")
    for step in steps:
        if step in constants:
            constant = by_channel(step, index, width, "results").to(matrix)
            if step.kind == "scale":
                matrix = matrix * constant[:, None]
                bias = None if bias is None else bias * constant
            else:
                bias = constant if bias is None else bias + constant
        index = step.replay(index)
    rows = torch.tensor(channels)
    return matrix[rows].clone(), None if bias is None else bias[rows].clone(), layout


def _branch(
    recording: Recording,
    call: Call,
    added: list[Step],
    steps: list[Step],
    layout: Layout,
    values: Side,
) -> tuple[Branch, Value]:
    """The module that makes what is added to the result, of V, and what it takes.

    Raises:
        Unreadable: there is none.
    """
    if len(added) > 1:
        raise Unreadable("more than one thing is added to the attention's result")
    (addition,) = added
    beside = addition.beside
    assert isinstance(beside, Value)
    whole = trail(beside, lambda value: False)
    on_the_way = {whole.source, beside, *(step.result for step in whole.steps if step.kind == "move")}
    for inner in recording.calls:  # outer calls come before the ones inside
        within = inner is not call and call.first <= inner.first and inner.last <= call.last
        named = inner.path.startswith(call.path + ".") if call.path else True
        if (
            not within
            or not named
            or inner.first == inner.last
            or len(inner.outputs) != 1
            or len(inner.inputs) != 1
        ):
            continue
        (made,), (taken,) = inner.outputs, inner.inputs
        entry = trail(taken, lambda value: value is values.trail.source)
        behind = trail(beside, lambda value, made=made: value is made)  # type: ignore[misc]
        if made not in on_the_way or entry.source is not values.trail.source or not entry.only_moves:
            continue
        if behind.source is made and behind.only_moves:
            after = steps[steps.index(addition) + 1 :]
            name = inner.path[len(call.path) + 1 :] if call.path else inner.path
            return _wired_branch(name, made, entry, behind, after, layout, values), taken
    raise Unreadable("something that is not one module's result of V is added to the attention's result")


def _wired_branch(
    name: str,
    made: Value,
    entry: Trail,
    behind: Trail,
    after: list[Step],
    layout: Layout,
    values: Side,
) -> Branch:
    if any(step.kind != "move" for step in after):
        raise Unreadable("the attention's result is changed after something was added to it")
    if any(step.kind in ("scale", "shift", "own") for step in values.trail.steps):
        raise Unreadable("what is added to the attention's result is made of V before a constant is put on V")
    index = behind.replay(codes(made))
    for step in after:
        index = step.replay(index)
    out = as_matrix(index, layout)
    result = None if out is None else layout_of(made, out)
    if result is None or result[1]:
        raise Unreadable(
            "what is added to the attention's result has its channels or pixels in another order"
        )
    entered, order = _branch_entry(entry, values)
    return Branch(module=name, entry=entered, result=result[0], order=order)


def _branch_entry(entry: Trail, values: Side) -> tuple[Layout, tuple[int, ...]]:
    """The layout in which the branch takes V, and the order of its channels."""
    channels, pixels = entry.replay(channels_of(entry.source)), entry.replay(pixels_of(entry.source))
    row_of = {channel: row for row, channel in enumerate(values.channels.flatten().tolist())}
    for layout in LAYOUTS:
        channel, pixel = as_matrix(channels, layout), as_matrix(pixels, layout)
        if channel is None or pixel is None or channel.shape[0] != len(row_of):
            continue
        raster = torch.arange(channel.shape[1])
        order = [row_of.get(each, -1) for each in channel[:, 0].tolist()]
        if -1 in order or not bool((channel == channel[:, :1]).all()) or not bool((pixel == raster).all()):
            continue
        return layout, () if order == list(range(len(order))) else tuple(order)
    raise Unreadable("what is added to the attention's result is made of V in an order of its own")
