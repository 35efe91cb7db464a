"""What a folder holds for a CASSI network: cubes, recorded measurements or images, and their mask."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.arrays import SUFFIX_LIST, SUFFIXES, find_array
from csa2glmha.data.batches import seeded
from csa2glmha.data.crops import ImageSource
from csa2glmha.data.folders import list_files
from csa2glmha.data.image_set import ImageSet, skipped_note
from csa2glmha.data.images import MemoryImages, bundled_images
from csa2glmha.data.inputs.masks import load_mask
from csa2glmha.data.inputs.recorded import USUAL, RecordedMeasurements
from csa2glmha.data.inputs.spectral import CubeSet
from csa2glmha.data.inputs.synthetic import SyntheticSpectra
from csa2glmha.data.sources import bundled_source


def open_scenes(
    folder: Path | None,
    mask: Path | None,
    mat_key: str | None,
    bands: int,
    size: int,
    seed: int,
    mask_key: str | None = None,
    scale: float | None = None,
) -> tuple[ImageSource, Tensor, bool, str, tuple[str, ...]]:
    """Scenes, mask (H, W), whether they are recorded, the report's name for them, and notes.

    Raises:
        DataError, UsageError: as :func:`prepare_cassi`.
    """
    notes: tuple[str, ...] = ()
    if mask is None:
        aperture = (torch.rand(size, size, generator=seeded("aperture", seed)) < 0.5).float()
        notes += (f"no --mask: a random one of {size}x{size} is used, and the student keeps its mask input",)
    else:
        aperture = load_mask(mask, mask_key)
    if folder is None:
        if scale is not None:
            raise UsageError(f"--measurement-scale {scale:g}: needs measurements; give their folder, --data")
        photographs = bundled_images(3)
        notes += (
            f"no --data: using synthetic spectra of {len(photographs)} photographs bundled with "
            "scikit-image; cubes of the model's own task serve better",
        )
        scenes: ImageSource = SyntheticSpectra(MemoryImages(photographs), bands)
        return scenes, aperture, False, f"synthetic spectra of {bundled_source(photographs)}", notes
    kind = folder_kind(folder, mat_key)
    if scale is not None and kind != "measurements":
        raise UsageError(f"--measurement-scale {scale:g}: {folder} holds {kind}; leave it out")
    if kind == "images":
        images = ImageSet.find(folder, 3)
        notes += images.notes(folder)
        notes += (f"{folder} holds images: synthetic spectra are made of them",)
        return SyntheticSpectra(images, bands), aperture, False, f"synthetic spectra of {folder}", notes
    if kind == "cubes":
        cubes = CubeSet.find(folder, bands, mat_key)
        notes += cubes.notes + _padded_note(cubes, aperture) + skipped_note(folder, cubes.skipped)
        return cubes, aperture, False, str(folder), notes
    if mask is None:
        raise UsageError(
            f"{folder} holds recorded measurements: give the mask they were taken through, --mask"
        )
    recorded = RecordedMeasurements.find(folder, aperture, bands, mat_key, scale)
    notes += recorded.notes + skipped_note(folder, recorded.skipped)
    return recorded, aperture, True, str(folder), notes


def _padded_note(cubes: CubeSet, mask: Tensor) -> tuple[str, ...]:
    """One note on cubes that do not fill the mask; none if all do."""
    height, width = mask.shape
    small = [name for name, (rows, columns) in cubes.sizes.items() if rows < height or columns < width]
    if not small:
        return ()
    more = f" and {len(small) - 1} more" if len(small) > 1 else ""
    return (f"{small[0]}{more}: smaller than the mask of {_size(mask)}, so padded by reflection",)


def folder_kind(folder: Path, mat_key: str | None) -> str:
    """What a folder holds: "cubes" if there is a 3-D array file, "measurements" if a 2-D one, or "images".

    TIFF files hold any of these: with 1, 3 or 4 channels they are images.

    Raises:
        DataError: the folder is missing.
    """
    kind = "images"
    for _, path in _array_files(folder):
        image_too = path.suffix.lower() in (".tif", ".tiff")
        shapes = [shape for ndim in (3, 2) if (shape := _shape(path, ndim, mat_key)) is not None]
        if not shapes:
            # No array that fits, or several: reading it as a cube will say so.
            kind = kind if image_too or kind == "measurements" else "cubes"
        elif image_too and (len(shapes[0]) == 2 or min(shapes[0]) <= 4):
            continue
        elif len(shapes[0]) == 3:
            return "cubes"
        else:
            kind = "measurements"
    return kind


def _shape(path: Path, ndim: int, mat_key: str | None) -> tuple[int, ...] | None:
    try:
        return find_array(path, ndim, mat_key, usual=USUAL).shape
    except DataError:
        return None


def _array_files(folder: Path) -> list[tuple[str, Path]]:
    return list_files(folder, SUFFIXES, "folder", f"{SUFFIX_LIST} files, or images")


def _size(plane: Tensor) -> str:
    return "x".join(map(str, plane.shape))
