"""Tiles of one image going through a network side by side, sharing every layer's attention map.

The tiles are the batch. Attention layers make one map for all of them, and whatever needs much memory on
the way takes the tiles one after the other, so that the batch costs no more than what has to be kept: the
features between the blocks. Later, single tiles go through the same network with those maps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from csa2glmha.core.errors import Csa2GlmhaError
from csa2glmha.families.restormer.network import TransformerBlock
from csa2glmha.families.spectral.blocks import SpectralBlocks
from csa2glmha.inference.grid import Tile
from csa2glmha.inference.split import SplitAttention, split_layers, weighted_mean
from csa2glmha.networks import RestorationModel


@dataclass
class SharedMaps:
    """The attention maps of one image.

    Attributes:
        tiles: those in the batch, whose cores the maps are being made from; None: the maps are there.
        matrices: the maps by the ``id`` of their layer.
        on_layer: called after each map that was made.
        layers: the names of all layers that are to make one, by their ``id``.
    """

    tiles: Sequence[Tile] | None = None
    matrices: dict[int, Tensor] = field(default_factory=dict)
    on_layer: Callable[[], object] | None = None
    layers: dict[int, str] = field(default_factory=dict)

    def check_complete(self) -> None:
        """Make sure that no layer took the map of a single tile, without a word.

        Raises:
            Csa2GlmhaError: names the first layer that made no map of the image.
        """
        missing = [name for key, name in self.layers.items() if key not in self.matrices]
        if missing:
            raise Csa2GlmhaError(
                f"{len(missing)} of {len(self.layers)} attention layers made no map of the whole image, "
                f"first {missing[0]}: tiles of this network cannot share maps; use --tile-mode plain"
            )

    def attend(self, layer: SplitAttention, x: Tensor, arguments: Callable[[int], tuple[Any, ...]]) -> Tensor:
        """x (tiles, C, H, W) plus the layer's output; ``arguments`` gives those of its call for one tile."""
        if self.tiles is not None:
            self.matrices[id(layer)] = layer.matrix(
                weighted_mean(
                    [
                        (layer.moments(arguments(index), tile.core(*x.shape[-2:])), tile.core_pixels)
                        for index, tile in enumerate(self.tiles)
                    ]
                )
            )
            if self.on_layer is not None:
                self.on_layer()
        matrix = self.matrices[id(layer)]
        result = torch.empty_like(x)
        for index in range(len(x)):
            # What the maps are made from and what they are applied to is computed anew, not kept: all tiles
            # but one would only be waiting with it.
            torch.add(
                x[index : index + 1],
                layer.apply(arguments(index), matrix),
                out=result[index : index + 1],
            )
        return result


@contextlib.contextmanager
def lockstep(model: RestorationModel) -> Iterator[SharedMaps]:
    """Let the tiles in a batch share attention maps, as long as the block lasts; not for training.

    Yields:
        Where to set the tiles before a batch of them, and ``tiles = None`` before running others by the
        maps that this has made.
    """
    split = split_layers(model)
    names = {id(split[id(module)]): name for name, module in model.named_modules() if id(module) in split}
    maps = SharedMaps(layers=names)
    replaced = []
    for name, module in _parts(model, split):
        replaced.append((name, module))
        model.set_submodule(name, _stand_in(module, split, maps))
    try:
        yield maps
    finally:
        for name, module in replaced:
            model.set_submodule(name, module)


def _parts(model: nn.Module, split: dict[int, SplitAttention]) -> list[tuple[str, nn.Module]]:
    """The blocks, and the largest modules between them; together all that has parameters."""
    found = []

    def visit(name: str, module: nn.Module) -> None:
        attends = any(id(each) in split for each in module.modules())
        if not attends or isinstance(module, (TransformerBlock, SpectralBlocks)):
            found.append((name, module))
            return
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", model)
    return found


def _stand_in(module: nn.Module, split: dict[int, SplitAttention], maps: SharedMaps) -> nn.Module:
    if isinstance(module, TransformerBlock):
        return _SharingTransformerBlock(module, split[id(module.attn)], maps)
    if isinstance(module, SpectralBlocks):
        return _SharingSpectralBlocks(module, split, maps)
    return _OneByOne(module)


class _OneByOne(nn.Module):
    """A module that treats the batch's entries independently, called for each of them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        first = self.inner(x[:1])
        if len(x) == 1:
            return first
        result = first.new_empty(len(x), *first.shape[1:])
        result[:1] = first
        del first
        for index in range(1, len(x)):
            result[index : index + 1] = self.inner(x[index : index + 1])
        return result


class _SharingTransformerBlock(nn.Module):
    """A block of Restormer."""

    def __init__(self, block: TransformerBlock, layer: SplitAttention, maps: SharedMaps) -> None:
        super().__init__()
        self.block, self._layer, self._maps = block, layer, maps

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        x = self._maps.attend(self._layer, x, lambda index: (block.norm1(x[index : index + 1]),))
        return _add_each(x, lambda tile: block.ffn(block.norm2(tile)))


class _SharingSpectralBlocks(nn.Module):
    """A sequence of blocks of MST or MST++."""

    def __init__(self, blocks: SpectralBlocks, split: dict[int, SplitAttention], maps: SharedMaps) -> None:
        super().__init__()
        self.inner, self._split, self._maps = blocks, split, maps

    def forward(self, x: Tensor, *guides: Tensor) -> Tensor:
        for block in self.inner.blocks:
            attention, feed_forward = block.children()
            x = self._maps.attend(self._split[id(attention)], x, _single(x, *guides))
            x = _add_each(x, feed_forward)
        return x


def _single(*batches: Tensor) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda index: tuple(batch[index : index + 1] for batch in batches)


def _add_each(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Add the function of each of the batch's entries to it, in place."""
    for index in range(len(x)):
        x[index : index + 1] += function(x[index : index + 1])
    return x
