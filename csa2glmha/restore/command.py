"""Restoring files: reading each as the network takes it, running, writing what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from csa2glmha.data.arrays import read_array
from csa2glmha.data.batches import Inputs
from csa2glmha.data.cassi import CassiScenes, initial_cube, load_mask, load_measurement, shifted_mask
from csa2glmha.data.encode import fits_profile, holds_alpha, holds_profile
from csa2glmha.data.images import MemoryImages, largest_bits, read_stored, write_image
from csa2glmha.data.open import refuse_mask
from csa2glmha.data.sources import DUAL_PIXEL_CHANNELS, IMAGE_CHANNELS, is_spectral
from csa2glmha.data.spectral import read_cube, write_cube
from csa2glmha.data.stored import StoredImage
from csa2glmha.device import resolve_device
from csa2glmha.errors import DataError, UnfitError, UsageError
from csa2glmha.evaluation import OpenModel, open_model
from csa2glmha.files import ensure_writable
from csa2glmha.models.mst import DISPERSION
from csa2glmha.progress import progress, say
from csa2glmha.restore.jobs import Formats, Job, array_formats, find_jobs, image_formats
from csa2glmha.restore.plan import Restorer, TileOptions, image_room


@dataclass(frozen=True)
class Source:
    """What was read for one output.

    Attributes:
        inputs: with a batch axis of one.
        stored: the image's file as it is, None if it is none.
    """

    inputs: Inputs
    stored: StoredImage | None = None


#: Reads a job's files, in so many bytes of memory.
Read = Callable[[Job, int], Source]


@dataclass(frozen=True)
class RunResult:
    """What was done.

    Attributes:
        written: the new files.
        skipped: files of folders that cannot be used, with the reason.
        kept: outputs that were there and were left.
    """

    written: tuple[Path, ...]
    skipped: tuple[tuple[Path, str], ...]
    kept: int = 0


def run_files(
    model: Path,
    sources: Sequence[Path],
    output: Path,
    *,
    tiles: TileOptions | None = None,
    mask: Path | None = None,
    mat_key: str | None = None,
    cube_suffix: str = ".npy",
    device: str = "auto",
    overwrite: bool = False,
    skip_existing: bool = False,
) -> RunResult:
    """Run a model on files and on all files of folders.

    Images become images of the same name and bit depth, in the same subfolders; where the output is a
    spectrum, .npy or .mat files of height x width x bands. Of folders, files that cannot be read, restored
    or stored in their format are left out with a line.

    Args:
        model: checkpoint, student or ONNX file.
        sources: images; for MST recorded measurements, or cubes that measurements are simulated from.
        output: folder of the results.
        tiles: about tiles; None: where the memory demands it.
        mask: file of the aperture mask, which MST needs.
        mat_key: name of the array in .mat and .npz files.
        cube_suffix: .npy or .mat, of outputs that are cubes.
        device: as for :func:`csa2glmha.evaluation.open_model`.
        overwrite: replace existing outputs; inputs are never replaced.
        skip_existing: leave them, and make the others: so an interrupted run goes on.

    Raises:
        UsageError: options that do not fit the model or each other.
        OutputError: an output exists, or cannot be written.
        Csa2GlmhaError: a file that was named cannot be used, or nothing of the folders.
    """
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing exclude each other: give one of them")
    opened = open_model(model, device)
    formats, read = _reader(opened, mask, mat_key, cube_suffix)
    found = find_jobs(sources, output, formats, overwrite, skip_existing)
    if found.foreign:
        say(left_out_line(found.foreign))
    place = torch.device("cpu") if opened.network is None else resolve_device(device)
    tiles = tiles or TileOptions()
    restorer, room = Restorer(model, opened, place, tiles), image_room(tiles)
    written, skipped = [], list(found.foreign)
    for job in progress(found.jobs, what="restoring", unit="file"):
        try:
            source = read(job, room)
            ensure_writable(job.output, overwrite)
            restored = restorer(job.sources[0].name, source.inputs)
            _write(job, restored, source.stored, bool(formats.output_suffix))
        # What concerns this file alone; a full disk, for one, ends the run.
        except (DataError, UnfitError) as error:
            if job.named:
                raise
            reason = str(error)
            say(
                f"skipped: {reason}"
                if str(job.sources[0]) in reason
                else f"skipped {job.sources[0]}: {reason}"
            )
            skipped.append((job.sources[0], reason))
            continue
        written.append(job.output)
    if skipped and not written and not found.kept:
        raise DataError(f"nothing could be used: {skipped[-1][1]}")
    return RunResult(tuple(written), tuple(skipped), found.kept)


def left_out_line(foreign: Sequence[tuple[Path, str]]) -> str:
    """One line on files whose format is not read."""
    listed = ", ".join(f"{path}: {reason}" for path, reason in foreign[:3])
    more = ", ..." if len(foreign) > 3 else ""
    return f"left out: {len(foreign)} file{'s' * (len(foreign) > 1)} ({listed}{more})"


def _write(job: Job, restored: Tensor, stored: StoredImage | None, cube: bool) -> None:
    """Write what was restored, with what else the image's file held, and tell what is lost of it."""
    if stored is not None and stored.further:
        say(f"left out: {stored.further} of {job.sources[0]}")
    if cube:
        write_cube(job.output, restored)
        return
    assert stored is not None
    suffix, lost = job.output.suffix.lower(), []
    bits = min(stored.bits, largest_bits(job.output))
    # Images may have more bits than their suffix says.
    if bits < stored.bits:
        lost.append(f"written with {bits} bits, {suffix} files hold no more; its input has {stored.bits}")
    alpha, profile = stored.alpha, stored.profile
    if alpha is not None and not holds_alpha(suffix):
        alpha = None
        lost.append(f"written without the alpha channel, which {suffix} files do not hold")
    elif alpha is not None and alpha.shape != restored.shape[1:]:
        alpha = None
        lost.append("written without the alpha channel, which is of another size")
    if profile is not None and not (holds_profile(suffix) and fits_profile(profile, restored.shape[0])):
        profile = None
        lost.append("written without the colour profile, which does not fit it")
    write_image(job.output, restored, bits, alpha, profile)
    for loss in lost:
        say(f"{job.output}: {loss}")


def _reader(
    model: OpenModel, mask: Path | None, mat_key: str | None, cube_suffix: str
) -> tuple[Formats, Read]:
    suffix = cube_suffix if is_spectral(model.channels, model.bands) else ""
    if model.architecture == "mst":
        return array_formats(suffix, model.bands), _snapshot_reader(model, mask, mat_key)
    refuse_mask(model.architecture or "this model", mask)
    if model.channels == DUAL_PIXEL_CHANNELS:
        return image_formats(suffix, model.bands, views=True), _read_views
    if model.channels in IMAGE_CHANNELS:
        return image_formats(suffix, model.bands), partial(_read_image, channels=model.channels)
    return (
        array_formats(suffix, model.bands),
        lambda job, room: Source((read_cube(job.sources[0], model.channels, mat_key).unsqueeze(0),)),
    )


def _read_image(job: Job, room: int, channels: int) -> Source:
    image, stored = read_stored(job.sources[0], channels, room)
    return Source((image.unsqueeze(0),), stored)


def _read_views(job: Job, room: int) -> Source:
    (left, stored), (right, _) = (read_stored(path, 3, room // 2) for path in job.sources)
    if left.shape != right.shape:
        raise DataError(f"{str(job.sources[0])!r} is not of the size of its right view")
    return Source((torch.cat((left, right)).unsqueeze(0),), stored)


def _snapshot_reader(model: OpenModel, mask_file: Path | None, mat_key: str | None) -> Read:
    if mask_file is None:
        raise UsageError("MST reconstructs what was seen through an aperture mask: give its file, --mask")
    mask = load_mask(mask_file)
    if model.size is not None and tuple(mask.shape) != model.size:
        raise UsageError(
            f"--mask {mask_file}: has {mask.shape[0]}x{mask.shape[1]} pixels, the one baked in has "
            f"{model.size[0]}x{model.size[1]}"
        )
    model.check_mask(mask_file)
    dispersed = shifted_mask(mask, model.channels)

    def read(job: Job, room: int) -> Source:
        cube = _initial_cube(job.sources[0], mask, model.channels, mat_key)
        return Source((cube.unsqueeze(0), dispersed))

    return read


def _initial_cube(path: Path, mask: Tensor, bands: int, mat_key: str | None) -> Tensor:
    """Of a recorded measurement if the file holds a plane, otherwise of the measurement of a cube."""
    try:
        read_array(path, 2, mat_key)
    except DataError:
        cube = read_cube(path, bands, mat_key)
        return CassiScenes(MemoryImages([(path.name, cube)]), mask).read(0)[1]
    measurement = load_measurement(path, mat_key, bands)
    expected = (mask.shape[0], mask.shape[1] + DISPERSION * (bands - 1))
    if tuple(measurement.shape) != expected:
        raise DataError(
            f"{str(path)!r} is a measurement of {measurement.shape[0]}x{measurement.shape[1]}, the mask "
            f"belongs to {expected[0]}x{expected[1]}; give the mask it was taken through"
        )
    return initial_cube(measurement, bands)
