"""A module that runs with an attention map that it is given, in the place of the one that it would make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from csa2glmha.core.errors import Csa2GlmhaError
from csa2glmha.reading.find import Pair
from csa2glmha.reading.linear import Unreadable
from csa2glmha.reading.operands import codes
from csa2glmha.reading.products import OnProducts
from csa2glmha.reading.recording import Call, Value
from csa2glmha.reading.trails import trail
from csa2glmha.reading.wiring import Index, WiringPart

Result = TypeVar("Result")


class GivenMap(WiringPart):
    """Where a module's code uses its attention map.

    Attributes:
        logits: number of the product that makes them among those of a call; None: one function does all.
        shape: that this product gives for one image.
        mixing: number of the product of the map with the values.
        place: of the map among the tensors that this product takes.
        turned: it takes the map as (..., keys, queries).
    """

    logits: Index | None
    shape: tuple[Index, ...]
    mixing: Index
    place: Index
    turned: bool

    def check(self, heads: int, c: int) -> None:
        """Raise ValueError, in one line, unless a map of so many heads and channels is meant."""
        if self.logits is not None and (prod(self.shape) != heads * c**2 or self.logits >= self.mixing):
            raise ValueError(f"given: no logits of {heads} heads of {c} channels")

    def run(self, module: Callable[[], Result], attention: Tensor) -> Result:
        """What ``module`` gives with this map (B, heads, c, c).

        Raises:
            Csa2GlmhaError: it did not use it.
        """

        def instead(
            number: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
        ) -> Any:
            if number == self.logits:
                return attention.new_zeros((attention.shape[0] * self.shape[0], *self.shape[1:]))
            if number != self.mixing:
                return func(*args, **kwargs)
            if self.logits is None:
                return self._mixed(attention, *args, **kwargs)
            leaves, structure = tree_flatten((args, dict(kwargs)))
            tensors = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
            taken = leaves[tensors[self.place]]
            given = attention.transpose(-2, -1) if self.turned else attention
            leaves[tensors[self.place]] = given.reshape(taken.shape).to(taken.dtype)
            args, kwargs = tree_unflatten(leaves, structure)
            return func(*args, **kwargs)

        products = OnProducts(instead)
        with products:
            result = module()
        if products.count <= self.mixing:
            raise Csa2GlmhaError(
                "a module takes another way through its code than when it was recorded, and does not use "
                "its attention map; please report this"
            )
        return result

    @staticmethod
    def _mixed(attention: Tensor, query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
        """In the place of ``scaled_dot_product_attention``."""
        given = attention.reshape(*value.shape[:-2], *attention.shape[-2:])
        return given.to(value.dtype) @ value


def read_given_map(call: Call, pair: Pair, heads: int) -> GivenMap:
    """Find the products of an attention among those that the module's code calls.

    Raises:
        Unreadable: they are none that can be seen, or take the map in another order.
    """
    first, second = pair.first.product, pair.second.product
    if first is None or second is None or len(first.outputs) != 1:
        raise Unreadable("its products are called in a way that is not known")
    mixing = second.number - call.products
    if pair.fused:
        return GivenMap(logits=None, shape=(), mixing=mixing, place=0, turned=False)
    weights = pair.weights
    assert weights is not None
    for place, taken in enumerate(second.inputs):
        turned = _turned(taken, weights, pair, heads)
        if turned is not None:
            shape = first.outputs[0].shape
            logits = first.number - call.products
            return GivenMap(logits=logits, shape=shape, mixing=mixing, place=place, turned=turned)
    raise Unreadable("its second product takes the attention map in an order of its own")


def _turned(taken: Value, weights: Value, pair: Pair, heads: int) -> bool | None:
    """Whether a tensor is the map with its last two axes exchanged; None: it is not the map in any order."""
    way = trail(weights, lambda value: value is taken)
    if way.source is not taken or not way.only_moves:
        return None
    index = pair.weights_by_queries(way.replay(codes(taken)))
    queries, keys = index.shape[-2:]
    plain = torch.arange(index.numel(), dtype=index.dtype)
    if index.shape[0] != heads:
        return None
    if torch.equal(index, plain.view(heads, queries, keys)):
        return False
    return True if torch.equal(index, plain.view(heads, keys, queries).transpose(1, 2)) else None
