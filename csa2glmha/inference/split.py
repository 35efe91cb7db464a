"""The layers of a network that tiles share: see :mod:`csa2glmha.attention.core`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from csa2glmha.attention.core import Moments, Region, SharedLayer, applied, everywhere
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.foreign import users_own
from csa2glmha.reading.layers import AttentionLayer, attention_layers
from csa2glmha.reading.map_only import MapOnlyReader


def shared_layers(model: RestorationModel) -> dict[str, SharedLayer]:
    """All layers of a network that look at all pixels at once, by the names of their modules.

    Converted attention has the three steps itself, and so have layers that are none; other attention is read.
    """
    layers: dict[str, SharedLayer] = {
        name: _unconverted(layer) for name, layer in attention_layers(model).items()
    }
    for name, module in users_own(model).named_modules():
        if isinstance(module, SharedLayer):
            layers[name] = module
    return layers


def _unconverted(layer: AttentionLayer) -> SharedLayer:
    reader = layer.reader
    return UnconvertedMap(layer, reader) if isinstance(reader, MapOnlyReader) else UnconvertedAttention(layer)


class UnconvertedAttention:
    """A channel attention of the network's own, by its canonical form."""

    def __init__(self, layer: AttentionLayer) -> None:
        self._layer, self._form = layer, layer.form

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        return self._layer.reader.bind(args, kwargs)

    def moments_of(self, args: tuple[Any, ...], region: Region = everywhere) -> Moments:
        queries, keys = self._form.queries_and_keys(self._layer.reader.attention_inputs(args))
        return self._form.moments(region(queries), region(keys))

    def matrix(self, moments: Moments) -> Tensor:
        return self._form.matrix(moments)

    def apply_matrix(self, args: tuple[Any, ...], matrix: Tensor) -> Any:
        reader, form, module = self._layer.reader, self._form, self._layer.module
        values = form.values.maps(reader.attention_inputs(args)[0])
        factors = reader.value_factors(module, args)
        y = applied(matrix, values if factors is None else values * factors, form.output_bias)
        branch = reader.value_branch(module)
        return reader.module_output(args, y if branch is None else y + branch(values))


class UnconvertedMap:
    """The same where the module mixes the values itself."""

    def __init__(self, layer: AttentionLayer, reader: MapOnlyReader) -> None:
        # Its call goes elsewhere while maps are shared.
        self._reader, self._form, self._forward = reader, layer.form, layer.module.forward

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        return self._reader.bind(args, kwargs)

    def moments_of(self, args: tuple[Any, ...], region: Region = everywhere) -> Moments:
        queries, keys = self._form.queries_and_keys(self._reader.attention_inputs(args))
        return self._form.moments(region(queries), region(keys))

    def matrix(self, moments: Moments) -> Tensor:
        """The map (B, heads, c, c)."""
        return self._form.attention(self._form.logits_of(moments))

    def apply_matrix(self, args: tuple[Any, ...], matrix: Tensor) -> Any:
        return self._reader.with_map(self._forward, args, matrix)
