"""Finding attention in a recording, and whether it is across channels.

Attention is a matrix product of two maps, a few views, a temperature and a softmax, and a second product with
a third map; or all that in one fused operator. It is *channel* attention if every row that goes into the
first product is one channel, at all pixels: index tensors show it, whatever the views and the names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from csa2glmha.reading.operands import (
    channel_axis,
    channels_of,
    codes,
    factors,
    is_product,
    is_projection,
    pixels_of,
)
from csa2glmha.reading.recording import Operation, Recording, Value
from csa2glmha.reading.trails import ELEMENTWISE, LONGEST, MOVES, Step, Trail, last_step, stop_at, trail

#: Operators that may lie between the products, besides those that a trail takes.
_BETWEEN = MOVES | ELEMENTWISE | frozenset(("topk", "sort", "scatter", "gather", "masked_fill", "max", "sum"))


@dataclass(frozen=True)
class Pair:
    """Two products with the attention weights between them, or one fused operator that is both.

    The operands are as the operators take them: (B', rows, pixels) or with the last two axes exchanged.

    Attributes:
        queries: the side of the first product whose rows are those of the result.
        keys: the other side.
        values: the other side of the second product.
        between: what happened between the products, in its order.
        flipped: the first product has keys as rows.
    """

    first: Operation
    second: Operation
    queries: Value
    keys: Value
    values: Value
    between: tuple[Step, ...]
    flipped: bool = False

    @property
    def fused(self) -> bool:
        """Both products are in one operator."""
        return self.first is self.second

    @property
    def weights(self) -> Value | None:
        """The attention weights as the second product takes them."""
        return None if self.fused else _other(factors(self.second), self.values)

    def weights_by_queries(self, tensor: Tensor) -> Tensor:
        """A tensor in the place of the weights, as (B', queries, keys)."""
        tensor = tensor.flatten(0, -3) if tensor.ndim > 2 else tensor[None]
        return tensor.transpose(1, 2) if self.values is factors(self.second)[0] else tensor

    def operand(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor in the place of queries, keys or values, as (B', rows, pixels)."""
        tensor = tensor.flatten(0, -3) if tensor.ndim > 2 else tensor[None]
        left = (
            factors(self.first if name in ("queries", "keys") else self.second)[0] if not self.fused else None
        )
        turned = {
            "queries": self.queries is not left,
            "keys": self.keys is not left,
            "values": self.values is left,
        }
        if self.fused or not turned[name]:
            return tensor
        return tensor.transpose(1, 2)

    @property
    def result(self) -> Value:
        """What the second product gave."""
        return self.second.outputs[0]

    def mixed(self, tensor: Tensor) -> Tensor:
        """A tensor in the place of the result, as (B', rows, pixels)."""
        tensor = tensor.flatten(0, -3) if tensor.ndim > 2 else tensor[None]
        left = None if self.fused else factors(self.second)[0]
        return tensor.transpose(1, 2) if self.values is left else tensor


@dataclass(frozen=True)
class Side:
    """Where the rows of queries, keys or values come from.

    Attributes:
        trail: from what a projection made, or from where the trail ends, to the operand.
        channels: (B', rows), the channel of that source in every row.
        pixels: (pixels,), the same in all rows.
        kind: "channel" (all pixels of one channel in each row), "window" (some of them), "spatial" (all rows
            of a column at one pixel) or "mixed".
    """

    trail: Trail
    channels: Tensor
    pixels: Tensor
    kind: str


def find_attention(recording: Recording) -> list[Pair]:
    """Every pair of products with attention weights in between, in the order in which they ran."""
    found: list[Pair] = []
    for operation in recording.operations:
        if operation.name.startswith("_scaled_dot_product") and "backward" not in operation.name:
            queries, keys, values = operation.args[:3]
            found.append(Pair(operation, operation, queries, keys, values, ()))
        elif is_product(operation):
            found += _pairs_ending_in(operation)
    return found


def _pairs_ending_in(second: Operation) -> Iterator[Pair]:
    for weights in factors(second):
        first, steps = _product_behind(weights)
        if first is None:
            continue
        values = _other(factors(second), weights)
        rows_first = _rows_first(first, steps, weights, left=weights is factors(second)[0])
        if rows_first is None:
            continue
        left, right = factors(first)
        queries, keys = (left, right) if rows_first else (right, left)
        yield Pair(first, second, queries, keys, values, tuple(steps), flipped=not rows_first)


def _product_behind(weights: Value) -> tuple[Operation | None, list[Step]]:
    """The product that attention weights were made of, and the way from it; None: there is none."""
    todo: list[tuple[Value, list[Step]]] = [(weights, [])]
    seen: set[Value] = set()
    while todo:
        value, steps = todo.pop()
        made = value.producer
        if made is None or value.constant or value in seen or len(steps) > LONGEST:
            continue
        seen.add(value)
        if is_product(made) and value is not weights:
            return made, steps
        if is_product(made) and not steps:
            return made, steps
        if is_projection(made) or made.name.rstrip("_") not in _BETWEEN:
            continue
        step = last_step(value)
        sources = [step.source] if step is not None else []
        others = [each for each in made.inputs if not each.constant and each not in sources]
        for source in (*others, *sources):  # the one that matters is taken first
            known = step if step is not None and source is step.source else None
            todo.append((source, [known or Step("other", made, source, value), *steps]))
    return None, []


def _rows_first(first: Operation, steps: list[Step], weights: Value, left: bool) -> bool | None:
    """Whether rows of the first product are rows of the result; None: they are neither rows nor columns."""
    product = first.outputs[0]
    *_, rows, columns = product.shape
    index = codes(product)
    for step in steps:
        if step.kind == "move":
            index = step.replay(index)
        elif tuple(index.shape) != step.result.shape:
            return None
    index = index.flatten(0, -3) if index.ndim > 2 else index[None]
    if not left:
        index = index.transpose(1, 2)
    row, column = index // columns % rows, index % columns
    if bool((row == row[:, :, :1]).all()) and bool((column == column[:, :1]).all()):
        return True
    if bool((column == column[:, :, :1]).all()) and bool((row == row[:, :1]).all()):
        return False
    return None


def _other(pair: tuple[Value, Value], one: Value) -> Value:
    return pair[1] if pair[0] is one else pair[0]


def across_channels(pair: Pair) -> bool:
    """Its queries or keys are channels, at all pixels or at some."""
    kinds = {side_of(pair, name).kind for name in ("queries", "keys")}
    return "channel" in kinds or kinds == {"window"}


def side_of(pair: Pair, name: str, stops: tuple[Value, ...] = ()) -> Side:
    """Where the rows of "queries", "keys" or "values" come from.

    Args:
        pair: the attention.
        name: which.
        stops: go no further back than these.
    """
    operand: Value = getattr(pair, name)
    way = trail(operand, stop_at(stops))
    channel = pair.operand(name, way.replay(channels_of(way.source)))
    pixel = pair.operand(name, way.replay(pixels_of(way.source)))
    total = way.source.tensor.numel() // way.source.shape[channel_axis(way.source)]
    return Side(way, channel[..., 0].long(), pixel[0, 0].long(), _kind(channel, pixel, total))


def _kind(channel: Tensor, pixel: Tensor, total: int) -> str:
    one_channel = bool((channel == channel[..., :1]).all())
    one_pixel = bool((pixel == pixel[..., :1]).all())
    if one_channel and not (one_pixel and pixel.shape[-1] > 1):
        same = bool((pixel == pixel[:1, :1]).all())
        whole = pixel.shape[-1] == total == int(pixel[0, 0].unique().numel())
        return "channel" if same and whole else "window"
    return "spatial" if one_pixel else "mixed"
