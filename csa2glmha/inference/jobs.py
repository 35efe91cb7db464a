"""From the files and folders a user names to one output for each input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from csa2glmha.core.errors import DataError, OutputError, UsageError
from csa2glmha.data import arrays, images
from csa2glmha.data.folders import list_files, list_with_foreign, stem
from csa2glmha.data.inputs.kind import Formats
from csa2glmha.data.pairing import pair_names
from csa2glmha.data.views import VIEW_FOLDERS


@dataclass(frozen=True)
class Job:
    """One output to make.

    Attributes:
        sources: the file it is made from; of dual-pixel images the left and the right view.
        output: the file to write.
        named: the user named the file itself, not a folder.
    """

    sources: tuple[Path, ...]
    output: Path
    named: bool


@dataclass
class FoundJobs:
    """What is to be done.

    Attributes:
        jobs: one for each output to make.
        kept: how many more are left out because their outputs are there.
        foreign: files of folders whose format is not read, with the reason.
    """

    jobs: list[Job] = field(default_factory=list)
    kept: int = 0
    foreign: list[tuple[Path, str]] = field(default_factory=list)


def find_jobs(
    sources: Sequence[Path], folder: Path, formats: Formats, overwrite: bool, skip_existing: bool = False
) -> FoundJobs:
    """List what is to be done, and check that nothing is in the way.

    A file's output has its name, in ``folder``; files of folders keep their subfolders there.

    Raises:
        UsageError: two inputs have the same output, or an input would be replaced.
        DataError: an input is missing or of another kind, or a folder has none.
        OutputError: an output exists, and neither ``overwrite`` nor ``skip_existing`` says what then.
    """
    found = find_inputs(sources, folder, formats)
    jobs = found.jobs
    _check_collisions(jobs)
    existing = [job.output for job in jobs if os.path.lexists(job.output)]
    if skip_existing:
        there = set(existing)
        return replace(found, jobs=[job for job in jobs if job.output not in there], kept=len(existing))
    if existing and not overwrite:
        which = f"{str(existing[0])!r} already exists"
        if len(existing) > 1:
            which = f"{str(existing[0])!r} and {len(existing) - 1} more already exist"
        raise OutputError(
            f"output {which}: pass --skip-existing to make only what "
            "is missing, --overwrite to replace, or choose another folder with -o"
        )
    return found


def find_inputs(sources: Sequence[Path], folder: Path, formats: Formats) -> FoundJobs:
    """List files and all files of folders, where one file takes the results of all.

    Raises:
        UsageError: none is named.
        DataError: an input is missing or of another kind, or a folder has none.
    """
    found = FoundJobs()
    for source in sources:
        if source.is_dir():
            found.jobs += _of_folder(source, folder, formats, found.foreign)
        else:
            found.jobs.append(_of_file(source, folder, formats))
    if not found.jobs:
        raise UsageError("no input: name files or folders")
    return found


def skipped_line(path: Path, reason: str) -> str:
    """One line on a file that could not be restored; its reason may name it."""
    return f"skipped: {reason}" if str(path) in reason else f"skipped {path}: {reason}"


def left_out_line(foreign: Sequence[tuple[Path, str]]) -> str:
    """One line on files whose format is not read."""
    listed = ", ".join(f"{path}: {reason}" for path, reason in foreign[:3])
    more = ", ..." if len(foreign) > 3 else ""
    return f"left out: {len(foreign)} file{'s' * (len(foreign) > 1)} ({listed}{more})"


def _of_file(source: Path, folder: Path, formats: Formats) -> Job:
    if not source.exists():
        raise DataError(f"{str(source)!r} does not exist; give a file, or a folder with {formats.wanted}")
    if formats.views:
        raise DataError(f"{str(source)!r}: a dual-pixel model takes a folder with {formats.wanted}")
    if source.suffix.lower() not in formats.suffixes:
        raise DataError(f"{str(source)!r}: this model takes {', '.join(formats.suffixes)} files")
    return Job((source,), folder / _output_name(source.name, formats), True)


def _of_folder(source: Path, folder: Path, formats: Formats, foreign: list[tuple[Path, str]]) -> list[Job]:
    if formats.views:
        return _of_views(source, folder, formats)
    others = {} if formats.suffixes is arrays.SUFFIXES else images.FOREIGN_SUFFIXES
    files, left_out = list_with_foreign(source, formats.suffixes, others, "input folder", formats.wanted)
    # What an earlier run wrote into a folder inside is not its own input.
    inside = folder.resolve()
    foreign += left_out
    if not files:
        names = f"; {left_out[0][0].name}: {left_out[0][1]}" if left_out else ""
        raise DataError(f"no {formats.wanted} in {str(source)!r}{names}")
    return [
        Job((path,), folder / _output_name(name, formats), False)
        for name, path in files
        if inside == source.resolve() or inside not in path.resolve().parents
    ]


def _of_views(source: Path, folder: Path, formats: Formats) -> list[Job]:
    for names in VIEW_FOLDERS:
        left, right = (source / name for name in names)
        if left.is_dir() and right.is_dir():
            lefts, rights = (
                list_files(side, formats.suffixes, "input folder", formats.wanted) for side in (left, right)
            )
            pairing = pair_names([name for name, _ in lefts], [name for name, _ in rights])
            if pairing.unpaired:
                path = lefts[pairing.unpaired[0][0]][1]
                raise DataError(f"{str(path)!r} has no right view of that name in {str(right)!r}")
            return [
                Job((lefts[one][1], rights[other][1]), folder / _output_name(lefts[one][0], formats), False)
                for one, other in pairing.pairs
            ]
    raise DataError(f"{str(source)!r}: a dual-pixel model takes a folder with {formats.wanted}")


def _output_name(name: str, formats: Formats) -> str:
    suffix = Path(name).suffix
    if formats.output_suffix:
        return stem(name) + formats.output_suffix
    # These two hold colour only, and gray only.
    if suffix.lower() in (".ppm", ".pgm"):
        return stem(name) + (".pgm" if formats.output_channels == 1 else ".ppm")
    return name


def _check_collisions(jobs: list[Job]) -> None:
    inputs = {path.resolve() for job in jobs for path in job.sources}
    seen: dict[Path, Job] = {}
    for job in jobs:
        place = job.output.resolve()
        if place in inputs:
            raise UsageError(f"output {str(job.output)!r} is an input: choose another folder with -o")
        if place in seen:
            raise UsageError(
                f"{str(seen[place].sources[0])!r} and {str(job.sources[0])!r} would both be written to "
                f"{str(job.output)!r}: run them one by one, with different -o"
            )
        seen[place] = job
