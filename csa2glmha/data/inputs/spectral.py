"""Hyperspectral cubes from files, folders of them, pairs with RGB images, and synthetic spectra.

Cubes are float32 tensors (bands, H, W), values as stored: usually reflectance in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from csa2glmha.core.errors import DataError
from csa2glmha.core.progress import progress
from csa2glmha.data.arrays import SUFFIX_LIST, SUFFIXES
from csa2glmha.data.folders import list_files
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.inputs.cubes import (
    read_cube,
    read_stored_cube,
    scale_cube,
)
from csa2glmha.data.pairing import pair_names
from csa2glmha.data.units import file_names, refuse_blank, white_of_cubes


@dataclass
class CubeSet:
    """The usable cubes of a folder; reads like an :class:`~csa2glmha.data.images.ImageSet`.

    Attributes:
        bands: bands of every cube.
        mat_key: as in :func:`read_cube`.
        skipped: files left out, each with the reason.
        white: what floats are divided by.
        notes: what was taken for white, and the like.
        sizes: height and width by name.
    """

    bands: int
    mat_key: str | None = None
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    white: float = 1.0
    notes: tuple[str, ...] = ()
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    _entries: list[tuple[str, Path]] = field(default_factory=list)
    _cache: dict[Path, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def find(
        cls, folder: Path, bands: int, mat_key: str | None = None, cache_bytes: int = 512 * 2**20
    ) -> CubeSet:
        """Search a folder and its subfolders for cubes, in the order of their names.

        Every file is read once, so that a bad one shows now and not during training. Those that
        :func:`read_cube` refuses are left out, and listed in :attr:`skipped`.

        Args:
            folder: searched for mat, npy, npz, tif and tiff files, in any case.
            bands: bands of every cube.
            mat_key: as in :func:`read_cube`, for all files.
            cache_bytes: how much data to keep in memory.

        Raises:
            DataError: the folder is missing, or none of its cubes can be used; the first reason is given. Or
                some hold counts and others fractions.
        """
        found = cls(bands, mat_key)
        budget, extents, unordered, kept = cache_bytes, {}, [], {}
        for name, path in progress(_list_files(folder), what="reading cubes", unit="file"):
            try:
                cube = read_stored_cube(path, bands, mat_key)
                refuse_blank(path, cube.extent)
            except DataError as error:
                found.skipped.append((path, str(error)))
                continue
            found._entries.append((name, path))
            found.sizes[name] = (int(cube.values.shape[1]), int(cube.values.shape[2]))
            extents[path] = cube.extent
            if not cube.ordered:
                unordered.append(path)
            if cube.values.nbytes <= budget:
                budget -= cube.values.nbytes
                kept[path] = cube
        if not found._entries:
            reason = found.skipped[0][1] if found.skipped else f"it has no {SUFFIX_LIST} file"
            raise DataError(f"no usable cube in {str(folder)!r}: {reason}")
        white = white_of_cubes(extents)
        found.white, found.notes = white.value, white.notes + order_note(unordered)
        found._cache = {path: scale_cube(cube, white.value) for path, cube in kept.items()}
        return found

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Return the name (path inside the folder, with ``/``), the cube (bands, H, W), and None.

        Raises:
            DataError: a file that was readable no longer is.
        """
        name, path = self._entries[index]
        cube = self._cache.get(path)
        cube = read_cube(path, self.bands, self.mat_key, self.white) if cube is None else cube
        return name, cube, None

    @property
    def names(self) -> list[str]:
        """The names in order."""
        return [name for name, _ in self._entries]


def order_note(unordered: list[Path]) -> tuple[str, ...]:
    """One note on cubes in HDF5 files that could be meant in MATLAB's order; none if there are none."""
    if not unordered:
        return ()
    return (
        f"{file_names(unordered)}: without MATLAB's attribute MATLAB_class, so the axes are taken as stored: "
        "bands x height x width",
    )


@dataclass
class SpectralPairs:
    """RGB images as inputs with cubes as targets, for RGB-to-spectra networks.

    Attributes:
        images: the RGB images.
        cubes: the cubes.
        skipped: files left out, each with the reason.
        notes: on the cubes, as theirs, and on how they were paired.
    """

    images: ImageSet
    cubes: CubeSet
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    _pairs: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def find(
        cls, images: Path, cubes: Path, bands: int, mat_key: str | None = None, pair: str | None = None
    ) -> SpectralPairs:
        """Pair each image with the cube of its name, as :func:`~csa2glmha.data.pairing.pair_names` does it.

        What cannot be read, has no partner or one of another size is left out, and listed in
        :attr:`skipped`.

        Args:
            images: folder of RGB images, as for :meth:`ImageSet.find`.
            cubes: folder of cubes, as for :meth:`CubeSet.find`.
            bands: bands of every cube.
            mat_key: as in :func:`read_cube`.
            pair: how the names differ; None finds it out.

        Raises:
            DataError: a folder is missing or without usable files, or there is no pair.
            UsageError: ``pair`` is not valid.
        """
        found = cls(ImageSet.find(images, 3), CubeSet.find(cubes, bands, mat_key))
        found.notes = found.cubes.notes
        found.skipped += found.images.skipped + found.cubes.skipped
        pairing = pair_names(found.images.names, found.cubes.names, pair)
        where = f"no pair of an image in {str(images)!r} and a cube in {str(cubes)!r}"
        if pairing.problem:
            raise DataError(f"{where}: {pairing.problem}")
        found.notes += (f"{images}: {pairing.how}",) if pairing.how else ()
        for cube, name in enumerate(found.cubes.names):
            found._pair([image for image, other in pairing.pairs if other == cube], cube, cubes / name)
        if not found._pairs:
            reason = found.skipped[-1]
            raise DataError(f"{where}: {reason[0].name} has {reason[1]}; give both the same sizes")
        return found

    def _pair(self, images: list[int], cube: int, path: Path) -> None:
        if len(images) != 1:
            self.skipped.append((path, "several images of that name" if images else "no image of that name"))
            return
        sizes = [
            source.read(index)[1].shape[1:]
            for source, index in ((self.images, images[0]), (self.cubes, cube))
        ]
        if sizes[0] != sizes[1]:
            (height, width), (cube_height, cube_width) = sizes
            reason = f"an image of another size: {width}x{height} against {cube_width}x{cube_height}"
            if (height, width) == (cube_width, cube_height):
                reason += ", as if the cube were transposed"
            self.skipped.append((path, reason))
            return
        self._pairs.append((images[0], cube))

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Return the image's name, the image (3, H, W) in [0, 1], and the cube (bands, H, W).

        Raises:
            DataError: a file that was readable no longer is.
        """
        image, cube = self._pairs[index]
        name, rgb, _ = self.images.read(image)
        return name, rgb, self.cubes.read(cube)[1]


def _list_files(folder: Path) -> list[tuple[str, Path]]:
    return list_files(folder, SUFFIXES, "folder of cubes", f"{SUFFIX_LIST} files")
