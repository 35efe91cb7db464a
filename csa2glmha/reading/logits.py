"""What lies between the two products: temperature, norm, softmax or ReLU, or what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from csa2glmha.attention.core import Activation
from csa2glmha.reading.find import Pair
from csa2glmha.reading.linear import Unreadable, words
from csa2glmha.reading.operands import codes
from csa2glmha.reading.recording import Value
from csa2glmha.reading.trails import SOFTMAX, Step, constant_of

#: A factor is an inverse norm if it agrees with it so well.
_NORM_AGREES = 1e-4
#: What was measured is a power of the root of the number of pixels if it agrees with it so well.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ReadLogits:
    """From the first product to the attention weights.

    Attributes:
        temperature: (heads,).
        activation: "softmax" or "relu".
        normalised: of queries and keys, whether the product is divided by their norms.
        recorded: (heads, c, c), queries by keys, what went into the activation; None where it is not visible.
    """

    temperature: Tensor
    activation: Activation
    normalised: tuple[bool, bool]
    recorded: Tensor | None


def read_logits(pair: Pair, heads: int) -> ReadLogits:
    """Read what lies between the products of ``pair``.

    Raises:
        Unreadable: something other than a temperature, norms, and one softmax over the keys or one ReLU.
    """
    if pair.fused:
        return _fused(pair, heads)
    rows, columns = pair.first.outputs[0].shape[-2:]
    temperature, norms = torch.ones(heads, dtype=torch.float64), [False, False]
    index, recorded = codes(pair.first.outputs[0]), None
    activation: Activation | None = None
    _refuse_selection(pair.between)
    for step in pair.between:
        name = step.operation.name.rstrip("_")
        if step.kind == "scale" and not activation:
            temperature = temperature * _per_head(constant_of(step), step.result, heads)
        elif (
            step.kind == "other"
            and name in ("mul", "div")
            and not activation
            and isinstance(step.beside, Value)
        ):
            which, factor = _inverse_norm(pair, step, step.beside, index)
            norms = [norm or each for norm, each in zip(norms, which, strict=True)]
            temperature = temperature * factor
        elif step.kind == "other" and (step.operation.name in SOFTMAX or name == "relu") and not activation:
            activation = "softmax" if name != "relu" else "relu"
            recorded = _by_index(step.source.tensor, index)
            if name != "relu":
                _over_keys(pair, step, index, rows, columns)
        elif step.kind != "move":
            _refuse(step, activation)
        index = step.replay(index) if step.kind == "move" else index
    if activation is None:
        raise Unreadable("no softmax or ReLU between the two products")
    assert recorded is not None
    recorded = recorded.view(-1, rows, columns)
    recorded = recorded.transpose(1, 2) if pair.flipped else recorded
    return ReadLogits(temperature.float(), activation, (norms[0], norms[1]), recorded)


def _fused(pair: Pair, heads: int) -> ReadLogits:
    names = [argument.name for argument in pair.first.function._schema.arguments]  # type: ignore[attr-defined]
    given = {**dict(zip(names, pair.first.args, strict=False)), **pair.first.kwargs}
    if given.get("attn_mask", given.get("attn_bias")) is not None:
        raise Unreadable("a mask or bias is added to its logits")
    if given.get("is_causal"):
        raise Unreadable("its attention is causal")
    scale = given.get("scale")
    if scale is None:
        raise Unreadable("its logits are divided by the root of the number of pixels")
    return ReadLogits(torch.full((heads,), float(scale)), "softmax", (False, False), None)


def _refuse_selection(steps: tuple[Step, ...]) -> None:
    """Top-k is known by its selection, whatever it is made of."""
    for step in steps:
        name = step.operation.name.rstrip("_")
        if name in ("topk", "sort", "gather", "scatter"):
            raise Unreadable("top-k between the two products")
        if name in ("where", "masked_fill"):
            chosen = any(_selects(value) for value in step.operation.inputs)
            raise Unreadable(
                "top-k between the two products" if chosen else "a mask between the two products"
            )


def _selects(value: Value, depth: int = 10) -> bool:
    """A top-k is among the last operators that made ``value``."""
    made = value.producer
    if made is None or depth == 0 or value.constant:
        return False
    if made.name in ("topk", "sort", "kthvalue"):
        return True
    return any(_selects(each, depth - 1) for each in made.inputs)


def _refuse(step: Step, activation: str | None) -> None:
    if activation:
        raise Unreadable(f"{words(step.operation)} between the {activation} and the second product")
    if step.kind == "shift":
        raise Unreadable("a bias is added to its logits")
    raise Unreadable(f"{words(step.operation)} between the two products")


def _per_head(constant: Tensor, result: Value, heads: int) -> Tensor:
    expanded = constant.expand(result.shape).reshape(heads, -1)
    if not bool((expanded == expanded[:, :1]).all()):
        raise Unreadable("its temperature differs within a head")
    return expanded[:, 0].cpu()


def _by_index(tensor: Tensor, index: Tensor) -> Tensor:
    """Numbers back in the order that the first product gave them: flat."""
    flat = torch.empty(index.numel())
    flat[index.flatten().long()] = tensor.float().flatten()
    return flat


def _over_keys(pair: Pair, step: Step, index: Tensor, rows: int, columns: int) -> None:
    """Raise unless the softmax runs over the keys."""
    axis = step.operation.args[1]
    line = index.movedim(axis, -1)
    row, column = line // columns % rows, line % columns
    keys, queries = (row, column) if pair.flipped else (column, row)
    one_query = bool((queries == queries[..., :1]).all())
    all_keys = line.shape[-1] == (rows if pair.flipped else columns)
    if not one_query or not all_keys or bool((keys == keys[..., :1]).all() and keys.shape[-1] > 1):
        raise Unreadable("its softmax runs over the queries")


def _inverse_norm(pair: Pair, step: Step, beside: Value, index: Tensor) -> tuple[tuple[bool, bool], float]:
    """Which norms the logits are divided by in a step, and by what number besides.

    Raises:
        Unreadable: it is something else that depends on the input.
    """
    rows, columns = pair.first.outputs[0].shape[-2:]
    factor = _by_index(beside.tensor.expand(step.result.shape), index).view(-1, rows, columns).double()
    if step.operation.name.startswith("div"):
        factor = factor.reciprocal()
    factor = factor.transpose(1, 2) if pair.flipped else factor
    queries = pair.operand("queries", pair.queries.tensor).double()
    keys = pair.operand("keys", pair.keys.tensor).double()
    pixels = queries.shape[-1]
    queries, keys = queries.norm(dim=-1)[:, :, None], keys.norm(dim=-1)[:, None, :]
    for which, norm in (((True, False), queries), ((False, True), keys), ((True, True), queries * keys)):
        ratio = factor * norm
        middle = float(ratio.mean())
        if math.isfinite(middle) and float((ratio - middle).abs().max()) <= _NORM_AGREES * abs(middle):
            return which, _without_rounding(middle, pixels)
    raise Unreadable(f"{words(step.operation)} between the two products that depends on the input")


def _without_rounding(measured: float, pixels: int) -> float:
    """A measured factor. It is a power of the root of the number of pixels where means stand for sums."""
    powers = (pixels ** (exponent / 2) for exponent in range(-2, 3))
    return next((power for power in powers if abs(measured / power - 1) <= _ROUNDING), measured)
