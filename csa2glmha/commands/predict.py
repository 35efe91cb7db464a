"""Classes of image files: what `run` does with a classifier."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from csa2glmha.config.options import ConvertOptions
from csa2glmha.core.errors import DataError, OutputError, UnfitError
from csa2glmha.core.files import atomic_path, check_not_inputs
from csa2glmha.core.progress import progress, say
from csa2glmha.inference.jobs import Job, find_inputs, left_out_line, skipped_line
from csa2glmha.inference.model import OpenModel
from csa2glmha.inference.plan import TileOptions, image_room

PREDICTIONS_FILE = "predictions.csv"
#: Classes of an image that are written, the most probable first.
SHOWN = 5


@dataclass(frozen=True)
class Predictions:
    """What was done.

    Attributes:
        count: images that were classified.
        skipped: files of folders that were left out, with the reason.
        kept: images whose classes were in the file already.
        failed: how many of the skipped ones are of a format that is read.
    """

    count: int
    skipped: tuple[tuple[Path, str], ...]
    kept: int
    failed: int


def classify(
    model: OpenModel,
    sources: Sequence[Path],
    output: Path,
    tiles: TileOptions,
    options: ConvertOptions,
    overwrite: bool,
    skip_existing: bool,
) -> Predictions:
    """Write the most probable classes of files, and of all files of folders, to one table.

    Its columns are file, class_1, probability_1, class_2 and so on. Classes are numbers from 0, probabilities
    the softmax of the logits.

    Args:
        model: that makes logits.
        sources: image files and folders.
        output: folder of the table.
        tiles: of no use; that is said.
        options: of them those on images.
        overwrite: replace an existing table.
        skip_existing: add to it the files that are not in it.

    Raises:
        OutputError: there is a table, or it cannot be written.
        Csa2GlmhaError: a file that was named cannot be used, or nothing of the folders.
    """
    path = output / PREDICTIONS_FILE
    if tiles.size is not None or tiles.overlap is not None or tiles.mode is not None:
        say("tiles: not used, a classifier sees images whole")
    inputs = model.kind.open_files(model.facts, options, "")
    found = find_inputs(sources, output, inputs.formats)
    if found.foreign:
        say(left_out_line(found.foreign))
    check_not_inputs([path], *(source for job in found.jobs for source in job.sources))
    rows = _rows_there(path, overwrite, skip_existing)
    there = {row[0] for row in rows}
    jobs = [job for job in found.jobs if str(job.sources[0]) not in there]
    read, room = inputs.reader([job.sources for job in jobs]), image_room(tiles)
    new, skipped = [], list(found.foreign)
    for job in progress(jobs, what="classifying", unit="file"):
        try:
            new.append(_row(job, model.run(read(job.sources, room).inputs)))
        except (DataError, UnfitError) as error:
            if job.named:
                raise
            skipped.append((job.sources[0], str(error)))
            say(skipped_line(*skipped[-1]))
    if skipped and not new and not rows:
        raise DataError(f"nothing could be used: {skipped[-1][1]}")
    _write(path, [*rows, *new], min(SHOWN, model.bands))
    kept = len(found.jobs) - len(jobs)
    return Predictions(len(new), tuple(skipped), kept, len(skipped) - len(found.foreign))


def _row(job: Job, logits: Tensor) -> list[str]:
    probabilities, classes = logits.double().softmax(-1).topk(min(SHOWN, len(logits)))
    row = [str(job.sources[0])]
    for number, probability in zip(classes.tolist(), probabilities.tolist(), strict=True):
        row += [str(number), f"{probability:.6f}"]
    return row


def _rows_there(path: Path, overwrite: bool, skip_existing: bool) -> list[list[str]]:
    """The rows of a table that is to be kept.

    Raises:
        OutputError: there is one, and nobody said what then, or it cannot be read.
    """
    if not path.exists() or overwrite:
        return []
    if not skip_existing:
        raise OutputError(
            f"output {str(path)!r} already exists: pass --skip-existing to add what is missing, --overwrite "
            "to replace it, or choose another folder with -o"
        )
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8", errors="surrogateescape"))))
    except (OSError, csv.Error) as error:
        raise OutputError(f"{str(path)!r} cannot be read ({error}); choose another folder with -o") from error
    if not rows or rows[0][:1] != ["file"]:
        raise OutputError(f"{str(path)!r} is no table of predictions; choose another folder with -o")
    return rows[1:]


def _write(path: Path, rows: list[list[str]], shown: int) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = [(f"class_{number}", f"probability_{number}") for number in range(1, shown + 1)]
    table.writerow(["file", *(name for pair in columns for name in pair)])
    table.writerows(rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape", newline="")
