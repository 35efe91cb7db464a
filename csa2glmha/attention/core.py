"""What a layer does that looks at all pixels at once, in three steps: moments -> matrix -> apply.

An attention map is made from means over pixels, and applied pixel by pixel. So a layer hands out the means
over the pixels of its input, or of a part of it; the means of all parts give one small matrix, with all
that can be folded into it; and the matrix is applied to each part by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from csa2glmha.core.errors import Csa2GlmhaError

#: What makes an attention map of logits.
Activation = Literal["softmax", "relu"]
#: Means over pixels. Of two parts of an image, the means are the weighted means of theirs.
Moments = tuple[Tensor, ...]
#: From maps (B, C, H, W) to the pixels of them that count.
Region = Callable[[Tensor], Tensor]


def everywhere(maps: Tensor) -> Tensor:
    """All pixels count."""
    return maps


def positional_only(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of a module that is called without keywords.

    Raises:
        Csa2GlmhaError: it is called with some.
    """
    if kwargs:
        raise Csa2GlmhaError(
            f"an attention module is called with keywords ({', '.join(sorted(kwargs))}), and its reader does "
            "not say what they are; please report this"
        )
    return args


def in_order(
    forward: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The arguments of a call of ``forward``, with those given by keyword in their places.

    >>> in_order(lambda x, mask=None, scale=1: x, (3,), {"scale": 2})
    (3, None, 2)
    """
    if not kwargs:
        return args
    bound = inspect.signature(forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return positional_only(bound.args, bound.kwargs)


@runtime_checkable
class TakesKeywords(Protocol):
    """A layer that may be called by keyword."""

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of a call, those given by keyword in their places."""
        ...


@runtime_checkable
class SharedLayer(Protocol):
    """A layer in those steps, an attention or another; ``args`` are those of the module's call, in order."""

    def moments_of(self, args: tuple[Any, ...], region: Region = everywhere) -> Moments:
        """What the map needs of the pixels in the region."""
        ...

    def matrix(self, moments: Moments) -> Tensor:
        """What is small, and the same for all pixels.

        Of an attention, the map with the output projection and all else folded into it: (B, out, channels
        of values).
        """
        ...

    def apply_matrix(self, args: tuple[Any, ...], matrix: Tensor) -> Any:
        """The layer's output by that, as the module returns it."""
        ...


def weighted_mean(parts: Sequence[tuple[Moments, int]]) -> Moments:
    """The moments of all pixels, from those of parts of so many pixels each."""
    total = sum(pixels for _, pixels in parts)
    weights = [pixels / total for _, pixels in parts]
    return tuple(
        torch.stack([part * weight for part, weight in zip(kind, weights, strict=True)]).sum(0)
        for kind in zip(*(moments for moments, _ in parts), strict=True)
    )


def activated(logits: Tensor, activation: Activation) -> Tensor:
    """The attention map of logits (..., c, keys)."""
    return logits.relu() if activation == "relu" else logits.softmax(-1)


def folded(output: Tensor, attention: Tensor) -> Tensor:
    """The output projection times every head's attention, one matrix that is applied to the values.

    Args:
        output: (out, heads * c).
        attention: (B, heads, c, d).

    Returns:
        (B, out, heads * d).
    """
    return folded_heads(by_heads(output, attention.shape[1]), attention)


def by_heads(output: Tensor, heads: int) -> Tensor:
    """An output projection (out, heads * c) by its heads: (heads, out, c)."""
    return output.view(output.shape[0], heads, -1).transpose(0, 1)


def folded_heads(
    output: Tensor, attention: Tensor, expand: Tensor | None = None, gate: Tensor | None = None
) -> Tensor:
    """As :func:`folded`, with what makes values of generated ones.

    Args:
        output: (heads, out, c), as :func:`by_heads` gives it.
        attention: (B, heads, c, d).
        expand: (heads, d, r), the values as mixtures of generated ones; None: used as they are, r = d.
        gate: (B, heads, 1, r), weight of each generated value; None: all count the same.

    Returns:
        (B, out, heads * r).
    """
    if expand is not None:
        attention = attention @ expand
    if gate is not None:
        attention = attention * gate
    return (output @ attention).transpose(1, 2).flatten(2)


def applied(matrix: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """A matrix (B, out, d) on every pixel of values (B, d, H, W), and a bias (out,): (B, out, H, W)."""
    y = matrix @ values.flatten(2)
    if bias is not None:
        y = y + bias.view(-1, 1)
    return y.view(y.shape[0], -1, *values.shape[-2:])
