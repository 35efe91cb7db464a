"""Pairing inputs with their targets by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from csa2glmha.config.pattern import PATTERN_EXAMPLE, name_key, parse_pattern
from csa2glmha.data.folders import stem

#: Suffixes that users write into patterns.


@dataclass(frozen=True)
class Pairing:
    """Which input belongs to which target.

    Attributes:
        pairs: positions of input and target, in the order of the inputs.
        unpaired: positions of inputs that are left out, each with the reason.
        how: how they were paired; "" where it is by equal names.
        problem: why there is no pair; "" if there is one.
    """

    pairs: list[tuple[int, int]] = field(default_factory=list)
    unpaired: list[tuple[int, str]] = field(default_factory=list)
    how: str = ""
    problem: str = ""


def pair_names(inputs: Sequence[str], targets: Sequence[str], pattern: str | None = None) -> Pairing:
    """Pair names (paths inside their folders, with ``/``), whatever their suffixes.

    Without a pattern, names that are equal pair, or equal but for case and Unicode form. If none are, then
    all inputs and all targets pair one to one where one part of the names differs, the same in all of them,
    such as "0001_input" and "0001_gt"; otherwise nothing pairs.

    Args:
        inputs, targets: the names.
        pattern: as :func:`parse_pattern` reads it; inputs that do not fit it are no inputs.

    Raises:
        UsageError: a pattern that is none.
    """
    if pattern is not None:
        return _by_pattern(inputs, targets, pattern)
    found = _by_equal_names(inputs, targets)
    if found.pairs or not inputs or not targets:
        return found if found.pairs else Pairing(unpaired=found.unpaired, problem=_no_names(inputs, targets))
    affix = _by_affix([name_key(stem(name)) for name in inputs], [name_key(stem(name)) for name in targets])
    if affix is None:
        return Pairing(unpaired=found.unpaired, problem=_no_names(inputs, targets))
    first = affix[0]
    example = f"{inputs[0]!r} with {targets[first]!r}"
    return Pairing(list(enumerate(affix)), how=f"{len(affix)} pairs by similar names, such as {example}")


def _no_names(inputs: Sequence[str], targets: Sequence[str]) -> str:
    if not inputs or not targets:
        return f"there are {len(inputs)} inputs and {len(targets)} targets"
    listed = ", ".join(repr(name) for name in targets[:3]) + (", ..." if len(targets) > 3 else "")
    return (
        f"for {inputs[0]!r} a target {stem(inputs[0])!r} was looked for, with any suffix, and there are "
        f"{listed} ({len(inputs)} inputs, {len(targets)} targets); give both the same names, or say how they "
        f"differ: {PATTERN_EXAMPLE}"
    )


# --- equal names


def _by_equal_names(inputs: Sequence[str], targets: Sequence[str]) -> Pairing:
    pairs: dict[int, int] = {}
    unpaired: dict[int, str] = {}
    exact = _positions(stem(name) for name in targets)
    for position, name in enumerate(inputs):
        matches = exact.get(stem(name), [])
        if len(matches) == 1:
            pairs[position] = matches[0]
        else:
            unpaired[position] = "several targets of that name" if matches else "no target of that name"
    taken = set(pairs.values())
    left = _positions(name_key(stem(name)) if at not in taken else None for at, name in enumerate(targets))
    wanted = Counter(name_key(stem(inputs[position])) for position in unpaired)
    similar = [
        (position, left[key][0])
        for position in unpaired
        for key in [name_key(stem(inputs[position]))]
        if wanted[key] == 1 and len(left.get(key, [])) == 1
    ]
    for position, target in similar:
        pairs[position] = target
        del unpaired[position]
    how = ""
    if similar:
        names = f"{inputs[similar[0][0]]!r} with {targets[similar[0][1]]!r}"
        how = f"{len(similar)} pairs whose names differ in case or Unicode form, such as {names}"
    return Pairing(sorted(pairs.items()), sorted(unpaired.items()), how)


def _positions(keys: Iterable[str | None]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        if key is not None:
            found.setdefault(key, []).append(position)
    return found


# --- one part that differs


def _by_affix(inputs: list[str], targets: list[str]) -> list[int] | None:
    """The target of each input, if there is exactly one way to pair all with all."""
    if len(inputs) != len(targets) or len(set(inputs)) < len(inputs) or len(set(targets)) < len(targets):
        return None
    position = {name: index for index, name in enumerate(targets)}
    ways: set[tuple[int, ...]] = set()
    for old, new in dict.fromkeys(filter(None, (_difference(inputs[0], each) for each in targets))):
        way = _apply(old, new, inputs, position)
        if way is not None:
            ways.add(way)
    return list(ways.pop()) if len(ways) == 1 else None


def _apply(old: str, new: str, inputs: list[str], position: Mapping[str, int]) -> tuple[int, ...] | None:
    found = []
    for name in inputs:
        fitting = {
            position[changed]
            for at in range(len(name) - len(old) + 1)
            if name.startswith(old, at)
            for changed in [name[:at] + new + name[at + len(old) :]]
            if changed in position and not _cuts(name, at, at + len(old))
            if not _cuts(changed, at, at + len(new))
        }
        if len(fitting) != 1:
            return None
        found.append(fitting.pop())
    return tuple(found) if len(set(found)) == len(found) else None


def _difference(name: str, other: str) -> tuple[str, str] | None:
    """The part in which two names differ, of whole words and numbers; None if little else is the same."""
    shortest = min(len(name), len(other))
    start = next((i for i in range(shortest) if name[i] != other[i]), shortest)
    tail = next((i for i in range(shortest - start) if name[-1 - i] != other[-1 - i]), shortest - start)
    while start and (_cuts(name, start) or _cuts(other, start)):
        start -= 1
    while tail and (_cuts(name, len(name) - tail) or _cuts(other, len(other) - tail)):
        tail -= 1
    shared = name[:start] + name[len(name) - tail :]
    if not any(char.isalnum() for char in shared):
        return None
    return name[start : len(name) - tail], other[start : len(other) - tail]


def _cuts(name: str, *places: int) -> bool:
    """Whether a place lies inside a word or a number."""
    return any(
        0 < at < len(name)
        and (
            (name[at - 1].isalpha() and name[at].isalpha()) or (name[at - 1].isdigit() and name[at].isdigit())
        )
        for at in places
    )


# --- a pattern


def _by_pattern(inputs: Sequence[str], targets: Sequence[str], pattern: str) -> Pairing:
    mine, theirs = parse_pattern(pattern)
    whole = "/" in mine + theirs
    by_key: dict[tuple[str, str], list[int]] = {}
    for position, name in enumerate(targets):
        for key in _shared_parts(theirs, name, whole):
            by_key.setdefault(key, []).append(position)
    pairs, unpaired, others = [], [], []
    for position, name in enumerate(inputs):
        keys = _shared_parts(mine, name, whole)
        if not keys:
            others.append(name)
            continue
        matches = sorted({target for key in keys for target in by_key.get(key, [])})
        if len(matches) == 1:
            pairs.append((position, matches[0]))
        else:
            unpaired.append((position, f"{'several targets fit' if matches else 'no target fits'} --pair"))
    if not pairs:
        return Pairing(unpaired=unpaired, problem=_nothing_fits(pattern, inputs, targets, unpaired))
    first, target = pairs[0]
    how = f"{len(pairs)} pairs by --pair {pattern}, such as {inputs[first]!r} with {targets[target]!r}"
    return Pairing(pairs, unpaired, how + (f"; {len(others)} files do not fit it" if others else ""))


def _shared_parts(side: str, name: str, whole: bool) -> list[tuple[str, str]]:
    """What a name shares with its partner's, by one side of a pattern, in every way that it fits."""
    key = name_key(stem(name))
    if "{}" not in side:
        parts = key.split("/")
        return [
            ("/".join(parts[:at]), "/".join(parts[at + 1 :]))
            for at, part in enumerate(parts[:-1])
            if part == side
        ]
    folder, _, base = ("", "", key) if whole else key.rpartition("/")
    before, after = (
        re.compile(".*".join(map(re.escape, part.split("*"))), re.S) for part in side.split("{}")
    )
    starts = [at for at in range(len(base)) if before.fullmatch(base[:at])]
    ends = [at for at in range(1, len(base) + 1) if after.fullmatch(base[at:])]
    return [(folder, base[start:end]) for start in starts for end in ends if start < end]


def _nothing_fits(
    pattern: str, inputs: Sequence[str], targets: Sequence[str], unpaired: Sequence[tuple[int, str]]
) -> str:
    fitting = f"{inputs[unpaired[0][0]]!r} fits" if unpaired else "no input fits"
    names = [", ".join(map(repr, listed[:3])) or "none" for listed in (inputs, targets)]
    return f"--pair {pattern}: {fitting}, without a target; inputs are {names[0]}, targets {names[1]}"
