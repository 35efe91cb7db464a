"""Finding the networks in what a checkpoint holds, by the names that they are known by.

Training tools wrap weights in dicts (``state_dict``, ``params_ema``, ...), put prefixes before their names
(``net.``, ``generator.``) and names of wrapper modules between the parts of them. So no list of such names is
kept: all nested dicts and prefixes are searched for the signature of a supported architecture.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from csa2glmha.checkpoint.sizes import is_plain

#: Modules that wrap another one and do nothing that matters here: DataParallel, torch.compile, activation
#: checkpointing, FullyShardedDataParallel (new and old), Lightning's Fabric. They stand anywhere in a name.
WRAPPERS = frozenset(
    {
        "module",
        "_orig_mod",
        "_checkpoint_wrapped_module",
        "_fsdp_wrapped_module",
        "_fpw_module",
        "_forward_module",
    }
)
#: What thop leaves in every module that it has counted.
COUNTERS = frozenset({"total_ops", "total_params"})

_AVERAGED = frozenset({"ema", "swa", "average", "averaged", "averaging", "avg", "polyak", "shadow"})
_NEGATIONS = frozenset({"no", "non", "not", "without"})
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

#: Of MMEngine and of Lightning: a dict beside ``state_dict`` with a tensor that shows it, and where the
#: weights that are not averaged went.
_EXCHANGES = (
    ("ema_state_dict", "steps", "ema_state_dict"),
    ("averaging_state", "n_averaged", "current_model_state"),
)

# A pickle can hold a dict that holds itself, and millions of them.
_MOST_DEPTH = 8
_MOST_ENTRIES = 2_000_000
#: Of a name before which a prefix is looked for.
_LONGEST_NAME = 300
#: Networks beside which averages under names without dots are looked for.
_MOST_NETWORKS = 8
_MOST_NAMES = 5000
#: Of an architecture's names, those that are looked for at the ends of others.
_MOST_KEYS = 50

Path = tuple[str, ...]


class Architecture(Protocol):
    """What is looked for in a file: a name, and keys that together occur in its networks alone."""

    @property
    def name(self) -> str: ...
    @property
    def signature(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class OneNetwork:
    """The architecture of one network, of which all parameters are known."""

    name: str
    signature: tuple[str, ...]

    @classmethod
    def of(cls, network: nn.Module, name: str) -> OneNetwork:
        """The name with most parts goes first: no other one ends with it, so it tells what stands before."""
        names = [name for name, _ in network.named_parameters()]
        return cls(name, tuple(sorted(names, key=lambda name: -name.count("."))))


@dataclass(frozen=True)
class Network:
    """One whole network of a known architecture in a checkpoint.

    Attributes:
        architecture: its name.
        path: keys of the nested dicts that lead to the one with its tensors.
        prefix: what its names begin with there.
        averaged: these are averaged weights.
        tensors: by the names of the architecture.
        names: those that the tensors have in the file.
        counters: how many entries of a profiler stood between them.
    """

    architecture: str
    path: Path
    prefix: str
    averaged: bool
    tensors: dict[str, Tensor]
    names: frozenset[str]
    counters: int = 0

    @property
    def label(self) -> str:
        """What it is called in messages and chosen by; empty at the top of the file, without a prefix."""
        return ".".join((*self.path, *without_wrappers(self.prefix).split("."))).rstrip(".")


@dataclass
class Contents:
    """The dicts with named tensors in a checkpoint.

    Attributes:
        tensors: by the keys that lead there.
        complete: nothing was left out of the search because there is too much.
    """

    tensors: dict[Path, dict[str, Tensor]] = field(default_factory=dict)
    complete: bool = True


def named_tensors(content: Any) -> Contents:
    """All nested dicts of ``content`` that hold tensors under names."""
    found = Contents()
    seen: set[int] = set()
    left = _MOST_ENTRIES
    waiting: deque[tuple[Path, Any]] = deque([((), content)] if isinstance(content, dict) else [])
    while waiting:
        path, node = waiting.popleft()
        if id(node) in seen:
            continue
        seen.add(id(node))
        left -= len(node)
        if left < 0 or len(path) > _MOST_DEPTH:
            found.complete = False
            continue
        tensors = {name: value for name, value in node.items() if is_named_tensor(name, value)}
        if tensors:
            found.tensors[path] = tensors
        nested = (item for item in node.items() if isinstance(item[0], str) and isinstance(item[1], dict))
        waiting.extend(((*path, key), value) for key, value in nested)
    return found


def is_named_tensor(name: object, value: object) -> bool:
    """Whether an entry of a dict is a tensor under a name."""
    return isinstance(name, str) and isinstance(value, Tensor)


def without_wrappers(name: str) -> str:
    """A parameter's name without the wrapper modules in it."""
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def find_networks(contents: Contents, known: Sequence[Architecture]) -> list[Network]:
    """Every whole network of a known architecture, in the order of the file."""
    found = []
    for path, tensors in contents.tensors.items():
        taken: set[str] = set()
        for family in known:
            for prefix, names in _groups(tensors, family).items():
                # What has the signatures of two families is of the first.
                network = None if prefix in taken else _network(family, path, prefix, names, tensors)
                if network is not None:
                    taken.add(prefix)
                    found.append(network)
                    found += _dotless(network, tensors) if len(found) <= _MOST_NETWORKS else []
    return [_exchanged(network, contents) for network in found]


def _groups(tensors: Mapping[str, Tensor], family: Architecture) -> dict[str, list[str]]:
    """Prefixes under which the first name of the signature stands, and all names under each of them."""
    anchor = family.signature[0].split(".")
    short = (name for name in tensors if len(name) <= _LONGEST_NAME)
    prefixes = {prefix for name in short if (prefix := _prefix_before(anchor, name)) is not None}
    groups: dict[str, list[str]] = defaultdict(list)
    if not prefixes:
        return groups
    longest = max(len(prefix) for prefix in prefixes)
    for name in tensors:
        prefix = _longest_prefix(name, prefixes, longest)
        if prefix is not None:
            groups[prefix].append(name)
    return groups


def _prefix_before(anchor: Sequence[str], name: str) -> str | None:
    """What stands before the anchor's parts at the end of a name, wrappers between them passed over."""
    if not name.endswith(anchor[-1]):
        return None
    parts = name.split(".")
    for wanted in reversed(anchor):
        while parts and parts[-1] in WRAPPERS:
            parts.pop()
        if not parts or parts.pop() != wanted:
            return None
    return "".join(f"{part}." for part in parts)


def _longest_prefix(name: str, prefixes: set[str], longest: int) -> str | None:
    """The longest of the prefixes that a name begins with: a network beside another is no part of it."""
    end = name.rfind(".", 0, longest)
    while end >= 0:
        if name[: end + 1] in prefixes:
            return name[: end + 1]
        end = name.rfind(".", 0, end)
    return "" if "" in prefixes else None


def _network(
    family: Architecture,
    path: Path,
    prefix: str,
    names: list[str],
    tensors: Mapping[str, Tensor],
) -> Network | None:
    found: dict[str, Tensor] = {}
    counters = 0
    for full in names:
        short = without_wrappers(full[len(prefix) :])
        if short.rpartition(".")[2] in COUNTERS:
            counters += 1
            continue
        if short in found:
            return None  # two tensors for one name: this is something else
        found[short] = tensors[full]
    if not all(key in found for key in family.signature):
        return None
    averaged = _is_averaged((*path, *prefix.split("."))) or _is_averaged_model(prefix, tensors)
    return Network(family.name, path, prefix, averaged, found, frozenset(names), counters)


def _is_averaged(parts: Sequence[str]) -> bool:
    for part in parts:
        words = {word.lower() for word in _WORDS.findall(part[:200])}
        if words & _AVERAGED and not words & _NEGATIONS:
            return True
    return False


def _is_averaged_model(prefix: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the prefix lies in an AveragedModel of PyTorch, which counts averages beside ``module``."""
    parts = prefix.split(".")[:-1]
    return any(
        part == "module" and ".".join((*parts[:index], "n_averaged")) in tensors
        for index, part in enumerate(parts)
    )


def _dotless(network: Network, tensors: Mapping[str, Tensor]) -> list[Network]:
    """Averages beside a network that keep its names without dots, since a buffer's name must have none."""
    short = {name.replace(".", ""): name for name in network.tensors}
    first = next(iter(short))
    for full in tensors:
        if not full.endswith(first) or full in network.names:
            continue
        prefix = full.removesuffix(first)
        if prefix and all(prefix + name in tensors for name in short):
            found = {name: tensors[prefix + dotless] for dotless, name in short.items()}
            names = frozenset(prefix + name for name in short)
            averaged = _is_averaged(prefix.split("."))
            return [Network(network.architecture, network.path, prefix, averaged, found, names)]
    return []


def _exchanged(network: Network, contents: Contents) -> Network:
    """Two tools save the averaged weights as ``state_dict``, and the others under a name of their own."""
    if not network.path:
        return network
    *parents, last = network.path
    around = tuple(parents)
    for beside, counter, other in _EXCHANGES:
        if counter in contents.tensors.get((*around, beside), ()) and last in ("state_dict", other):
            return replace(network, averaged=last == "state_dict")
    return network


def most_alike(contents: Contents, known: Sequence[Architecture]) -> tuple[Path, dict[str, Tensor]]:
    """Where no network is found, the tensors that come closest to one, and the keys that lead to them."""
    best: tuple[tuple[float, int], Path, dict[str, Tensor]] | None = None
    for path, tensors in contents.tensors.items():
        plain = {without_wrappers(name): tensor for name, tensor in tensors.items()}
        if len(plain) < len(tensors):
            plain = tensors
        for prefix in _likely_prefixes(plain, known):
            under = {name[len(prefix) :]: plain[name] for name in plain if name.startswith(prefix)}
            rank = (max(_signed(each, under) for each in known), len(under))
            if best is None or rank > best[0]:
                best = rank, path, under
    assert best is not None
    return best[1], best[2]


def _signed(architecture: Architecture, state: Mapping[str, Tensor]) -> float:
    """How much of its signature is in a state dict, 0 to 1."""
    keys = architecture.signature
    return sum(key in state for key in keys) / max(len(keys), 1)


def _likely_prefixes(names: Iterable[str], architectures: Sequence[Architecture]) -> list[str]:
    """None, and those before names that an architecture is known by; a few, from the first names."""
    known = [key for each in architectures for key in each.signature[:_MOST_KEYS]]
    first = list(islice(names, _MOST_NAMES))
    found = {
        "": None,
        **{name.removesuffix(key): None for name in first for key in known if name.endswith(key)},
    }
    return [prefix for prefix in found if not prefix or prefix.endswith(".")][:_MOST_NETWORKS]


def same_weights(first: Network, second: Network) -> bool:
    """Whether two networks are the same in all their numbers."""
    return same_shapes(first, second) and all(
        is_plain(tensor) and is_plain(second.tensors[name]) and torch.equal(tensor, second.tensors[name])
        for name, tensor in first.tensors.items()
    )


def same_shapes(first: Network, second: Network) -> bool:
    """Whether two networks differ in their numbers at most."""
    return first.tensors.keys() == second.tensors.keys() and all(
        tensor.size() == second.tensors[name].size() and tensor.dtype == second.tensors[name].dtype
        for name, tensor in first.tensors.items()
    )
