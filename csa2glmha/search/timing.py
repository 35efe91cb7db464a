"""What choices save in time, read from profiles of whole exported networks."""

from __future__ import annotations

import copy
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from csa2glmha.bench.compare import TEACHER, THOROUGH, compare_files
from csa2glmha.bench.profile import ModuleProfile, profile_modules
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import ExportError
from csa2glmha.core.progress import progress, say
from csa2glmha.export.onnx import export_onnx
from csa2glmha.initialize.configure import layer_config, plan_layers
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers, replace_layers
from csa2glmha.search.choices import SIDES, Choice, combined
from csa2glmha.search.costs import Costs, Finish, Key, unchanged
from csa2glmha.search.space import Configs

RUNS = 12
#: A network whose calm runs take so many times as long as another's, in what both share, is timed again.
DISTURBED = 1.15
RETRIES = 2
LOSSLESS, STUDENT, BOTH = "lossless", "student", "both"

T = TypeVar("T")


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
    """

    def __init__(
        self,
        teacher: RestorationModel,
        frame: tuple[int, int],
        folder: Path,
        finish: Finish[RestorationModel] = unchanged,
    ) -> None:
        self._teacher, self._folder, self._finish = teacher, folder, finish
        self._shapes = teacher.input_shapes(*frame)
        self._plain = folder / "teacher.onnx"
        say("exporting the teacher for comparison")
        export_onnx(teacher, self._plain, plain=True)

    def share(self, configs: Configs) -> float:
        """The time of the student with these layers over the teacher's."""
        return self._against_teacher(self._export(STUDENT, configs))[1]

    def times(self, choices: Mapping[Key, Sequence[Choice]], costs: Costs) -> Times:
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
        profiles: dict[str, ModuleProfile] = {}
        again = list(networks)
        for _ in range(1 + RETRIES):
            for label in progress(again, what="timing ranks", unit="network"):
                path = self._export(label, networks[label])
                profile = profile_modules(path, *self._shapes, runs=RUNS)
                if label not in profiles or sum(_fastest(profile)) < sum(_fastest(profiles[label])):
                    profiles[label] = profile
                path.unlink()
            again = disturbed(profiles, names)
        teacher, share = self._against_teacher(self._export(LOSSLESS, networks[LOSSLESS]))
        layers = layer_times(profiles, LOSSLESS, names)
        # In profiles every node takes a little longer.
        scale = share * teacher / statistics.median(_fastest(profiles[LOSSLESS]))
        return Times(teacher, share * teacher, _saved(choices, costs, layers, scale))

    def _against_teacher(self, path: Path) -> tuple[float, float]:
        """The teacher's milliseconds, and a file's time over them."""
        files = {TEACHER: self._plain, path.stem: path}
        timed = compare_files(files, *self._shapes, patience=THOROUGH)
        return timed.latencies[TEACHER].median_ms, timed.ratios[path.stem].median

    def _export(self, label: str, configs: Configs) -> Path:
        path = self._folder / f"{label}.onnx"
        student = self._finish(_network(self._teacher, configs))
        report = export_onnx(student, path, overwrite=True)
        if not report.rewritten:
            raise ExportError(f"--latency: students of this model cannot be timed, {'; '.join(report.notes)}")
        return path


def _networks(teacher: RestorationModel, choices: Mapping[Key, Sequence[Choice]]) -> dict[str, Configs]:
    """By label: the one at full rank, and one for every index in the choices of a side."""
    layers = attention_layers(teacher)
    full = plan_layers(layers, Ranks())
    networks = {LOSSLESS: full, BOTH: dict(full)}
    for (name, side), each in choices.items():
        for index, choice in enumerate(each):
            if not choice.full:
                networks.setdefault(_label(side, index), dict(full))[name] = choice.config
    for name in full:
        pair = [choices[name, side][_middle(choices[name, side])] for side in SIDES]
        networks[BOTH][name] = layer_config(layers[name].form, combined(*pair))
    return dict(networks)


def _label(side: str, index: int) -> str:
    return f"{side} {index}"


def _middle(choices: Sequence[Choice]) -> int:
    return len(choices) // 2


@dataclass(frozen=True)
class _Run:
    """Milliseconds of one run: of what all networks share, and of each layer."""

    common: float
    own: Mapping[str, float]


def layer_times(
    profiles: Mapping[str, ModuleProfile], reference: str, layers: Collection[str]
) -> dict[str, dict[str, float]]:
    """Milliseconds of every layer in every network, as if all had run at the reference's speed.

    Belonging to a layer are its own nodes and those of the modules beside it that differ between networks,
    such as a norm that also pools what a guide needs.

    Args:
        profiles: of the networks.
        reference: the label of one.
        layers: names of attention modules.

    Returns:
        By network and layer.
    """
    calm = _calm_runs(profiles, layers)
    pace = statistics.median(run.common for run in calm[reference])
    return {
        label: {
            layer: statistics.median(run.own[layer] * pace / run.common for run in runs)
            for layer in runs[0].own
        }
        for label, runs in calm.items()
    }


def disturbed(profiles: Mapping[str, ModuleProfile], layers: Collection[str]) -> list[str]:
    """Labels of the networks that ran while the machine did something else.

    Not all operators slow down alike then, so that what all networks share is no measure any more.
    """
    calm = _calm_runs(profiles, layers)
    paces = {label: statistics.median(run.common for run in runs) for label, runs in calm.items()}
    return [label for label, pace in paces.items() if pace > DISTURBED * min(paces.values())]


def _calm_runs(profiles: Mapping[str, ModuleProfile], layers: Collection[str]) -> dict[str, list[_Run]]:
    """The faster half of the runs of every network, told by what all networks share."""
    owners = _owners(list(profiles.values()), layers)

    def divided(run: Mapping[str, float]) -> _Run:
        common, own = 0.0, dict.fromkeys(owners.values(), 0.0)
        for module, milliseconds in run.items():
            owner = next((owners[part] for part in _ancestors(module) if part in owners), None)
            if owner is None:
                common += milliseconds
            else:
                own[owner] += milliseconds
        return _Run(common, own)

    return {
        label: _fastest_half([divided(run) for run in profile.runs], lambda run: run.common)
        for label, profile in profiles.items()
    }


def _fastest(profile: ModuleProfile) -> list[float]:
    """Milliseconds of the faster half of the runs."""
    return _fastest_half([sum(run.values()) for run in profile.runs], float)


def _fastest_half(values: Sequence[T], time: Callable[[T], float]) -> list[T]:
    return sorted(values, key=time)[: (len(values) + 1) // 2]


def _owners(profiles: Sequence[ModuleProfile], layers: Collection[str]) -> dict[str, str]:
    """By module, the layer that its time belongs to; modules inside it are not named."""
    parents = {parent: layer for layer in layers if (parent := layer.rpartition(".")[0])}
    around = {part for layer in layers for part in _ancestors(layer)}
    made: list[dict[str, list[str]]] = []
    for profile in profiles:
        beside: defaultdict[str, list[str]] = defaultdict(list)
        for module, names in profile.nodes.items():
            for part in _ancestors(module):
                if part not in around and part.rpartition(".")[0] in parents:
                    beside[part] += names
        made.append({part: sorted(names) for part, names in beside.items()})
    differing = {
        part for nodes in made for part in nodes if any(each.get(part) != nodes[part] for each in made)
    }
    return {layer: layer for layer in layers} | {part: parents[part.rpartition(".")[0]] for part in differing}


def _ancestors(module: str) -> Iterable[str]:
    """A module's name, then those of the modules around it."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _saved(
    choices: Mapping[Key, Sequence[Choice]],
    costs: Costs,
    layers: Mapping[str, Mapping[str, float]],
    scale: float,
) -> dict[Key, list[float]]:
    def gain(label: str, name: str) -> float:
        return scale * (layers[LOSSLESS][name] - layers[label][name])

    mean = _Means()
    for (name, side), each in choices.items():
        for index, choice in enumerate(each):
            if not choice.full:
                mean.add((choice.config, costs.saved[name, side][index]), gain(_label(side, index), name))
    saved = {
        key: [
            0.0 if choice.full else mean[choice.config, costs.saved[key][index]]
            for index, choice in enumerate(each)
        ]
        for key, each in choices.items()
    }
    # What both sides need, such as a guide, is paid for once: half of it by each.
    pairs: dict[str, Hashable] = {}
    for name in dict.fromkeys(name for name, _ in choices):
        middle = [((name, side), _middle(choices[name, side])) for side in SIDES]
        if not any(choices[key][index].full for key, index in middle):
            pairs[name] = tuple(
                (choices[key][index].config, costs.saved[key][index]) for key, index in middle
            )
            mean.add(pairs[name], gain(BOTH, name) - sum(saved[key][index] for key, index in middle))
    for key, each in choices.items():
        for index, choice in enumerate(each):
            if not choice.full and key[0] in pairs:
                saved[key][index] += mean[pairs[key[0]]] / 2
    return saved


class _Means:
    """Means of what was measured of things that are alike."""

    def __init__(self) -> None:
        self._values: defaultdict[Hashable, list[float]] = defaultdict(list)

    def add(self, kind: Hashable, value: float) -> None:
        self._values[kind].append(value)

    def __getitem__(self, kind: Hashable) -> float:
        return statistics.mean(self._values[kind])


def _network(teacher: RestorationModel, configs: Configs) -> RestorationModel:
    """A student whose weights are noise, which takes no less time than those that were learned."""
    student = copy.deepcopy(teacher)
    replace_layers(student, dict(configs))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in configs:
            for parameter in student.get_submodule(name).parameters():
                if not parameter.any():
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return student.eval()
