"""Channel attention taken apart: what it needs of the whole image, and what it does to every pixel.

An attention map is made from means over pixels, and applied pixel by pixel. So tiles of one image can
share a map: each tile contributes the means over its own pixels, and all of them apply the same matrix.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from csa2glmha.attention.canonical import normalised_logits, tokens
from csa2glmha.attention.glmha import GLMHA, GuidedAttention, pooled_moments, statistics_of_moments
from csa2glmha.attention.pointwise import PointwiseGLMHA
from csa2glmha.inference.grid import Tile
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import AttentionLayer, attention_layers, glmha_layers

#: Means over pixels. Of two parts of an image, the means are the weighted means of theirs.
Moments = tuple[Tensor, ...]


class SplitAttention(Protocol):
    """One attention layer; ``args`` are those of the module's call, for one tile."""

    def moments(self, args: tuple[Any, ...], tile: Tile) -> Moments:
        """What the map needs of the pixels that the tile answers for."""
        ...

    def matrix(self, moments: Moments) -> Tensor:
        """The map of the whole image, with all that can be folded into it: (1, out, channels of values)."""
        ...

    def apply(self, args: tuple[Any, ...], matrix: Tensor) -> Tensor:
        """The layer's output (1, out, H, W) by that map."""
        ...


def split_layers(model: RestorationModel) -> dict[int, SplitAttention]:
    """All attention layers of a network, converted or not, by the ``id`` of their module."""
    split: dict[int, SplitAttention] = {
        id(layer.module): SplitCSA(layer) for layer in attention_layers(model).values()
    }
    for module in glmha_layers(model).values():
        split[id(module)] = SplitGLMHA(module) if isinstance(module, GLMHA) else SplitPointwiseGLMHA(module)
    return split


class SplitCSA:
    """Any channel attention that has an reader."""

    def __init__(self, layer: AttentionLayer) -> None:
        self._layer, self._form = layer, layer.form

    def moments(self, args: tuple[Any, ...], tile: Tile) -> Moments:
        x = self._layer.reader.attention_input(args)
        form = self._form
        rows, columns = (
            tokens(_core(part.spread(part.mix(x)), tile), form.heads) for part in (form.rows, form.columns)
        )
        cross = rows @ columns.transpose(-2, -1) / rows.shape[-1]
        return cross, rows.square().mean(-1), columns.square().mean(-1)

    def matrix(self, moments: Moments) -> Tensor:
        form = self._form
        cross, row_power, column_power = moments
        temperature = form.temperature.view(-1, 1, 1)
        attention = normalised_logits(cross, row_power, column_power, temperature).softmax(-1)
        output = form.output.view(-1, form.heads, form.head_channels).transpose(0, 1)
        return (output @ attention).transpose(1, 2).flatten(2)

    def apply(self, args: tuple[Any, ...], matrix: Tensor) -> Tensor:
        reader, form, module = self._layer.reader, self._form, self._layer.module
        values = form.values.spread(form.values.mix(reader.attention_input(args)))
        factors = reader.value_factors(module, args)
        guided = values if factors is None else values * factors
        y = matrix @ guided.flatten(2)
        if form.output_bias is not None:
            y = y + form.output_bias.view(-1, 1)
        y = y.view(y.shape[0], -1, *values.shape[-2:])
        branch = reader.value_branch(module)
        return y if branch is None else y + branch(values)


class _SplitGuided:
    """What converted layers have in common: the guide's moments follow those of the logits."""

    def __init__(self, module: GuidedAttention) -> None:
        self._guided = module

    def _pooled(self, x: Tensor, tile: Tile) -> Moments:
        return () if self._guided.guide is None else pooled_moments(_core(x, tile))

    def _guidance(self, pooled: Moments) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        guide = self._guided.guide
        if guide is None:
            return None, None, None
        return guide.from_statistics(statistics_of_moments(*pooled))

    def _fold(self, logits: Tensor, strengths: Tensor | None, value_gates: Tensor | None) -> Tensor:
        return self._guided.fold(self._guided.correct(logits, strengths).softmax(-1), value_gates)


class SplitGLMHA(_SplitGuided):
    """The layer with generated rows, columns and values."""

    def __init__(self, module: GLMHA) -> None:
        super().__init__(module)
        self._module = module

    def moments(self, args: tuple[Any, ...], tile: Tile) -> Moments:
        rows, columns, _ = (_core(maps, tile) for maps in self._module.generate(args[0]))
        return (*self._module.moments(rows, columns), *self._pooled(args[0], tile))

    def matrix(self, moments: Moments) -> Tensor:
        cross, rows, columns, *pooled = moments
        strengths, key_gates, value_gates = self._guidance(tuple(pooled))
        logits = self._module.logits_of_moments(cross, rows, columns, key_gates)
        return self._fold(logits, strengths, value_gates)

    def apply(self, args: tuple[Any, ...], matrix: Tensor) -> Tensor:
        return self._module.mix(matrix, self._module.generate_values(args[0]))


class SplitPointwiseGLMHA(_SplitGuided):
    """The layer whose queries, keys and values are pointwise projections, with what else it makes of V."""

    def __init__(self, module: GuidedAttention) -> None:
        super().__init__(module)
        assert isinstance(module, PointwiseGLMHA)
        self._module = module

    def moments(self, args: tuple[Any, ...], tile: Tile) -> Moments:
        return (self._module.gram(_core(args[0], tile)), *self._pooled(args[0], tile))

    def matrix(self, moments: Moments) -> Tensor:
        gram, *pooled = moments
        strengths, key_gates, value_gates = self._guidance(tuple(pooled))
        return self._fold(self._module.gram_logits(gram, key_gates), strengths, value_gates)

    def apply(self, args: tuple[Any, ...], matrix: Tensor) -> Tensor:
        module = self._module
        values = module.values(args[0])
        factors = module.value_factors(args)
        y = module.mix_full(matrix, values if factors is None else values * factors)
        branch = module.value_branch(values)
        return y if branch is None else y + branch


def _core(maps: Tensor, tile: Tile) -> Tensor:
    """The pixels of maps (1, C, H, W) that the tile answers for."""
    return maps[(..., *tile.core(*maps.shape[-2:]))]


def weighted_mean(parts: list[tuple[Moments, int]]) -> Moments:
    """The moments of all pixels, from those of parts of so many pixels each."""
    total = sum(pixels for _, pixels in parts)
    columns = zip(*(moments for moments, _ in parts), strict=True)
    weights = [pixels / total for _, pixels in parts]
    return tuple(
        torch.stack([part * weight for part, weight in zip(column, weights, strict=True)]).sum(0)
        for column in columns
    )
