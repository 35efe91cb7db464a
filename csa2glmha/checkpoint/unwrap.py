"""Choosing among what a checkpoint holds, and saying what was chosen and what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from csa2glmha.checkpoint.kinds import checkpoint_error
from csa2glmha.checkpoint.networks import (
    Architecture,
    Contents,
    Network,
    find_networks,
    is_named_tensor,
    most_alike,
    named_tensors,
    same_shapes,
    same_weights,
    without_wrappers,
)
from csa2glmha.checkpoint.sizes import check_amount
from csa2glmha.core.errors import CheckpointError, UsageError
from csa2glmha.core.text import listed, quoted

#: What the weights at the top of a file are called, where --weights is to choose them.
TOP = "."
#: More networks than this are not compared with each other.
_MOST_COMPARED = 8
#: Entries looked at to see whether something that was left out holds tensors.
_MOST_LOOKED_AT = 100_000


@dataclass(frozen=True)
class Opened:
    """The weights that were chosen.

    Attributes:
        tensors: by name, wrappers and prefixes removed.
        label: where in the file they were; empty at the top.
        others: labels of other networks in the file, not of the same weights.
        notes: what was opened and left out, one line each.
    """

    tensors: dict[str, Tensor]
    label: str
    others: tuple[str, ...]
    notes: tuple[str, ...]


def open_weights(path: Path, content: Any, wanted: str | None, known: Sequence[Architecture]) -> Opened:
    """Find the weights of one network in what a file holds; averaged ones are preferred.

    Where no whole supported network is found, these are the tensors most like one, for the error that names
    what they lack.

    Args:
        path: of the file, for messages.
        content: what it holds.
        wanted: what the user calls the weights to take; None leaves the choice open.
        known: architectures to look for.

    Raises:
        CheckpointError: there are no named tensors, or several networks to choose from.
        UsageError: nothing is called as ``wanted``.
    """
    contents = named_tensors(content)
    if not contents.tensors:
        raise _no_tensors(path, content, contents)
    networks = find_networks(contents, known)
    if not networks:
        return _closest(path, content, contents, wanted, known)
    chosen, others = _choose(path, networks, wanted)
    return Opened(
        chosen.tensors,
        chosen.label,
        tuple(_called(other.label) for other in others),
        tuple(_notes(content, contents, chosen)),
    )


# --- choosing


def _choose(path: Path, networks: Sequence[Network], wanted: str | None) -> tuple[Network, list[Network]]:
    """The network to take, and those with other weights."""
    candidates = list(networks) if wanted is None else _matching(path, networks, wanted)
    if len(networks) > 1:
        for network in networks[:_MOST_COMPARED]:
            check_amount(path, network.tensors)  # before they are compared, number by number
    different = _different(candidates)
    averaged = [network for network in different if network.averaged]
    if len(different) > 1 and len(averaged) != 1:
        raise _several(path, different)
    chosen = averaged[0] if averaged else different[0]
    if any(not same_shapes(chosen, other) for other in different):
        raise _several(path, different)
    compared = len(networks) <= _MOST_COMPARED
    others = [each for each in networks if each is not chosen]
    return chosen, [each for each in others if not (compared and same_weights(each, chosen))]


def _matching(path: Path, networks: Sequence[Network], wanted: str) -> list[Network]:
    """Those of the label, or with it as a part of theirs."""
    exact = [network for network in networks if wanted in (_called(network.label), network.label)]
    found = exact or [n for n in networks if f".{wanted}." in f".{n.label}." and wanted]
    if not found:
        raise UsageError(
            f"--weights {quoted(wanted)}: {str(path)!r} has no network of that name; it has "
            f"{listed(_called(network.label) for network in networks)}"
        )
    return found


def _different(networks: Sequence[Network]) -> list[Network]:
    """The networks without those whose weights another one has; averaged ones go first."""
    ordered = sorted(networks, key=lambda network: not network.averaged)
    if len(ordered) > _MOST_COMPARED:
        return ordered
    kept: list[Network] = []
    for network in ordered:
        if not any(same_weights(network, other) for other in kept):
            kept.append(network)
    return kept


def _several(path: Path, networks: Sequence[Network]) -> CheckpointError:
    names = [_called(network.label) for network in networks]
    return checkpoint_error(
        path, f"it holds {len(names)} networks: {listed(names)}", "choose one with --weights, by that name"
    )


def _called(label: str) -> str:
    return label or TOP


# --- saying it


def _notes(content: Any, contents: Contents, chosen: Network) -> list[str]:
    left_out = [*_beside(content, chosen.path), *_beside_prefix(contents.tensors[chosen.path], chosen)]
    if not chosen.label and not left_out and not chosen.counters:
        return []
    kind = " (averaged weights)" if chosen.averaged else ""
    parts = [f"opened {quoted(chosen.label) if chosen.label else 'the weights at the top of the file'}{kind}"]
    if left_out:
        parts.append(f"left out {listed(left_out)}")
    if chosen.counters:
        counters = "1 counter" if chosen.counters == 1 else f"{chosen.counters} counters"
        parts.append(f"ignored {counters} of a profiler (total_ops, total_params)")
    return ["; ".join(parts)]


def _beside(content: Any, path: tuple[str, ...]) -> list[str]:
    """What holds tensors beside the dicts on the way to the weights."""
    found = []
    node = content
    for depth, key in enumerate(path):
        for other, value in node.items():
            if other != key and _holds_tensors(value):
                found.append(".".join((*path[:depth], str(other))))
        node = node[key]
    found += [
        ".".join((*path, str(key)))
        for key, value in node.items()
        if not is_named_tensor(key, value) and _holds_tensors(value)
    ]
    return found


def _beside_prefix(tensors: Iterable[str], chosen: Network) -> list[str]:
    """The beginnings of names in the same dict that are no part of the network."""
    own = without_wrappers(chosen.prefix).split(".")[:-1]
    found: dict[str, None] = {}
    for name in tensors:
        if name in chosen.names:
            continue
        parts = without_wrappers(name).split(".")
        shared = 0
        while shared < min(len(parts), len(own)) and parts[shared] == own[shared]:
            shared += 1
        found[".".join((*chosen.path, *parts[: shared + 1]))] = None
    return list(found)


def _holds_tensors(value: Any) -> bool:
    seen: set[int] = set()
    waiting = [value]
    for _ in range(_MOST_LOOKED_AT):
        if not waiting:
            return False
        node = waiting.pop()
        if isinstance(node, Tensor):
            return True
        if isinstance(node, (dict, list, tuple)) and id(node) not in seen:
            seen.add(id(node))
            waiting += node.values() if isinstance(node, dict) else node
    return True  # too much to look through: rather named than not


# --- where nothing is found


def _closest(
    path: Path, content: Any, contents: Contents, wanted: str | None, known: Sequence[Architecture]
) -> Opened:
    """The tensors that come closest to a network, for the error that says what they lack."""
    labels = {".".join(keys): keys for keys in contents.tensors}
    if wanted is not None and wanted not in labels:
        raise UsageError(
            f"--weights {quoted(wanted)}: {str(path)!r} has nothing of that name; it has tensors under "
            f"{listed(_called(label) for label in labels)}"
        )
    if wanted is not None:
        contents = Contents({labels[wanted]: contents.tensors[labels[wanted]]})
    keys, tensors = most_alike(contents, known)
    label = ".".join(keys)
    notes = [f"opened {quoted(label)}"] if label else []
    node = content
    for key in keys:
        node = node[key]
    ignored = [name for name, value in node.items() if not is_named_tensor(name, value)]
    if ignored:
        notes.append(f"{len(ignored)} entries that are no tensors ignored: {listed(ignored)}")
    return Opened(tensors, label, (), tuple(notes))


def _no_tensors(path: Path, content: Any, contents: Contents) -> CheckpointError:
    if isinstance(content, dict):
        held = f"a dict with the keys {listed(content)}" if content else "an empty dict"
    else:
        held = f"a {type(content).__name__}"
    more = "" if contents.complete else ", and more dicts in it than are searched"
    return checkpoint_error(
        path,
        f"no state dict in it, it holds {held}{more}",
        "expected a dict of named tensors, alone or in other dicts such as 'params_ema' or 'state_dict'",
    )
