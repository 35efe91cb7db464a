"""What choices save in time: students of one teacher, timed on this machine."""

from __future__ import annotations

import copy
import statistics
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from csa2glmha.bench.compare import TEACHER, THOROUGH, FileTimings, compare_files
from csa2glmha.bench.profile import ModuleProfile, profile_modules
from csa2glmha.bench.rounds import Patience
from csa2glmha.core.errors import ExportError
from csa2glmha.core.progress import progress, say
from csa2glmha.export.onnx import ExportReport, export_onnx
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.foreign import users_own
from csa2glmha.reading.sizes import Sizes
from csa2glmha.search.choices import HIDDEN, SIDES, Choice, Key, RankChoice, picks_of_side, sizes_of
from csa2glmha.search.costs import ChoiceCosts, Finish, unchanged
from csa2glmha.search.timing import disturbed, fastest, layer_times

RUNS = 12
RETRIES = 2
LOSSLESS, STUDENT, BOTH = "lossless", "student", "both"


class Machine(Protocol):
    """Where networks are exported and run."""

    def export(
        self,
        model: RestorationModel,
        path: Path,
        *,
        plain: bool = False,
        shape: Sequence[int] | None = None,
        overwrite: bool = False,
    ) -> ExportReport:
        """As :func:`csa2glmha.export.onnx.export_onnx`."""
        ...

    def profile(self, path: Path, *shapes: tuple[int, ...], runs: int) -> ModuleProfile:
        """As :func:`csa2glmha.bench.profile.profile_modules`."""
        ...

    def compare(self, files: Mapping[str, Path], *shapes: tuple[int, ...], patience: Patience) -> FileTimings:
        """As :func:`csa2glmha.bench.compare.compare_files`."""
        ...


class ThisMachine:
    """ONNX Runtime, here."""

    export = staticmethod(export_onnx)
    profile = staticmethod(profile_modules)
    compare = staticmethod(compare_files)


@dataclass(frozen=True)
class Times:
    """Milliseconds of ONNX Runtime.

    Attributes:
        teacher: of the teacher's plain export.
        lossless: of the student at full rank, as it is deployed.
        saved: of every choice, how much less than at full rank.
    """

    teacher: float
    lossless: float
    saved: dict[Key, list[float]]


class Stopwatch:
    """Times students of one teacher against its plain export, which is made once.

    Args:
        teacher: in eval mode.
        frame: height and width.
        finish: what is done to a student before it is used.
        folder: where files can be; the caller removes it.
        machine: that they are timed on.
    """

    def __init__(
        self,
        teacher: RestorationModel,
        frame: tuple[int, int],
        folder: Path,
        finish: Finish[RestorationModel] = unchanged,
        machine: Machine | None = None,
    ) -> None:
        self._machine: Machine = machine or ThisMachine()
        self._teacher, self._folder, self._finish = teacher, folder, finish
        self._shapes = teacher.input_shapes(*frame)
        self._plain = folder / "teacher.onnx"
        say("exporting the teacher for comparison")
        # For the one size that is timed, see compare_with_teacher.
        self._machine.export(teacher, self._plain, plain=True, shape=self._shapes[0])

    def share(self, sizes: Sizes) -> float:
        """The time of the student of these sizes over the teacher's."""
        return self._against_teacher(self._export(STUDENT, sizes))[1]

    def times(self, choices: Mapping[Key, Sequence[Choice]], costs: ChoiceCosts) -> Times:
        """Time networks that have the first choice of every layer's side, the second, and so on.

        What a layer takes is read from the network's profile, relative to the nodes that all networks have
        alike: so the networks can run one after the other, however the machine's speed changes. Layers whose
        choices are the same and save the same multiply-accumulates and parameters take the same time, and
        share what was measured of each.

        Raises:
            ExportError: a student has no deployment form, whose nodes would tell where they belong.
        """
        networks = _networks(self._teacher, choices)
        names = list(dict.fromkeys(name for name, _ in choices))
        alone = {name for name, side in choices if side == HIDDEN}
        profiles: dict[str, ModuleProfile] = {}
        again = list(networks)
        for _ in range(1 + RETRIES):
            for label in progress(again, what="timing ranks", unit="network"):
                path = self._export(label, networks[label])
                profile = self._machine.profile(path, *self._shapes, runs=RUNS)
                if label not in profiles or sum(fastest(profile)) < sum(fastest(profiles[label])):
                    profiles[label] = profile
                path.unlink()
            again = disturbed(profiles, names, alone)
        teacher, share = self._against_teacher(self._export(LOSSLESS, networks[LOSSLESS]))
        layers = layer_times(profiles, LOSSLESS, names, alone)
        # In profiles every node takes a little longer.
        scale = share * teacher / statistics.median(fastest(profiles[LOSSLESS]))
        return Times(teacher, share * teacher, _saved(choices, costs, layers, scale))

    def _against_teacher(self, path: Path) -> tuple[float, float]:
        """The teacher's milliseconds, and a file's time over them."""
        files = {TEACHER: self._plain, path.stem: path}
        timed = self._machine.compare(files, *self._shapes, patience=THOROUGH)
        return timed.latencies[TEACHER].median_ms, timed.ratios[path.stem].median

    def _export(self, label: str, sizes: Sizes) -> Path:
        path = self._folder / f"{label}.onnx"
        student = self._finish(_network(self._teacher, sizes))
        report = self._machine.export(student, path, overwrite=True)
        if not report.rewritten:
            raise ExportError(f"--latency: students of this model cannot be timed, {'; '.join(report.notes)}")
        return path


def _networks(teacher: RestorationModel, choices: Mapping[Key, Sequence[Choice]]) -> dict[str, Sizes]:
    """By label: the one at full rank, and one for every index in the choices of a side."""
    networks = {LOSSLESS: sizes_of(teacher, choices, [0] * len(choices))}
    for side in dict.fromkeys(side for _, side in choices):
        for index in range(1, max(len(each) for (_, own), each in choices.items() if own == side)):
            picks = picks_of_side(choices, side, index)
            networks[_label(side, index)] = sizes_of(teacher, choices, picks)
    middle = [_middle(each) if side in SIDES else 0 for (_, side), each in choices.items()]
    return networks | {BOTH: sizes_of(teacher, choices, middle)}


def _label(side: str, index: int) -> str:
    return f"{side} {index}"


def _middle(choices: Sequence[Choice]) -> int:
    return len(choices) // 2


def _saved(
    choices: Mapping[Key, Sequence[Choice]],
    costs: ChoiceCosts,
    layers: Mapping[str, Mapping[str, float]],
    scale: float,
) -> dict[Key, list[float]]:
    def gain(label: str, name: str) -> float:
        return scale * (layers[LOSSLESS][name] - layers[label][name])

    mean = _Means()
    for (name, side), each in choices.items():
        for index, choice in enumerate(each):
            if not choice.full:
                mean.add(_kind(choice, costs.saved[name, side][index]), gain(_label(side, index), name))
    saved = {
        key: [
            0.0 if choice.full else mean[_kind(choice, costs.saved[key][index])]
            for index, choice in enumerate(each)
        ]
        for key, each in choices.items()
    }
    # What both sides need, such as a guide, is paid for once: half of it by each.
    pairs: dict[str, Hashable] = {}
    for name in dict.fromkeys(name for name, side in choices if side in SIDES):
        middle = [((name, side), _middle(choices[name, side])) for side in SIDES]
        if not any(choices[key][index].full for key, index in middle):
            pairs[name] = tuple(_kind(choices[key][index], costs.saved[key][index]) for key, index in middle)
            mean.add(pairs[name], gain(BOTH, name) - sum(saved[key][index] for key, index in middle))
    for key, each in choices.items():
        for index, choice in enumerate(each):
            if not choice.full and key[0] in pairs and key[1] in SIDES:
                saved[key][index] += mean[pairs[key[0]]] / 2
    return saved


def _kind(choice: Choice, saved: tuple[int, int]) -> Hashable:
    """What choices that take the same time have in common."""
    if isinstance(choice, RankChoice):
        return choice.config, saved
    return choice.side, choice.label, saved


class _Means:
    """Means of what was measured of things that are alike."""

    def __init__(self) -> None:
        self._values: defaultdict[Hashable, list[float]] = defaultdict(list)

    def add(self, kind: Hashable, value: float) -> None:
        self._values[kind].append(value)

    def __getitem__(self, kind: Hashable) -> float:
        return statistics.mean(self._values[kind])


def _network(teacher: RestorationModel, sizes: Sizes) -> RestorationModel:
    """A student whose weights are noise, which takes no less time than those that were learned."""
    student = copy.deepcopy(teacher)
    sizes.put_in(student)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in sizes.configs:
            for parameter in users_own(student).get_submodule(name).parameters():
                if not parameter.any():
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return student.eval()
