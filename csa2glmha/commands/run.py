"""Restoring files: reading each as the network takes it, running, writing what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csa2glmha.commands.predict import PREDICTIONS_FILE, classify
from csa2glmha.config.options import ConvertOptions, make_options
from csa2glmha.core.device import resolve_device
from csa2glmha.core.errors import DataError, UnfitError, UsageError
from csa2glmha.core.files import ensure_writable
from csa2glmha.core.locks import exclusive_folder
from csa2glmha.core.progress import progress, say
from csa2glmha.data.batches import Inputs
from csa2glmha.data.encode import fits_profile, holds_alpha, holds_profile
from csa2glmha.data.images import largest_bits, write_image
from csa2glmha.data.inputs.cubes import write_cube
from csa2glmha.data.inputs.stretch import NOTE as STRETCH_NOTE
from csa2glmha.data.stored import StoredImage
from csa2glmha.inference.jobs import Job, find_jobs, left_out_line, skipped_line
from csa2glmha.inference.model import OpenModel, open_model
from csa2glmha.inference.plan import Restorer, TileOptions, image_room
from csa2glmha.metrics.outputs import LOGITS
from csa2glmha.metrics.quality import RANGE_HINT, out_of_range

#: From a file, the open model, its device and the tiles to what restores one image.
MakeRestorer = Callable[[Path, OpenModel, torch.device, TileOptions], Callable[[str, Inputs], Tensor]]


@dataclass(frozen=True)
class RunResult:
    """What was done.

    Attributes:
        written: the new files.
        skipped: files of folders that were left out, with the reason.
        kept: outputs that were there and were left.
        failed: how many of the skipped ones are of a format that is read, and could not be used all the same.
        classified: how many images have their classes in the one new file; None: the network makes images.
    """

    written: tuple[Path, ...]
    skipped: tuple[tuple[Path, str], ...]
    kept: int = 0
    failed: int = 0
    classified: int | None = None

    @property
    def done(self) -> int:
        """How many inputs have their result now, those that had it left out."""
        return len(self.written) if self.classified is None else self.classified

    def describe(self, output: Path) -> str:
        """One line for people."""
        what = f"{self.done} files written to {output}"
        if self.classified is not None:
            what = f"{self.done} images classified in {self.written[0]}"
        kept = f", {self.kept} were there" if self.kept else ""
        return what + kept + (f", {len(self.skipped)} skipped" if self.skipped else "")


def run_files(
    model: Path,
    sources: Sequence[Path],
    output: Path,
    *,
    tiles: TileOptions | None = None,
    options: ConvertOptions | None = None,
    cube_suffix: str = ".npy",
    overwrite: bool = False,
    skip_existing: bool = False,
    make_restorer: MakeRestorer = Restorer,
) -> RunResult:
    """Run a model on files and on all files of folders.

    Of a classifier all classes go to one table, see :func:`csa2glmha.commands.predict.classify`. Otherwise
    images become images of the same name and bit depth, in the same subfolders; where the output is a
    spectrum, .npy or .mat files of height x width x bands. Of folders, files that cannot be read, restored
    or stored in their format are left out with a line.

    Args:
        model: checkpoint, student or ONNX file.
        sources: images; for MST recorded measurements, or cubes that measurements are simulated from.
        output: folder of the results.
        tiles: about tiles; None: where the memory demands it.
        options: of them weights and device, and those on masks, measurements and arrays; None: the defaults.
        cube_suffix: .npy or .mat, of outputs that are cubes.
        overwrite: replace existing outputs; inputs are never replaced.
        skip_existing: leave them, and make the others: so an interrupted run goes on.
        make_restorer: from the model's file, the open model, its device and the tiles to what restores one
            image, by its name and the network's inputs.

    Raises:
        UsageError: options that do not fit the model or each other.
        OutputError: an output exists, or cannot be written.
        Csa2GlmhaError: a file that was named cannot be used, or nothing of the folders.
    """
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing exclude each other: give one of them")
    options, tiles = options or make_options(), tiles or TileOptions()
    with exclusive_folder(output):
        return _run_files(
            model, sources, output, tiles, options, cube_suffix, overwrite, skip_existing, make_restorer
        )


def _run_files(
    model: Path,
    sources: Sequence[Path],
    output: Path,
    tiles: TileOptions,
    options: ConvertOptions,
    cube_suffix: str,
    overwrite: bool,
    skip_existing: bool,
    make_restorer: MakeRestorer,
) -> RunResult:
    opened = open_model(model, options.device, options.weights, options)
    kind, facts = opened.kind, opened.facts
    if kind.outputs(facts) is LOGITS:
        made = classify(opened, sources, output, tiles, options, overwrite, skip_existing)
        return RunResult((output / PREDICTIONS_FILE,), made.skipped, made.kept, made.failed, made.count)
    inputs = kind.open_files(facts, options, cube_suffix)
    formats = inputs.formats
    found = find_jobs(sources, output, formats, overwrite, skip_existing)
    if found.foreign:
        say(left_out_line(found.foreign))
    # All inputs, done or not: their units must not depend on how much is left to do.
    every = find_jobs(sources, output, formats, overwrite=True).jobs
    read = inputs.reader([job.sources for job in every])
    place = torch.device("cpu") if opened.network is None else resolve_device(options.device)
    restorer, room = make_restorer(model, opened, place, tiles), image_room(tiles)
    stretched = kind.stretches(facts, options)
    if stretched:
        say(STRETCH_NOTE)
    written, skipped = [], list(found.foreign)
    for job in progress(found.jobs, what="restoring", unit="file"):
        try:
            source = read(job.sources, room)
            ensure_writable(job.output, overwrite)
            restored = restorer(job.sources[0].name, source.inputs)
            if formats.output_suffix:
                _say_range(job, restored)
            restored = restored.clamp(0, 1) if stretched else restored
            _write(job, restored, source.stored, bool(formats.output_suffix))
        # What concerns this file alone; a full disk, for one, ends the run.
        except (DataError, UnfitError) as error:
            if job.named:
                raise
            skipped.append((job.sources[0], str(error)))
            say(skipped_line(*skipped[-1]))
            continue
        written.append(job.output)
    if skipped and not written and not found.kept:
        raise DataError(f"nothing could be used: {skipped[-1][1]}")
    return RunResult(tuple(written), tuple(skipped), found.kept, len(skipped) - len(found.foreign))


def _say_range(job: Job, cube: Tensor) -> None:
    """Tell of a spectrum that cannot be one."""
    if out_of_range(cube):
        say(
            f"{job.sources[0]}: output from {cube.min():.3g} to {cube.max():.3g}, far beyond [0, 1]: "
            f"{RANGE_HINT}"
        )


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
    write_image(job.output, restored, bits, alpha, profile, stored.colour_chunks)
    for loss in lost:
        say(f"{job.output}: {loss}")
