"""Tiles of one image going through a network side by side, sharing what is made of all pixels.

Each tile goes through the network in a thread of its own, as if it were alone. At every attention layer it
hands in what the map needs of its pixels, and waits until all tiles have; then the map of the image is made
once, and all go on. One of them computes at a time, so that a tile that waits costs no more than what its
call holds: the layer's input, and features that are needed later. Nothing is known of the network but its
attention layers, other layers in the same steps, whose "map" is what they make of moments, and modules that
are to be told where their pixels lie. Later, single tiles go through it with the same maps.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from csa2glmha.attention.core import Moments, SharedLayer, TakesKeywords, positional_only, weighted_mean
from csa2glmha.core.errors import Csa2GlmhaError
from csa2glmha.inference.grid import Tile
from csa2glmha.inference.split import shared_layers
from csa2glmha.inference.system import give_back_memory
from csa2glmha.inference.threads import PausingCall, ended_together
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.foreign import users_own
from csa2glmha.reading.placed import PlacedModule

_ADVICE = "tiles of this network cannot share maps; use --tile-mode plain"


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: the layer's name, and its calls before this one for the same tile."""

    layer: str
    before: int

    def __str__(self) -> str:
        return self.layer if not self.before else f"{self.layer} (call {self.before + 1})"


@dataclass(frozen=True)
class _Request:
    """What a tile hands in at a layer."""

    call: LayerCall
    moments: Moments


_Pass = PausingCall[_Request, Tensor, Tensor]


@dataclass
class _Pace(threading.local):
    """How far the tile of this thread is.

    Attributes:
        tile: that goes through the network; None: none does.
        pass_: its way, while maps are being made; None: the maps are there.
        calls: of every layer, so far.
    """

    tile: Tile | None = None
    pass_: _Pass | None = None
    calls: Counter[str] = field(default_factory=Counter)


@dataclass
class SharedMaps:
    """The attention maps of one image, in the place of those that the layers make of their input.

    Attributes:
        layers: all that are to make one, by their names.
        matrices: the maps.
        on_layer: called after each map that was made, while all tiles wait.
    """

    layers: dict[str, SharedLayer]
    matrices: dict[LayerCall, Tensor] = field(default_factory=dict)
    on_layer: Callable[[], object] | None = None
    _pace: _Pace = field(default_factory=_Pace)

    def make(
        self,
        network: Callable[[Tile], Tensor],
        tiles: Sequence[Tile],
        on_output: Callable[[Tile, Tensor], object],
    ) -> None:
        """Make all maps from the cores of tiles.

        Args:
            network: the output for one tile; called in a thread for each.
            tiles: whose cores do not overlap.
            on_output: called with each tile and its output.

        Raises:
            Csa2GlmhaError: a layer made no map, or not for every tile.
        """
        self.matrices.clear()
        passes: list[_Pass] = []
        for tile in tiles:
            passes.append(PausingCall(partial(self._follow, passes, len(passes), tile, network)))
        matrix: Tensor | None = None
        with ended_together(passes):
            while True:
                requests: list[_Request | None] = []
                for each, tile in zip(passes, tiles, strict=True):
                    request = each.proceed(matrix)
                    if each.result is not None:
                        on_output(tile, each.result)
                        each.result = None
                    requests.append(request)
                call = _common_call(requests)
                if call is None:
                    break
                parts = [request.moments for request in requests if request is not None]
                weights = [tile.core_pixels for tile in tiles]
                mean = weighted_mean(list(zip(parts, weights, strict=True)))
                matrix = self.matrices[call] = self.layers[call.layer].matrix(mean)
                if self.on_layer is not None:
                    self.on_layer()
        self._check_complete()

    def alone(self, network: Callable[[Tile], Tensor], tile: Tile) -> Tensor:
        """Run the network on one tile with the maps that are there.

        Raises:
            Csa2GlmhaError: it calls a layer that made no map.
        """
        self._begin(tile, None)
        output = network(tile)
        give_back_memory()
        return output

    def attend(self, name: str, /, *given: Any, **named: Any) -> Any:
        """The output of the layer of that name, called with these arguments."""
        layer, pace = self.layers[name], self._pace
        args = layer.bind(given, named) if isinstance(layer, TakesKeywords) else positional_only(given, named)
        call = LayerCall(name, pace.calls[name])
        pace.calls[name] += 1
        if pace.pass_ is None:
            if call not in self.matrices:
                raise Csa2GlmhaError(f"layer {call} made no map of the whole image: {_ADVICE}")
            return layer.apply_matrix(args, self.matrices[call])
        assert pace.tile is not None
        # What the map is made from is gone while the tile waits; values are made when it goes on.
        return layer.apply_matrix(
            args, pace.pass_.ask(_Request(call, layer.moments_of(args, partial(_core, pace.tile))))
        )

    def place(self, module: PlacedModule, *args: Any) -> Tensor:
        """The module's output for the tile that goes through the network."""
        assert self._pace.tile is not None
        return module.forward_at(self._pace.tile.place, *args)

    def _follow(
        self, passes: Sequence[_Pass], index: int, tile: Tile, network: Callable[[Tile], Tensor]
    ) -> Tensor:
        self._begin(tile, passes[index])
        return network(tile)

    def _begin(self, tile: Tile, pass_: _Pass | None) -> None:
        self._pace.tile, self._pace.pass_, self._pace.calls = tile, pass_, Counter()

    def _check_complete(self) -> None:
        """Make sure that no layer took the map of a single tile, without a word."""
        made = {call.layer for call in self.matrices}
        missing = [name for name in self.layers if name not in made]
        if missing:
            raise Csa2GlmhaError(
                f"{len(missing)} of {len(self.layers)} layers made no map of the whole image, "
                f"first {missing[0]}: {_ADVICE}"
            )


def _common_call(requests: Sequence[_Request | None]) -> LayerCall | None:
    """The one that all tiles wait in; None: all have ended."""
    calls = {None if request is None else request.call for request in requests}
    if len(calls) > 1:
        names = " and ".join(sorted("the end" if call is None else str(call) for call in calls)[:2])
        raise Csa2GlmhaError(f"some tiles come to {names} while others do not: {_ADVICE}")
    return calls.pop()


def _core(tile: Tile, maps: Tensor) -> Tensor:
    """The pixels of maps (1, C, H, W), or of tokens (1, C, H * W, 1), that the tile answers for."""
    height, width = maps.shape[-2:]
    if width == 1 and tile.columns.length > tile.rows.length // height:
        maps = maps.flatten(2).unflatten(2, _size_of_tokens(tile, height))
    return tile.core_of(maps)


def _size_of_tokens(tile: Tile, count: int) -> tuple[int, int]:
    """Height and width of so many pixels in rows, which have the tile's proportions.

    Raises:
        Csa2GlmhaError: they have not.
    """
    rows, columns = tile.rows.length, tile.columns.length
    height = round((count * rows / columns) ** 0.5)
    width = count // max(height, 1)
    if height * width != count or height * columns != width * rows:
        raise Csa2GlmhaError(f"{count} tokens were made of {rows} x {columns} pixels: {_ADVICE}")
    return height, width


@contextlib.contextmanager
def lockstep(model: RestorationModel) -> Iterator[SharedMaps]:
    """Let tiles share attention maps, as long as the block lasts; not for training.

    The modules stay where they are, but their calls go to the maps.
    """
    layers = shared_layers(model)
    maps = SharedMaps(layers)
    calls: list[tuple[nn.Module, Callable[..., Tensor]]] = [
        (users_own(model).get_submodule(name), partial(maps.attend, name)) for name in layers
    ]
    calls += [
        (module, partial(maps.place, module))
        for module in model.modules()
        if isinstance(module, PlacedModule)
    ]
    replaced: list[tuple[nn.Module, Any]] = []
    try:
        for module, call in calls:
            replaced.append((module, vars(module).get("forward")))
            vars(module)["forward"] = call
        yield maps
    finally:
        for module, forward in reversed(replaced):
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward
