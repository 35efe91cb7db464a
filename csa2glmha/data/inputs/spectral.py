"""Hyperspectral cubes from files, folders of them, pairs with RGB images, and synthetic spectra.

Cubes are float32 tensors (bands, H, W), values as stored: usually reflectance in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.io
import torch
from torch import Tensor

from csa2glmha.core.errors import DataError, UnfitError
from csa2glmha.core.files import atomic_path
from csa2glmha.core.progress import progress
from csa2glmha.data.arrays import SUFFIX_LIST, SUFFIXES, find_array, to_float32
from csa2glmha.data.crops import ImageSource
from csa2glmha.data.folders import list_files
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.pairing import pair_names
from csa2glmha.data.units import Extent, file_names, judge_cubes, refuse_blank, refuse_unknown

#: Ranges in nm by number of bands: those of the published MST (KAIST) and MST++ (ARAD 1K).
WAVELENGTH_RANGES = {28: (450.0, 650.0), 31: (400.0, 700.0)}
VISIBLE_RANGE = (400.0, 700.0)

_PRIMARIES_NM = (620.0, 540.0, 465.0)
_PRIMARY_WIDTH_NM = 35.0


def read_cube(path: Path, bands: int, mat_key: str | None = None, white: float | None = None) -> Tensor:
    """Read a hyperspectral cube from a .mat (any version), .npy, .npz or multi-band .tif file.

    Args:
        path: the file. The bands are its last axis, as usual, or its first; the number of bands tells which.
        bands: expected number of bands.
        mat_key: name of the cube in a .mat or .npz file; without, there must be one 3-D array only.
        white: what floats are divided by; None: by what :func:`~csa2glmha.data.units.judge_cubes` says of
            this file alone, 1 for fractions.

    Returns:
        float32 (bands, H, W): 8- and 16-bit unsigned integers scaled to [0, 1], floats by ``white``.

    Raises:
        DataError: the file cannot be read, holds no or several 3-D arrays, one with another number of bands
            or with the bands on the wrong axis, or values that are not finite or of unknown units.
    """
    stored = read_stored_cube(path, bands, mat_key)
    white = judge_cubes({path: stored.extent}).value if white is None else white
    return scale_cube(stored, white)


@dataclass(frozen=True)
class StoredCube:
    """A cube as it is in its file, except that integers are scaled.

    Attributes:
        values: (bands, H, W).
        extent: of the values.
        ordered: its file says, or its bands show, in which order its axes are.
    """

    values: Tensor
    extent: Extent
    ordered: bool


def read_stored_cube(path: Path, bands: int, mat_key: str | None) -> StoredCube:
    """Read a cube; what its numbers mean is for the caller to judge.

    Raises:
        DataError: as :func:`read_cube`.
    """
    found = find_array(path, 3, mat_key)
    axes = _bands_first(found.shape, bands, path)
    array = found.read()
    bits = array.dtype.itemsize * 8 if array.dtype.kind == "u" else None
    values = to_float32(array.transpose(axes), path)
    extent = Extent.of(values, bits)
    refuse_unknown(path, extent)
    # Who writes height x width x bands does not turn axes round; bands in front may be MATLAB's order.
    ordered = found.variable.ordered or axes[0] == 2
    return StoredCube(torch.from_numpy(values), extent, ordered)


def scale_cube(stored: StoredCube, white: float) -> Tensor:
    """The cube in place, as fractions of white."""
    return stored.values if stored.extent.bits is not None or white == 1 else stored.values.div_(white)


def write_cube(path: Path, cube: Tensor) -> None:
    """Write a cube (bands, H, W) as float32 H x W x bands, values as they are: .npy, or .mat (v5, "cube").

    The file appears complete or not at all; an earlier one is replaced.

    Raises:
        UnfitError: a value is not finite, or a .mat file cannot hold that much.
        OutputError: it cannot be written.
    """
    if not torch.isfinite(cube).all():
        raise UnfitError(f"cannot write {str(path)!r}: it has values that are not finite; check the model")
    array = np.ascontiguousarray(cube.detach().cpu().float().permute(1, 2, 0).numpy())
    if path.suffix == ".mat" and array.nbytes >= 2**31:
        raise UnfitError(f"cannot write {str(path)!r}: .mat files hold at most 2 GB; use --format npy")
    with atomic_path(path) as temporary:
        if path.suffix == ".mat":
            scipy.io.savemat(temporary, {"cube": array}, do_compression=True)
        else:
            np.save(temporary, array)


def _bands_first(sizes: tuple[int, ...], bands: int, path: Path) -> tuple[int, int, int]:
    """The axes of a cube in the order bands, height, width."""
    first, middle, last = (size == bands for size in sizes)
    shape = "x".join(map(str, sizes))
    if first and last:
        raise DataError(
            f"{str(path)!r} holds an array of {shape}: with {bands} bands, both its first and its last axis "
            "could be the bands; cut or pad the height"
        )
    if last:
        return 2, 0, 1
    if first:
        return 0, 1, 2
    if middle:
        raise DataError(
            f"{str(path)!r} holds an array of {shape} with the {bands} bands on the middle axis; "
            "store it as height x width x bands"
        )
    raise DataError(
        f"{str(path)!r} holds an array of {shape}, but the model has {bands} bands: none of its axes "
        "is that long; give cubes with that number of bands"
    )


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
        white = judge_cubes(extents)
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


def wavelengths(bands: int) -> Tensor:
    """Centres in nm, evenly spaced, of this many bands: (bands,).

    The range is that of :data:`WAVELENGTH_RANGES`, for other numbers of bands the visible one.
    """
    return torch.linspace(*WAVELENGTH_RANGES.get(bands, VISIBLE_RANGE), bands)


def synthetic_spectra(rgb: Tensor, bands: int = 28) -> Tensor:
    """Make a spectral cube (..., bands, H, W) of an RGB image (..., 3, H, W), both in [0, 1].

    Each of the :func:`wavelengths` gets a smooth mixture of the linearised R, G and B (sRGB,
    IEC 61966-2-1), of weights that add up to one: gray gives a flat spectrum. No real spectra: name every
    figure that rests on them "synthetic spectra".
    """
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    distance = (wavelengths(bands)[:, None] - torch.tensor(_PRIMARIES_NM)) / _PRIMARY_WIDTH_NM
    weights = torch.softmax(-distance.square() / 2, dim=1)
    return torch.einsum("bc,...chw->...bhw", weights.to(linear), linear)


@dataclass(frozen=True)
class SyntheticSpectra:
    """The images of an RGB source as cubes of :func:`synthetic_spectra`.

    Attributes:
        images: of 3 channels.
        bands: of every cube.
    """

    images: ImageSource
    bands: int = 28

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Return the image's name, its synthetic spectra (bands, H, W), and None."""
        name, rgb, _ = self.images.read(index)
        return name, synthetic_spectra(rgb, self.bands), None


def _list_files(folder: Path) -> list[tuple[str, Path]]:
    return list_files(folder, SUFFIXES, "folder of cubes", f"{SUFFIX_LIST} files")
