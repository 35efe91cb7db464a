"""What layers take, read from profiles of whole exported networks."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from csa2glmha.bench.profile import ModuleProfile

#: A network whose calm runs take so many times as long as another's, in what both share, is timed again.
DISTURBED = 1.15

T = TypeVar("T")


@dataclass(frozen=True)
class _Run:
    """Milliseconds of one run: of what all networks share, and of each layer."""

    common: float
    own: Mapping[str, float]


def layer_times(
    profiles: Mapping[str, ModuleProfile],
    reference: str,
    layers: Collection[str],
    alone: Collection[str] = (),
) -> dict[str, dict[str, float]]:
    """Milliseconds of every layer in every network, as if all had run at the reference's speed.

    Belonging to a layer are its own nodes and those of the modules beside it that differ between networks,
    such as a norm that also pools what a guide needs.

    Args:
        profiles: of the networks.
        reference: the label of one.
        layers: names of modules.
        alone: those of them that no module beside them belongs to.

    Returns:
        By network and layer.
    """
    calm = _calm_runs(profiles, layers, alone)
    pace = statistics.median(run.common for run in calm[reference])
    return {
        label: {
            layer: statistics.median(run.own[layer] * pace / run.common for run in runs)
            for layer in runs[0].own
        }
        for label, runs in calm.items()
    }


def disturbed(
    profiles: Mapping[str, ModuleProfile], layers: Collection[str], alone: Collection[str] = ()
) -> list[str]:
    """Labels of the networks that ran while the machine did something else.

    Not all operators slow down alike then, so that what all networks share is no measure any more.
    """
    calm = _calm_runs(profiles, layers, alone)
    paces = {label: statistics.median(run.common for run in runs) for label, runs in calm.items()}
    return [label for label, pace in paces.items() if pace > DISTURBED * min(paces.values())]


def _calm_runs(
    profiles: Mapping[str, ModuleProfile], layers: Collection[str], alone: Collection[str]
) -> dict[str, list[_Run]]:
    """The faster half of the runs of every network, told by what all networks share."""
    owners = _owners(list(profiles.values()), layers, alone)

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


def fastest(profile: ModuleProfile) -> list[float]:
    """Milliseconds of the faster half of the runs."""
    return _fastest_half([sum(run.values()) for run in profile.runs], float)


def _fastest_half(values: Sequence[T], time: Callable[[T], float]) -> list[T]:
    return sorted(values, key=time)[: (len(values) + 1) // 2]


def _owners(
    profiles: Sequence[ModuleProfile], layers: Collection[str], alone: Collection[str]
) -> dict[str, str]:
    """By module, the layer that its time belongs to; modules inside it are not named."""
    social = [layer for layer in layers if layer not in alone]
    parents = {parent: layer for layer in social if (parent := layer.rpartition(".")[0])}
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
