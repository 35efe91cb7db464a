"""The attention layers of a network as tiles share them: see :mod:`csa2glmha.attention.core`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from csa2glmha.attention.core import Moments, Region, SharedAttention, applied, everywhere
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import AttentionLayer, attention_layers, glmha_layers


def shared_layers(model: RestorationModel) -> dict[str, SharedAttention]:
    """All attention layers of a network, converted or not, by the names of their modules.

    Converted ones have the three steps themselves; the others are read.
    """
    layers: dict[str, SharedAttention] = {
        name: UnconvertedAttention(layer) for name, layer in attention_layers(model).items()
    }
    return layers | glmha_layers(model)


class UnconvertedAttention:
    """A channel attention of the network's own, by its canonical form."""

    def __init__(self, layer: AttentionLayer) -> None:
        self._layer, self._form = layer, layer.form

    def moments_of(self, args: tuple[Any, ...], region: Region = everywhere) -> Moments:
        x, form = self._layer.reader.attention_input(args), self._form
        queries, keys = (region(part.spread(part.mix(x))) for part in (form.queries, form.keys))
        return form.moments(queries, keys)

    def matrix(self, moments: Moments) -> Tensor:
        return self._form.matrix(moments)

    def apply_matrix(self, args: tuple[Any, ...], matrix: Tensor) -> Tensor:
        reader, form, module = self._layer.reader, self._form, self._layer.module
        values = form.values.spread(form.values.mix(reader.attention_input(args)))
        factors = reader.value_factors(module, args)
        y = applied(matrix, values if factors is None else values * factors, form.output_bias)
        branch = reader.value_branch(module)
        return y if branch is None else y + branch(values)
