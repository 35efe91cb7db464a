"""The output folder of a conversion: its files' names, what an earlier run left, states, lock and room."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from csa2glmha.checkpoint.student import STUDENT_FILE, save_student, weight_bytes
from csa2glmha.config.deployment import RUNTIME_NAMES
from csa2glmha.config.options import ConvertOptions, WorkOptions
from csa2glmha.core.errors import OutputError
from csa2glmha.core.files import check_not_inputs, check_room, prepare_output_dir
from csa2glmha.core.locks import exclusive_folder
from csa2glmha.core.progress import say
from csa2glmha.distill import State, StateFolder
from csa2glmha.distill.job import LOG_FILE, STATE_FOLDER, check_apart, find_state
from csa2glmha.distill.state import resumable, with_room
from csa2glmha.networks import RestorationModel
from csa2glmha.report.card import CARD_FILE, replaceable
from csa2glmha.report.document import REPORT_FILES
from csa2glmha.report.html import HTML_FILE
from csa2glmha.report.sections.summary import PICTURE_FILE, SPECTRA_FILE

ONNX_FILE = "model.onnx"
#: Its files for runtimes other than ONNX Runtime.
FILES_FOR: dict[str, str] = {name: f"model-{name}.onnx" for name in RUNTIME_NAMES[1:]}
OUTPUT_FILES = (
    STUDENT_FILE,
    ONNX_FILE,
    *FILES_FOR.values(),
    *REPORT_FILES,
    HTML_FILE,
    PICTURE_FILE,
    SPECTRA_FILE,
    CARD_FILE,
    LOG_FILE,
)

T = TypeVar("T")


def default_output(checkpoint: Path, options: ConvertOptions) -> str:
    """The folder results go to when none is named: "<checkpoint>-rank8" beside nothing but the caller."""
    stem, budget = options.stem_of(checkpoint), options.budget
    if budget is not None:
        return f"{stem}-rankauto{str(budget).replace(' ', '').replace('--', '-')}"
    named = options.ranks.k is not None or options.shares[0] is not None
    rank = f"rank{options.rank}" if named else "full"
    ranks = {"q": options.rank_q, "k": options.rank_k, "v": options.rank_v, "pos": options.rank_pos}
    extra = "".join(f"-{name}{value}" for name, value in ranks.items() if value is not None)
    compact = "-compact" if options.attention == "compact" else ""
    widths = "" if options.ffn_share == 1 else f"-ffn{options.ffn_share:g}"
    return f"{stem}-{rank}{extra}{compact}{widths}"


@dataclass
class Workspace:
    """The output folder of one conversion.

    Attributes:
        folder: it need not exist yet.
        states: of the training; those of :meth:`begin`.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.states = StateFolder(self.folder / STATE_FOLDER, {})

    @classmethod
    def of(cls, checkpoint: Path, options: ConvertOptions) -> Workspace:
        """Where the options say, or beside the caller by the checkpoint's name."""
        return cls(options.output or Path(default_output(checkpoint, options)))

    @property
    def student(self) -> Path:
        """The student's file."""
        return self.folder / STUDENT_FILE

    @property
    def onnx(self) -> Path:
        """Its ONNX file."""
        return self.folder / ONNX_FILE

    def onnx_for(self, runtime: str) -> Path:
        """Its ONNX file for a runtime, by the name that `--for` has."""
        return self.folder / FILES_FOR.get(runtime, ONNX_FILE)

    @property
    def log(self) -> Path:
        """The record of the distillation."""
        return self.folder / LOG_FILE

    @property
    def files(self) -> list[Path]:
        """All that a conversion may write, states left out."""
        return [self.folder / name for name in OUTPUT_FILES]

    @property
    def taken(self) -> bool:
        """Results are there already."""
        return any(path.exists() for path in self.files)

    @contextlib.contextmanager
    def held(self, how_to_resume: str) -> Iterator[None]:
        """Keep other commands out; what ends the work within says how to resume.

        Raises:
            OutputError: another command is writing there.
            InterruptedRunError: instead of KeyboardInterrupt, where there is a state.
        """
        with resumable(self.states.path, how_to_resume), exclusive_folder(self.folder):
            yield

    def check(self, checkpoint: Path, teacher: RestorationModel, options: ConvertOptions) -> None:
        """Refuse a folder that would harm inputs or has no room; nothing is written.

        Raises:
            UsageError: it is among the images, or a result would replace an input.
            OutputError: there is no room.
        """
        check_apart(self.folder, options)
        check_not_inputs(self.files, checkpoint, options.mask)
        # The student is no larger than its teacher, and its ONNX files neither.
        files = 2 + len(set(FILES_FOR) & set(options.runtimes))
        check_room(self.folder, files * weight_bytes(teacher), [*self.files, self.states.path])

    def begin(self, identity: Mapping[str, Any], options: WorkOptions) -> State | None:
        """Make the folder; returns the state to resume from, if that is wanted and there is one.

        Args:
            identity: what a state must share.
            options: of the conversion.

        Raises:
            OutputError: something is in the way.
            CheckpointError, UsageError: states cannot be used.
        """
        self.states = StateFolder(self.states.path, identity, options.state_minutes, say)
        finished = (self.folder / REPORT_FILES[0]).exists()
        if options.resume and not self.states.steps() and not options.overwrite and finished:
            raise OutputError(
                f"--resume: {self.folder} holds a finished conversion; pass --overwrite to start over, or "
                "choose another folder with -o"
            )
        state = find_state(self.states, options)
        # A run that is killed early leaves a log without a state.
        names = [name for name in OUTPUT_FILES if name != LOG_FILE or not options.resume]
        prepare_output_dir(self.folder, names, options.overwrite or state is not None)
        return state

    def replace_student(self, student: RestorationModel, metadata: dict[str, str], steps: int | None) -> None:
        """Put a student in the place of an earlier one, whose other files go: never are two students' mixed.

        Args:
            student: on the CPU.
            metadata: of its file.
            steps: of its training, whose log is kept; None: it was not trained.
        """
        kept = {STUDENT_FILE} | ({LOG_FILE} if steps is not None else set())
        # A card may have been edited.
        kept |= set() if replaceable(self.folder / CARD_FILE) else {CARD_FILE}
        stale = [path for path in self.files if path.name not in kept]

        def clear() -> None:
            for path in stale:
                path.unlink(missing_ok=True)

        self.write(
            lambda: save_student(self.student, student, metadata, before_replacing=clear), taken=steps or 0
        )

    def write(self, result: Callable[[], T], taken: int = 0) -> T:
        """Write a result; where the disk is full, states make room for it: see :func:`with_room`."""
        return with_room(self.states, result, taken)
