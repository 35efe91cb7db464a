"""States of a training on disk: written whole or not at all, read only if they are whole and belong to it.

    FOLDER/step-00000120/state.json              where the training is, what it belongs to, a checksum
    FOLDER/step-00000120/tensors.safetensors     weights, best weights, optimizer

A state is made under another name and renamed when all of it is on the disk. The last two are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from csa2glmha.checkpoint import write_safetensors
from csa2glmha.core.errors import CheckpointError, DataError, InterruptedRunError, OutputError, UsageError
from csa2glmha.core.files import atomic_path, is_disk_full, sha256_of
from csa2glmha.core.strict_json import dumps
from csa2glmha.distill.state_files import (
    DAMAGED_PREFIX,
    FORMAT,
    INITIAL_FILE,
    POSITION_FILE,
    STEP_FOLDER,
    TEMPORARY,
    TEMPORARY_PREFIX,
    TENSOR_FILE,
    flush_folder,
    is_ours,
    is_state,
    remove,
)

FORMAT_VERSION = 1
KEPT = 2

T = TypeVar("T")


@dataclass
class Position:
    """Where a training is, and what it has seen; everything that is not a tensor.

    Attributes:
        stage: number of the stage that is on.
        step: steps taken in it.
        planned: steps it will take; None until that is known.
        ended: it has ended before that.
        taken: steps taken in all stages.
        seconds: spent so far, and when the stage began.
        stage_started: likewise, in seconds.
        evaluation_seconds: that the last evaluation took.
        before: agreement of the initialisation with the teacher: PSNR in dB, of logits the KL divergence.
        stage_before: of the weights that the stage began with.
        figure, score: of the best weights, that agreement, and what makes them the best, in dB.
        best_step: when they were found.
        scores: of this stage's evaluations, its beginning first.
        rate: of this stage, as a factor of what was asked for.
        rate_evaluations: of this stage's evaluations, how many were before it was set to that.
        skipped, skipped_in_a_row: steps without finite loss and gradient.
        stopped: why training ended before its budget.
        loss, running_figure: running means over this stage's steps; None before there are any.
        stages, curve: as in :class:`csa2glmha.distill.result.DistillResult`.
    """

    stage: int = 0
    step: int = 0
    planned: int | None = None
    ended: bool = False
    taken: int = 0
    seconds: float = 0.0
    stage_started: float = 0.0
    evaluation_seconds: float = 0.0
    before: float = 0.0
    stage_before: float = 0.0
    figure: float = 0.0
    score: float = 0.0
    best_step: int = 0
    scores: list[float] = field(default_factory=list)
    rate: float = 1.0
    rate_evaluations: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    stopped: str = ""
    loss: float | None = None
    running_figure: float | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class State:
    """Everything that a training needs to go on exactly.

    Attributes:
        position: where it is.
        student, best: weights by name.
        optimizer: by number of the parameter in the stage: the optimizer's tensors by name.
        scaler: of the loss in fp16; empty without.
    """

    position: Position
    student: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    optimizer: Mapping[int, Mapping[str, Tensor]]
    scaler: dict[str, Any]


class _DamagedError(Exception):
    """A state that cannot be read; the message says why."""


class StateFolder:
    """The folder of one training's states.

    Args:
        path: of the folder; it is made when the first state is written.
        identity: what a training must share with a state to go on from it, by the name that the user
            knows it by; JSON values.
        minutes: between states.
        say: is told of damaged states.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        minutes: float = 5.0,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.path, self.minutes, self._say = path, minutes, say
        self._identity = json.loads(dumps(identity))
        self._damaged: list[Path] = []
        self._newest: int | None = None

    def steps(self) -> list[int]:
        """The steps there are states of, newest first; what is no state of ours does not count."""
        return sorted(
            (int(entry.name.removeprefix("step-")) for entry in self._entries() if is_state(entry)),
            reverse=True,
        )

    def check_place(self, overwrite: bool) -> None:
        """Refuse a place that is not ours: states are neither written nor deleted through links.

        Args:
            overwrite: a link in the place of the folder is to be replaced.

        Raises:
            OutputError: it is a link, or something is in the place of a state.
        """
        if self.path.is_symlink() and not overwrite:
            raise OutputError(
                f"{self.path} is a link, and states are kept in a folder of their own: put the folder there "
                "itself, pass --overwrite to replace the link, or choose another place with -o"
            )
        for entry in self._entries():
            named = STEP_FOLDER.fullmatch(entry.name) or entry.name == INITIAL_FILE
            if named and not is_ours(entry):
                raise OutputError(
                    f"{entry} is not of csa2glmha, and in the way of its states: move it away, or choose "
                    "another place with -o"
                )

    def check_free(self) -> None:
        """Refuse to begin where states of another training are.

        Raises:
            OutputError: they are there.
        """
        steps = self.steps()
        if steps:
            raise OutputError(
                f"{self.path} holds the state of an interrupted run, of step {steps[0]}: pass --resume to "
                "continue it, --overwrite to start over, or choose another place with -o"
            )

    def load(self) -> State | None:
        """The newest state that is whole; None if there is none of any kind. Nothing is changed or deleted.

        Raises:
            CheckpointError: all states are damaged, or the folder is not one of states.
            UsageError: the state belongs to another training.
        """
        steps = self.steps()
        if not steps:
            if os.path.lexists(self.path) and not (self._is_folder() and all(map(is_ours, self._entries()))):
                raise CheckpointError(
                    f"--resume: {self.path} holds no state of csa2glmha; move it away, or choose another "
                    "place with -o"
                )
            return None
        reasons = []
        for step in steps:
            folder = self._folder(step)
            try:
                state = self._read(folder)
            except _DamagedError as error:
                self._damaged.append(folder)
                reasons.append(f"{folder.name} {error}")
                continue
            if reasons:
                self._say(f"{self.path}: {'; '.join(reasons)}; going on from step {step}")
            self._newest = step
            return state
        raise CheckpointError(
            f"--resume: every state in {self.path} is damaged: {'; '.join(reasons)}; nothing was deleted, "
            "--overwrite starts over"
        )

    def save(self, state: State) -> None:
        """Write a state, unless that of its step is there, and let go of all but the last two.

        Where the disk is full, all but the last one go first.

        Raises:
            OutputError: it cannot be written; the newest that is there stays.
        """
        step = state.position.taken
        if step == self._newest:
            return
        try:
            self._save(state)
        except OutputError as error:
            if not (is_disk_full(error) and self.make_room()):
                raise
            self._save(state)
        self._newest = step
        for old in self.steps()[KEPT:]:
            remove(self._folder(old))

    def make_room(self) -> bool:
        """Delete all states but the newest one that is whole; returns whether there were any."""
        if self._newest is None:
            return False
        others = [step for step in self.steps() if step != self._newest]
        for step in others:
            remove(self._folder(step))
        return bool(others)

    def clear(self) -> None:
        """Delete the states, and the folder if nothing else is in it; of a link, the link."""
        if self.path.is_symlink():
            self.path.unlink()
        # Killed on the way, this leaves whole states or none.
        for step in reversed(self.steps()):
            with contextlib.suppress(OSError):
                self._folder(step).rename(self.path / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        for entry in filter(is_ours, self._entries()):
            remove(entry)
        with contextlib.suppress(OSError):
            self.path.rmdir()
        self._newest = None

    @property
    def newest(self) -> int | None:
        """The step of the state that was read or written last."""
        return self._newest

    def _is_folder(self) -> bool:
        return self.path.is_dir() and not self.path.is_symlink()

    def _entries(self) -> list[Path]:
        return list(self.path.iterdir()) if self._is_folder() else []

    def _folder(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def _save(self, state: State) -> None:
        temporary = self.path / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._put_damaged_aside()
            temporary.mkdir()
            self._write(temporary, state)
            temporary.rename(self._folder(state.position.taken))
            flush_folder(self.path)
        except (OSError, OutputError) as error:
            remove(temporary)
            cause = error if isinstance(error, OSError) else error.__cause__
            reason = getattr(cause, "strerror", None) or error
            raise OutputError(
                f"cannot save a state in {self.path}: {reason}; free some space there"
            ) from error

    def _put_damaged_aside(self) -> None:
        # They would be in the way of new states of their steps. A killed run's unfinished ones go as well.
        for folder in self._damaged:
            folder.rename(folder.with_name(f"{DAMAGED_PREFIX}{folder.name}-{uuid.uuid4().hex[:8]}"))
        self._damaged = []
        for entry in self._entries():
            if TEMPORARY.fullmatch(entry.name) and is_ours(entry):
                remove(entry)

    def _write(self, folder: Path, state: State) -> None:
        tensors = {f"student.{name}": value for name, value in state.student.items()}
        tensors |= {f"best.{name}": value for name, value in state.best.items()}
        for number, values in state.optimizer.items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
        write_safetensors(folder / TENSOR_FILE, tensors, {"format": FORMAT})
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "identity": self._identity,
            "position": asdict(state.position),
            "scaler": state.scaler,
            "tensors_sha256": sha256_of(folder / TENSOR_FILE),
        }
        with atomic_path(folder / POSITION_FILE) as temporary:
            temporary.write_text(dumps(content, indent=1) + "\n", encoding="utf-8")
        flush_folder(folder)

    def _read(self, folder: Path) -> State:
        try:
            content = json.loads((folder / POSITION_FILE).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise _DamagedError("is not a state of csa2glmha")
            if content["format_version"] != FORMAT_VERSION:
                raise UsageError(f"--resume: {folder} is of another version of csa2glmha; use that one")
            self._check_identity(folder, content["identity"])
            data = (folder / TENSOR_FILE).read_bytes()
            if hashlib.sha256(data).hexdigest() != content["tensors_sha256"]:
                raise _DamagedError(f"is damaged ({TENSOR_FILE} is not what was written)")
            position, scaler = Position(**_as_named_now(content["position"])), content["scaler"]
            return _state(position, safetensors.torch.load(data), scaler)
        except OSError as error:
            missing = Path(error.filename or folder).name
            raise _DamagedError(f"is damaged ({missing}: {error.strerror or error})") from error
        except (ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            raise _DamagedError(f"is damaged ({POSITION_FILE} is not what was written)") from error

    def _check_identity(self, folder: Path, theirs: dict[str, Any]) -> None:
        for name in dict.fromkeys((*self._identity, *theirs)):
            then, now = theirs.get(name), self._identity.get(name)
            if then != now:
                raise UsageError(
                    f"--resume: {folder} is of another run: {name} was {_short(then)} and is {_short(now)}; "
                    "repeat that run's options, or start over with --overwrite and without --resume"
                )


@contextlib.contextmanager
def resumable(path: Path, how: str = "repeat the command with --resume") -> Iterator[None]:
    """Make what ends the work within say how to resume, if a folder has a state to do so.

    That is an interrupt, or an image that is not there any more.

    Args:
        path: of the folder.
        how: what the user is to do.

    Raises:
        InterruptedRunError: instead of KeyboardInterrupt.
        DataError: with one more half-sentence, if the state is new.
    """
    before = StateFolder(path, {}).steps()
    try:
        yield
    except DataError as error:
        steps = StateFolder(path, {}).steps()
        if not steps or steps == before:
            raise
        raise DataError(
            f"{error}; the state of step {steps[0]} is in {path}: put that right, then {how} to continue"
        ) from error
    except KeyboardInterrupt:
        steps = StateFolder(path, {}).steps()
        if not steps:
            raise
        raise InterruptedRunError(
            f"interrupted; the state of step {steps[0]} is in {path}: {how} to continue"
        ) from None


def with_room(states: StateFolder, write: Callable[[], T], taken: int = 0) -> T:
    """Write a result; where the disk is full, states make room for it.

    The newest state goes only where it holds less than the result does.

    Args:
        states: of the training that the result comes from.
        write: what is to be done; it is done again where there is room then.
        taken: steps that the result alone holds; 0: without it nothing is lost.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        return write()
    except OutputError as error:
        if not is_disk_full(error):
            raise
        full = error
    if states.make_room():
        try:
            return write()
        except OutputError as error:
            if not is_disk_full(error):
                raise
            full = error
    if states.newest is None or states.newest < taken:
        states.clear()
        return write()
    raise OutputError(
        f"{full}; the state of step {states.newest} stays in {states.path}: when there is room, repeat the "
        "command with --resume"
    ) from full


def _as_named_now(position: Mapping[str, Any]) -> dict[str, Any]:
    """Its fields by their names of today; earlier versions trained on images alone."""
    names = {"psnr": "figure", "running_psnr": "running_figure"}
    return {names.get(name, name): value for name, value in position.items()}


def _state(position: Position, tensors: Mapping[str, Tensor], scaler: dict[str, Any]) -> State:
    groups: dict[str, dict[str, Tensor]] = {"student": {}, "best": {}}
    optimizer: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "optimizer":
            number, _, name = name.partition(".")
            optimizer.setdefault(int(number), {})[name] = value
        else:
            groups[kind][name] = value
    return State(position, groups["student"], groups["best"], optimizer, scaler)


def _short(value: Any) -> str:
    text = dumps(value)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"
