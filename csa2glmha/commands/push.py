"""Sending the results of a conversion to the Hugging Face Hub, after showing what would go."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from csa2glmha.checkpoint import STUDENT_FORMAT
from csa2glmha.checkpoint.student import STUDENT_FILE, TEACHER_VALUES
from csa2glmha.compression.workspace import ONNX_FILE, OUTPUT_FILES
from csa2glmha.core.errors import OutputError
from csa2glmha.core.hub import check_repository, explain, hub_api
from csa2glmha.core.progress import say
from csa2glmha.distill.job import LOG_FILE
from csa2glmha.report.card import CARD_FILE, LICENSE
from csa2glmha.report.document import REPORT_FILES

#: Options of a report that are paths.
_PATHS = ("data", "targets", "mask", "output", "tensorboard")


@dataclass(frozen=True)
class Parcel:
    """What would go to the Hub.

    Attributes:
        folder: of the conversion.
        repository: "owner/name".
        private: to be seen by its owner only, if it is made now.
        files: to send.
        notes: what its owner should know before.
    """

    folder: Path
    repository: str
    private: bool
    files: tuple[Path, ...]
    notes: tuple[str, ...]

    def describe(self) -> str:
        """A table of the files, and the notes."""
        sizes = [path.stat().st_size for path in self.files]
        width = max(len(path.name) for path in self.files)
        rows = [
            f"  {path.name:{width}}  {_size(size):>9}" for path, size in zip(self.files, sizes, strict=True)
        ]
        kind = "private" if self.private else "public"
        return "\n".join(
            [
                f"to the model repository {self.repository} on the Hugging Face Hub, {kind} if it is new:",
                *rows,
                f"{len(rows)} files, {_size(sum(sizes))}",
                *(f"note: {note}" for note in self.notes),
            ]
        )


def pack(folder: Path, repository: str, *, private: bool = False, log: bool = False) -> Parcel:
    """Look through the folder of a conversion. Nothing is sent, and nothing is connected to.

    Args:
        folder: that convert made.
        repository: "owner/name".
        private: as in :class:`Parcel`.
        log: also the record of the training.

    Raises:
        UsageError: a name that no repository can have.
        OutputError: the folder holds no finished conversion.
    """
    check_repository(repository)
    report = _report_of(folder)
    names = [name for name in (CARD_FILE, *OUTPUT_FILES) if log or name != LOG_FILE]
    files = tuple(folder / name for name in dict.fromkeys(names) if (folder / name).is_file())
    return Parcel(folder, repository, private, files, tuple(_notes(folder, report)))


def send(parcel: Parcel, *, overwrite: bool = False) -> str:
    """Make the repository if there is none, and send the files in one commit.

    Args:
        parcel: from :func:`pack`.
        overwrite: replace files that the repository has.

    Returns:
        The address of the repository.

    Raises:
        UsageError: huggingface_hub is not installed.
        OutputError: the Hub cannot be reached or refuses; files are in the way; the repository is public
            where a private one is wanted.
    """
    api = hub_api(f"push {parcel.folder}")
    from huggingface_hub import CommitOperationAdd

    repository = parcel.repository
    try:
        url = str(api.create_repo(repository, private=parcel.private or None, exist_ok=True))
        there = api.model_info(repository)
    # The client below huggingface_hub, whose errors come through, is another one in every major version.
    except Exception as error:
        raise OutputError(f"push {repository}: {explain(error, repository, api)}") from error
    if parcel.private and not there.private:
        raise OutputError(
            f"push {repository}: is there already and public; nothing was sent: leave out --private, make it "
            "private on its page, or give another name"
        )
    held = {each.rfilename for each in there.siblings or ()}
    in_the_way = [path.name for path in parcel.files if path.name in held]
    if in_the_way and not overwrite:
        raise OutputError(
            f"push {repository}: holds {', '.join(in_the_way)} already; nothing was sent: pass --overwrite "
            "to replace them, or give another name"
        )
    operations = [CommitOperationAdd(path.name, str(path)) for path in parcel.files]
    try:
        api.create_commit(
            repository,
            operations,
            commit_message=f"{parcel.folder.resolve().name}, made by csa2glmha",
            parent_commit=there.sha,  # of what was looked at: a commit in between must not be lost
        )
    except Exception as error:
        raise OutputError(f"push {repository}: {explain(error, repository, api)}") from error
    return url


def _report_of(folder: Path) -> dict[str, Any]:
    """The report of a finished conversion, whose files belong together."""
    if not folder.is_dir():
        raise OutputError(f"push {folder}: is no folder; give one that csa2glmha convert made")
    try:
        report = json.loads((folder / REPORT_FILES[0]).read_text(encoding="utf-8"))
        with safe_open(folder / STUDENT_FILE, framework="np") as file:
            student = file.metadata() or {}
        whole = str(report["tool"]).startswith("csa2glmha ") and student.get("format") == STUDENT_FORMAT
        teacher = student.get(TEACHER_VALUES, student.get("teacher_sha256"))
        same = teacher == report["teacher"]["sha256"]
    except (OSError, ValueError, LookupError, TypeError, SafetensorError):
        whole = same = False
        report = {}
    if not whole or not (folder / ONNX_FILE).is_file():
        raise OutputError(
            f"push {folder}: holds no finished conversion ({STUDENT_FILE}, {ONNX_FILE} and {REPORT_FILES[0]} "
            "that belong to it); give a folder that csa2glmha convert made"
        )
    if not same:
        raise OutputError(
            f"push {folder}: {REPORT_FILES[0]} and {STUDENT_FILE} are of different teachers; convert again"
        )
    return dict(report)


def _notes(folder: Path, report: dict[str, Any]) -> list[str]:
    notes = []
    card = folder / CARD_FILE
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, ValueError):
        notes.append(f"there is no {CARD_FILE} that can be read: the repository will have no model card")
    else:
        if f"license_name: {LICENSE['license_name']}" in text:
            notes.append(
                f"{CARD_FILE} names no licence yet: put that of the teacher's weights in, in place of 'other'"
            )
    options = report.get("options", {})
    paths = [str(options[name]) for name in _PATHS if options.get(name) is not None]
    if paths:
        notes.append(f"the reports name paths of this machine: {', '.join(paths)}")
    return notes


def _size(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def push_folder(
    folder: Path, repository: str, *, private: bool, log: bool, yes: bool, overwrite: bool
) -> str:
    """What `push` prints in the end: what would go, or where it went.

    Raises:
        Csa2GlmhaError: as :func:`pack` and :func:`send`.
    """
    parcel = pack(folder, repository, private=private, log=log)
    if not yes:
        return f"{parcel.describe()}\nnothing was sent: add --yes to send it"
    for note in parcel.notes:
        say(f"note: {note}")
    return send(parcel, overwrite=overwrite)
