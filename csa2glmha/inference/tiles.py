"""Restoring an image in tiles: each by itself, or all with the attention maps of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from csa2glmha.data.batches import Inputs
from csa2glmha.inference.grid import Tile
from csa2glmha.inference.lockstep import lockstep
from csa2glmha.networks import RestorationModel, reflect_pad_to_multiple, run, scaled
from csa2glmha.networks.foreign import is_map


def nothing() -> None:
    """What to call where nobody wants to know of the progress."""


def restore_separately(
    network: Callable[[Inputs], Tensor],
    inputs: Inputs,
    tiles: Sequence[Tile],
    on_tile: Callable[[], object] = nothing,
) -> Tensor:
    """Run the network on every tile and put their cores together.

    Args:
        network: from inputs with a batch axis of one to an output (1, C', H, W).
        inputs: of the whole image, (1, C, H, W) each; wider ones, as MST's dispersed mask, are cut as much
            wider.
        tiles: that divide the image.
        on_tile: called after each of them.

    Returns:
        (1, C', H, W) on the CPU, or as much larger as the network makes images.
    """
    return _one_by_one(lambda tile: network(cut(inputs, tile)), inputs, tiles, on_tile)


def _one_by_one(
    network: Callable[[Tile], Tensor], inputs: Inputs, tiles: Sequence[Tile], on_tile: Callable[[], object]
) -> Tensor:
    result: Tensor | None = None
    for tile in tiles:
        output = network(tile)
        if result is None:
            result = _room(inputs, output, tile)
        paste(result, output, tile)
        on_tile()
    assert result is not None, "an image has one tile at least"
    return result


@torch.inference_mode()
def restore_globally(
    model: RestorationModel,
    inputs: Inputs,
    tiles: Sequence[Tile],
    sample: Sequence[Tile],
    on_layer: Callable[[], object] = nothing,
    on_tile: Callable[[], object] = nothing,
) -> Tensor:
    """Run the network on every tile with attention maps that are made from a sample of tiles.

    In the first pass the sample goes through the network side by side, so that the maps of every layer are
    made from features that the maps before it have shaped, as in a run on the whole image. In the second
    pass the maps are fixed. If the sample is all of the tiles, the first pass is the result, and the same as
    a run on the whole image but for the limited context of the tiles.

    Args:
        model: converted or not; in use by nobody else meanwhile.
        inputs: as for :func:`restore_separately`, of sizes that the network does not pad.
        tiles: that divide the image, all of one size.
        sample: tiles of one size that overlap only outside of their cores: some of ``tiles``, or others.
        on_layer: called after each layer of the first pass that makes a map.
        on_tile: called after each tile of the second.

    Returns:
        (1, C', H, W) on the CPU, or as much larger as the network makes images.

    Raises:
        Csa2GlmhaError: a layer took part in the first pass without making its map.
    """
    everything = set(sample) == set(tiles)
    result: Tensor | None = None

    def on_output(tile: Tile, output: Tensor) -> None:
        nonlocal result
        if everything:
            if result is None:
                result = _room(inputs, output, tile)
            paste(result, output, tile)
            on_tile()

    def network(tile: Tile) -> Tensor:
        return run(model, cut(inputs, tile))

    with lockstep(model) as maps:
        maps.on_layer = on_layer
        maps.make(network, sample, on_output)
        if result is not None:
            return result
        return _one_by_one(partial(maps.alone, network), inputs, tiles, on_tile)


def padded(inputs: Inputs, multiple: int) -> Inputs:
    """Image and maps padded to a multiple; as they are, where a map is of another size than the image."""
    maps = [is_map(tuple(each.shape)) for each in inputs]
    if any(
        whole and each.shape[-2:] != inputs[0].shape[-2:] for each, whole in zip(inputs, maps, strict=True)
    ):
        return inputs
    return tuple(
        reflect_pad_to_multiple(each, multiple) if whole else each
        for each, whole in zip(inputs, maps, strict=True)
    )


def cut(inputs: Inputs, tile: Tile) -> Inputs:
    """The inputs for one tile; those that are no maps are whole."""
    height, width = inputs[0].shape[-2:]
    top, left = tile.rows.start, tile.columns.start

    def part(each: Tensor) -> Tensor:
        if not is_map(tuple(each.shape)):
            return each
        if each.shape[-2] < height:  # a reduced map
            times = height // each.shape[-2]
            rows, columns = top // times, left // times
            return each[
                ..., rows : rows + tile.rows.length // times, columns : columns + tile.columns.length // times
            ]
        below, beside = each.shape[-2] - height, each.shape[-1] - width
        return each[..., top : top + tile.rows.length + below, left : left + tile.columns.length + beside]

    return tuple(map(part, inputs))


def _room(inputs: Inputs, output: Tensor, tile: Tile) -> Tensor:
    """For the whole output, which is as much larger than the image as that of a tile is than the tile."""
    scale = Fraction(output.shape[-2], tile.rows.length)
    return torch.empty(1, output.shape[1], *(scaled(side, scale) for side in inputs[0].shape[-2:]))


def paste(result: Tensor, output: Tensor, tile: Tile) -> None:
    """Put the core of a tile's output (1, C', h, w) into its place in (1, C', H, W)."""
    scale = Fraction(output.shape[-2], tile.rows.length)
    rows, columns = (
        slice(scaled(span.core_start, scale), scaled(span.core_start + span.core_length, scale))
        for span in (tile.rows, tile.columns)
    )
    result[..., rows, columns] = tile.core_of(output).cpu()
