"""What choices save in time, read from profiles of whole exported networks."""

from __future__ import annotations

import copy
import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from csa2glmha.attention.glmha import GLMHAConfig
from csa2glmha.attention.layers import attention_layers, replace_layers
from csa2glmha.attention.ranks import Ranks, layer_config, plan_layers
from csa2glmha.bench.compare import THOROUGH, compare_files
from csa2glmha.bench.profile import ModuleProfile, profile_modules
from csa2glmha.export.onnx import export_onnx
from csa2glmha.models import RestorationModel
from csa2glmha.progress import progress, say
from csa2glmha.search.choices import SIDES, Choice, combined
from csa2glmha.search.costs import Costs, Finish, Key, unchanged

RUNS = 7
TEACHER, LOSSLESS, STUDENT, BOTH = "teacher", "lossless", "student", "both"

Configs = Mapping[str, GLMHAConfig]


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
        self, teacher: RestorationModel, frame: tuple[int, int], folder: Path, finish: Finish = unchanged
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
        choices are the same and save the same multiply-accumulates take the same time, and share what was
        measured of each.
        """
        networks = _networks(self._teacher, choices)
        profiles = {}
        teacher, share = 0.0, 0.0
        for label, configs in progress(networks.items(), what="timing ranks", unit="network"):
            path = self._export(label, configs)
            if label == LOSSLESS:
                teacher, share = self._against_teacher(path)
            profiles[label] = profile_modules(path, *self._shapes, runs=RUNS)
            path.unlink()
        layers = layer_times(profiles, LOSSLESS, {name for name, _ in choices})
        whole = statistics.median(sum(run.values()) for run in profiles[LOSSLESS].runs)
        # In profiles every node takes a little longer.
        scale = share * teacher / whole
        return Times(teacher, share * teacher, _saved(choices, costs, layers, scale))

    def _against_teacher(self, path: Path) -> tuple[float, float]:
        """The teacher's milliseconds, and a file's time over them."""
        files = {TEACHER: self._plain, path.stem: path}
        timed = compare_files(files, *self._shapes, patience=THOROUGH)
        return timed.latencies[TEACHER].median_ms, timed.ratios[path.stem].median

    def _export(self, label: str, configs: Configs) -> Path:
        path = self._folder / f"{label}.onnx"
        export_onnx(self._finish(_network(self._teacher, configs)), path, overwrite=True)
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


def layer_times(
    profiles: Mapping[str, ModuleProfile], reference: str, layers: Iterable[str]
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
    owners = _owners(list(profiles.values()), layers)

    def split(run: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        common, own = 0.0, dict.fromkeys(owners.values(), 0.0)
        for module, milliseconds in run.items():
            owner = next((owners[part] for part in _ancestors(module) if part in owners), None)
            if owner is None:
                common += milliseconds
            else:
                own[owner] += milliseconds
        return common, own

    divided = {label: [split(run) for run in profile.runs] for label, profile in profiles.items()}
    pace = statistics.median(common for common, _ in divided[reference])
    return {
        label: {
            layer: statistics.median(own[layer] * pace / common for common, own in runs)
            for layer in dict.fromkeys(owners.values())
        }
        for label, runs in divided.items()
    }


def _owners(profiles: Sequence[ModuleProfile], layers: Iterable[str]) -> dict[str, str]:
    """By module, the layer that its time belongs to; modules inside it are not named."""
    owners = {}
    for layer in layers:
        owners[layer] = layer
        parent = layer.rpartition(".")[0]
        made: list[dict[str, list[str]]] = []
        for profile in profiles:
            nodes: defaultdict[str, list[str]] = defaultdict(list)
            for module, names in profile.nodes.items():
                beside = next((part for part in _ancestors(module) if part.rpartition(".")[0] == parent), "")
                if beside not in ("", parent):
                    nodes[beside] += names
            made.append(dict(nodes))
        for beside in {name for nodes in made for name in nodes}:
            if any(nodes.get(beside) != made[0].get(beside) for nodes in made):
                owners[beside] = layer
    return owners


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
    middles = {
        name: tuple((name, side, _middle(choices[name, side])) for side in SIDES) for name, _ in choices
    }
    kinds = {
        name: tuple((choices[n, side][i].config, costs.saved[n, side][i]) for n, side, i in middle)
        for name, middle in middles.items()
    }
    # What both sides need, such as a guide, is paid for once: half of it by each.
    for name, middle in middles.items():
        mean.add(kinds[name], gain(BOTH, name) - sum(saved[n, side][i] for n, side, i in middle))
    for key, each in choices.items():
        for index, choice in enumerate(each):
            if not choice.full:
                saved[key][index] += mean[kinds[key[0]]] / 2
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
