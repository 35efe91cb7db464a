"""How to run a network on one image: whole if the memory does, otherwise in tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import Tensor

from csa2glmha.core.device import total_memory
from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.core.progress import manual_progress, say
from csa2glmha.data.batches import Inputs
from csa2glmha.export.openvino import COMPILED_AT
from csa2glmha.export.runtime import ONNX_RUNTIME, OnnxModel
from csa2glmha.inference.grid import divide, extent_of, spread, tile_step
from csa2glmha.inference.memory import (
    MemoryNeeds,
    available_bytes,
    tile_needs,
    used_bytes,
    whole_needs,
)
from csa2glmha.inference.model import OpenModel
from csa2glmha.inference.split import shared_layers
from csa2glmha.inference.tiles import padded, restore_globally, restore_separately
from csa2glmha.networks import RestorationModel, scaled

GLOBAL, PLAIN = "global", "plain"
#: Sides of tiles to choose from, where the user leaves it open.
AUTOMATIC_TILES = (512, 384, 256)
#: Maps fixed, at most 1e-3 of the output depends on what is further away (measured on Restormers). Tiles
#: that are small for it have a quarter of their side.
DEFAULT_OVERLAP = 64
#: Of what is free, the part to count on.
_USABLE = 0.8
#: Side of the image that an ONNX file is tried on: its memory is not known otherwise.
_PROBE = 256
#: ONNX Runtime doubles its memory whenever it runs out: for large images it took up to 2.2 times as much a
#: pixel as for the one it is tried on. OpenVINO took 0.5 to 0.7 times as much.
_OVERHEAD = {ONNX_RUNTIME: 2.5}
_OTHER_OVERHEAD = 1.25
_SMALLEST_SAMPLE = 64
_GB = 1e9
_SMALL_IMAGE = 2**24
#: Smallest pieces that ONNX files are cut into; networks of ours say their own.
_ONNX_MULTIPLE = 8


@dataclass(frozen=True)
class TileOptions:
    """What the user says about tiles.

    Attributes:
        size: side in pixels; None: tiles only where the memory demands it.
        overlap: pixels around its core that a tile also sees; None: as many as suit the size.
        mode: "global" (one attention map a layer for all tiles), "plain" (each tile its own), or None: global
            where that is possible.
        memory: bytes that may be used in all; None: most of what is free.
    """

    size: int | None = None
    overlap: int | None = None
    mode: str | None = None
    memory: int | None = None


def image_room(options: TileOptions) -> int:
    """Bytes that an image may take before it is run on: what the user allows, or half of all there are.

    Small images are let through: where nothing is left for the network either, that says so.
    """
    memory = options.memory
    room = total_memory() // 2 if memory is None else memory - used_bytes(torch.device("cpu"))
    return max(room, _SMALL_IMAGE)


@dataclass
class Restorer:
    """A network ready for images of any size.

    Attributes:
        path: its file.
        model: the same, open.
        device: where it runs.
        options: about tiles.

    Raises:
        UsageError: options that this network has no use for, or an overlap that leaves nothing of the tiles.
    """

    path: Path
    model: OpenModel
    device: torch.device
    options: TileOptions
    _whole: dict[tuple[int, ...], int] = field(default_factory=dict)
    _tiles: dict[tuple[int, int], MemoryNeeds] = field(default_factory=dict)
    _onnx_bytes_per_pixel: float | None = None

    def __post_init__(self) -> None:
        if self.options.mode == GLOBAL and self.model.network is None:
            raise UsageError(
                "--tile-mode global: an ONNX file makes its attention maps inside; run the student or "
                "checkpoint it was exported from, or give --tile-mode plain"
            )
        if self.options.mode == GLOBAL and not self._shares:
            raise UsageError("--tile-mode global: this network has no attention to share; leave it out")
        self._check_tiles_of_one_size()
        if self.model.size is None:
            # Now, not at the first image that is large enough: by then others are written.
            for size in self._sizes:
                tile_step(size, self._overlap(size), self._multiple)

    def _check_tiles_of_one_size(self) -> None:
        """Tell of options that a network of one size has no use for."""
        if self.model.size is None:
            return
        given = {"--tile": self.options.size, "--overlap": self.options.overlap}
        named = " ".join(f"{option} {value}" for option, value in given.items() if value is not None)
        size = "x".join(map(str, self.model.size))
        # Files of others are run in tiles of their size, so that images of any size can be restored.
        if named and self.model.foreign:
            say(f"{named}: not used, this file takes tiles of {size} pixels only")
        elif self.options.size is not None:
            raise UsageError(f"--tile {self.options.size}: this model takes {size} pixels only; leave it out")

    def __call__(self, name: str, inputs: Inputs) -> Tensor:
        """Restore one image.

        Args:
            name: what to call it.
            inputs: (1, C, H, W) each.

        Returns:
            (C', H, W) on the CPU.

        Raises:
            DataError: not even tiles fit into the memory, or the inputs do not fit the network.
        """
        height, width = inputs[0].shape[-2:]
        if self.model.size is not None:  # a foreign file that holds for one size is cut into tiles of it
            return self.model.run(inputs)
        size = self.options.size
        if self._fits_whole(height, width) if size is None else max(height, width) <= size:
            return self.model.run(inputs)
        inputs = padded(inputs, self._multiple)
        if self.model.network is None or self.options.mode == PLAIN or not self._shares:
            output = self._plain(name, inputs)
        else:
            output = self._global(name, self.model.network, inputs)
        scale = self.model.facts.scale
        return output[0, :, : scaled(height, scale), : scaled(width, scale)]

    @property
    def _shares(self) -> bool:
        """Whether the network has layers whose maps tiles can share."""
        return self.model.network is not None and bool(shared_layers(self.model.network))

    @property
    def _multiple(self) -> int:
        return _ONNX_MULTIPLE if self.model.network is None else self.model.network.size_multiple

    @property
    def _sizes(self) -> tuple[int, ...]:
        """Sides of tiles to choose from, the larger ones first."""
        if self.options.size is not None:
            return (self.options.size,)
        # An overlap may be too wide for the smaller ones alone.
        multiple = self._multiple
        wide = -(-(self.options.overlap or 0) // multiple)
        return tuple(s for s in AUTOMATIC_TILES if s // multiple > 2 * wide) or AUTOMATIC_TILES[:1]

    def _overlap(self, size: int) -> int:
        """Pixels that tiles of this side see around their cores."""
        if self.options.overlap is not None:
            return self.options.overlap
        multiple = self._multiple
        # Of the smallest tiles a quarter, rounded up to the multiple on either side, would leave nothing.
        room = (size // multiple - 1) // 2 * multiple
        return min(DEFAULT_OVERLAP, size // 4, room)

    def _fits_whole(self, height: int, width: int) -> bool:
        if self.model.network is None and height * width <= _PROBE**2:
            return True
        if (height, width) not in self._whole:
            network = self.model.network
            self._whole[height, width] = (
                self._onnx_bytes(height * width)
                if network is None
                else whole_needs(network, *_padded(network, height, width))
            )
        return self._whole[height, width] <= self._budget(height, width)

    def _budget(self, height: int, width: int) -> int:
        """Bytes left for the network's features, after weights, image and result."""
        used = used_bytes(self.device)
        memory = self.options.memory
        left = int(_USABLE * available_bytes(self.device)) if memory is None else memory - used
        return (
            left
            if self.device.type == "cuda"
            else left - int(4 * self.model.bands * height * width * self.model.facts.scale**2)
        )

    def _plain(self, name: str, inputs: Inputs) -> Tensor:
        height, width = inputs[0].shape[-2:]
        network = self.model.network

        def needs(size: int) -> int:
            return self._onnx_bytes(size * size) if network is None else self._tile_needs(size, False).tile

        size = self._choose_size(height, width, needs)
        tiles = divide(height, width, size, self._overlap(size), self._multiple)
        say(f"{name}: {len(tiles)} tiles of {extent_of(tiles)}, each with attention maps of its own")
        self._say_global_operators(name)
        with manual_progress(what=name, unit="tile", total=len(tiles)) as bar:
            return restore_separately(lambda tile: self.model.run(tile)[None], inputs, tiles, bar.update)

    def _global(self, name: str, network: RestorationModel, inputs: Inputs) -> Tensor:
        height, width = inputs[0].shape[-2:]
        size = self._choose_size(height, width, lambda side: self._tile_needs(side, True).tile)
        divided = partial(divide, height, width, multiple=self._multiple)
        tiles = divided(size, self._overlap(size))
        needs = self._tile_needs(size, True)
        # Many small tiles tell more of an image than a few large ones that take the same memory.
        small = divided(self._sample_side(size), self._overlap(size) // 2)
        count = needs.sample_size(self._budget(height, width))
        if count < 1:
            raise self._too_little(name, needs.sample_fixed + needs.sample_each)
        area = small[0].rows.length * small[0].columns.length
        side_by_side = tiles[0].rows.length * tiles[0].columns.length * len(tiles)
        sample = tiles if side_by_side <= count * area else spread(small, count)
        share = sum(tile.core_pixels for tile in sample) / (height * width)
        say(
            f"{name}: {len(tiles)} tiles of {extent_of(tiles)}, with attention maps made from {share:.0%} of "
            "the image"
        )
        self._say_global_operators(name)
        layers = len(shared_layers(network))
        with (
            manual_progress(what=f"{name}: maps", unit="layer", total=layers) as layer_bar,
            manual_progress(what=name, unit="tile", total=len(tiles)) as tile_bar,
        ):
            return restore_globally(network, inputs, tiles, sample, layer_bar.update, tile_bar.update)

    def _say_global_operators(self, name: str) -> None:
        """Tell of what is made from each tile and not from the image, in networks of users."""
        found: tuple[str, ...] = getattr(self.model.network, "global_operators", ())
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            say(f"{name}: {found[0]}{more}: of each tile, not of the image; a larger --tile comes closer")

    def _choose_size(self, height: int, width: int, needs: Callable[[int], int]) -> int:
        budget = self._budget(height, width)
        for size in self._sizes:
            if needs(size) <= budget:
                return size
        smallest = self._sizes[-1] // self._multiple * self._multiple
        raise self._too_little(f"tiles of {smallest}x{smallest}", needs(smallest))

    def _tile_needs(self, size: int, shared: bool) -> MemoryNeeds:
        network = self.model.network
        assert network is not None
        if (size, shared) not in self._tiles:
            multiple = self._multiple
            tile, sample = (max(1, side // multiple) * multiple for side in (size, self._sample_side(size)))
            self._tiles[size, shared] = tile_needs(network, (tile, tile), (sample, sample), shared)
        return self._tiles[size, shared]

    def _sample_side(self, size: int) -> int:
        return min(size, max(size // 2, 2 * self._overlap(size), _SMALLEST_SAMPLE))

    def _onnx_bytes(self, pixels: int) -> int:
        if self._onnx_bytes_per_pixel is None:
            # A session of its own: one that has run before has memory in store.
            runtime = self.model.runtime
            session = OnnxModel(self.path, runtime=runtime)
            probe = torch.rand(1, self.model.channels, _PROBE, _PROBE)
            before = psutil.Process().memory_info().rss
            shapes = self.model.kind.shapes(self.model.facts, _PROBE, _PROBE)
            for _ in range(1 if runtime == ONNX_RUNTIME else COMPILED_AT):
                session(probe, *(torch.ones(shape) for shape in shapes[1:]))
            grown = psutil.Process().memory_info().rss - before
            overhead = _OVERHEAD.get(runtime, _OTHER_OVERHEAD)
            self._onnx_bytes_per_pixel = overhead * max(grown, probe.nbytes) / _PROBE**2
        return int(self._onnx_bytes_per_pixel * pixels)

    def _too_little(self, what: str, needed: int) -> DataError:
        used = used_bytes(self.device)
        memory = self.options.memory
        limit = int(_USABLE * available_bytes(self.device)) + used if memory is None else memory
        return DataError(
            f"{what}: takes {(needed + used) / _GB:.2f} GB, there are {limit / _GB:.2f}; give more --memory, "
            f"or a smaller --tile than {self._sizes[-1]}"
        )


def _padded(network: RestorationModel, height: int, width: int) -> tuple[int, int]:
    multiple = network.size_multiple
    rows, columns = (-(-side // multiple) * multiple for side in (height, width))
    return rows, columns
