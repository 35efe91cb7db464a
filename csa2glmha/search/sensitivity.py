"""What each choice for a layer costs in agreement with the teacher, measured on held-out crops.

One part of one layer is changed, everything else is the teacher's; the mean squared error of the output, or
of logits the KL divergence, is what the choice costs. Such errors of different layers are next to
uncorrelated, so they add up. See :mod:`csa2glmha.search.probes` for how they are measured.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from csa2glmha.core.errors import OutputError
from csa2glmha.core.files import open_own
from csa2glmha.core.progress import manual_progress, say
from csa2glmha.core.strict_json import dumps
from csa2glmha.data.batches import Inputs
from csa2glmha.initialize.feedforward import HiddenMoments, narrow
from csa2glmha.initialize.student import Candidate, Statistics, initialise_layers
from csa2glmha.metrics.outputs import Outputs
from csa2glmha.networks.skipped import Skipped
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.search.choices import LOGITS, Choice, Key, RankChoice, WidthChoice
from csa2glmha.search.probes import NoGradientError, errors_of_changes, errors_of_networks

#: Layers that are measured at once: as much as is lost where a search is interrupted. For each such part the
#: network is run forward and, for every vector, backward again, so few large parts take less time.
AT_ONCE = 32
#: Of the refinement of factors. A student's own are refined further.
ITERATIONS = 25


@dataclass(frozen=True)
class Measured:
    """One choice.

    Attributes:
        error: of the network's output, to the teacher's: mean squares, of logits the KL divergence in nats.
        predicted: relative error of the factorisation in its metric, squared, in closed form.
    """

    error: float
    predicted: float


@dataclass
class SensitivityCache:
    """Measurements on disk, one JSON object a line, so that an interrupted search goes on where it was.

    Every line says what it depends on, and lines are only ever appended: searches on other data, or of
    another checkpoint of the same name, share the file without a loss, even at the same time.

    Attributes:
        path: of the file.
        identity: what the measurements depend on; those of another identity are not used.
    """

    path: Path
    identity: Mapping[str, Any]
    known: dict[str, Measured] = field(default_factory=dict)

    def open(self) -> None:
        """Read what is there of this identity.

        Raises:
            OutputError: the file cannot be read or written.
        """
        try:
            own = self.path.is_file() and not self.path.is_symlink()
            text = self.path.read_text(encoding="utf-8", errors="replace") if own else ""
            with open_own(self.path, append=True) as file:
                if text and not text.endswith("\n"):
                    file.write("\n")  # a process that ended in the middle of a line
        except OSError as error:
            raise OutputError(
                f"{self.path}: {error.strerror or error}; choose another folder with -o"
            ) from error
        for line in text.splitlines():
            entry = _parsed(line)
            if entry is not None and entry[0] == self._key:
                self.known[entry[1]] = entry[2]

    def add(self, choice: Choice, measured: Measured) -> None:
        """Keep one measurement.

        Raises:
            OutputError: the file cannot be written.
        """
        self.known[_name(choice)] = measured
        entry = {
            "of": self._key,
            "choice": _name(choice),
            "error": measured.error,
            "predicted": measured.predicted,
        }
        try:
            with open_own(self.path, append=True) as file:
                file.write(dumps(entry) + "\n")
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror or error}; make room and start again") from error

    @property
    def _key(self) -> str:
        text = dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def get(self, choice: Choice) -> Measured | None:
        """What is known of a choice."""
        return self.known.get(_name(choice))


def _name(choice: Choice) -> str:
    return f"{choice.layer}: {choice.label}"


def _parsed(line: str) -> tuple[str, str, Measured] | None:
    """Identity, choice and measurement of a line; None for one that was cut off or is of another kind."""
    try:
        entry = json.loads(line)
        measured = Measured(float(entry["error"]), float(entry["predicted"]))
        return str(entry["of"]), str(entry["choice"]), measured
    except (ValueError, LookupError, TypeError):
        return None


@dataclass(frozen=True)
class Known:
    """What a teacher's calibration pass has given.

    Attributes:
        batches: the inputs.
        statistics: of the attention.
        hidden: of the feed-forward networks.
    """

    batches: Sequence[Inputs]
    statistics: Statistics
    hidden: HiddenMoments


def measure_sensitivity(
    teacher: nn.Module,
    choices: Mapping[Key, Sequence[Choice]],
    held_out: Sequence[Inputs],
    outputs: Outputs,
    known: Known,
    cache: SensitivityCache | None = None,
) -> dict[Key, list[Measured]]:
    """What every choice costs.

    A few layers are measured at a time. What is measured of them is in the cache before the next ones begin.

    Args:
        teacher: in eval mode.
        choices: by layer and side.
        held_out: crops to measure on.
        outputs: of the teacher.
        known: of it, for the initialisation of what is measured.
        cache: of earlier measurements, which are not done again; open.
    """
    before = {} if cache is None else {choice: cache.get(choice) for choice in _all(choices)}
    found = {choice: measured for choice, measured in before.items() if measured is not None}
    found |= {choice: Measured(0.0, 0.0) for choice in _all(choices) if choice.full}
    missing: dict[str, list[Choice]] = {}
    for choice in _all(choices):
        if choice not in found:
            missing.setdefault(choice.layer, []).append(choice)
    images = [each for batch in held_out for each in _singles(batch)]
    names = list(missing)
    with manual_progress(what="sensitivity", unit="layer", total=len(names)) as bar:
        for first in range(0, len(names), AT_ONCE):
            part = {name: missing[name] for name in names[first : first + AT_ONCE]}
            for choice, measured in _measured(teacher, part, images, outputs, known):
                found[choice] = measured
                if cache is not None:
                    cache.add(choice, measured)
            bar.update(len(part))
    return {key: [found[choice] for choice in each] for key, each in choices.items()}


def _singles(batch: Inputs) -> list[Inputs]:
    """A batch one image at a time; a further input of one, such as a mask, serves all of them."""
    return [
        tuple(each if len(each) == 1 else each[index : index + 1] for each in batch)
        for index in range(len(batch[0]))
    ]


@dataclass(frozen=True)
class _Change:
    """What takes the place of a module for a choice, and the relative error, squared, in closed form."""

    choice: Choice
    place: str
    module: nn.Module
    predicted: float


def _measured(
    teacher: nn.Module,
    missing: Mapping[str, Sequence[Choice]],
    images: Sequence[Inputs],
    outputs: Outputs,
    known: Known,
) -> Iterator[tuple[Choice, Measured]]:
    changes: dict[str, list[_Change]] = {}
    for change in _changes(teacher, missing, known):
        changes.setdefault(change.place, []).append(change)
    modules = {place: [change.module for change in each] for place, each in changes.items()}
    try:
        errors = errors_of_changes(teacher, modules, images, outputs)
    except NoGradientError:
        say("derivatives do not go through this network: it is run for every choice, which takes longer")
        errors = errors_of_networks(teacher, modules, images)
    for place, each in changes.items():
        for change, error in zip(each, errors[place], strict=True):
            yield change.choice, Measured(error, change.predicted)


def _changes(teacher: nn.Module, missing: Mapping[str, Sequence[Choice]], known: Known) -> Iterator[_Change]:
    ranks = {
        name: [each for each in choices if isinstance(each, RankChoice)] for name, choices in missing.items()
    }
    ranks = {name: choices for name, choices in ranks.items() if choices}
    configs = {name: [choice.config for choice in choices] for name, choices in ranks.items()}
    made = initialise_layers(teacher, configs, known.batches, known.statistics, iterations=ITERATIONS)
    layers = feed_forwards(teacher)
    for name, choices in missing.items():
        for ranked, candidate in zip(ranks.get(name, ()), made.pop(name, ()), strict=True):
            yield _Change(ranked, name, candidate.module, _predicted(ranked, candidate))
        for choice in choices:
            if isinstance(choice, WidthChoice) and not choice.leaves_out:
                layer = replace(layers[name], module=copy.deepcopy(layers[name].module))
                error = narrow({name: layer}, {name: choice.width}, known.hidden)[name]
                yield _Change(choice, layer.path, layer.module, error)
            elif not isinstance(choice, RankChoice):
                yield _Change(choice, name, Skipped(), 1.0)


def _all(choices: Mapping[Key, Sequence[Choice]]) -> Iterable[Choice]:
    return (choice for each in choices.values() for choice in each)


def _predicted(choice: Choice, candidate: Candidate) -> float:
    fit = candidate.fit
    if choice.side == LOGITS:
        return max(0.0, fit.logit_error * (1 - fit.guide_explained))
    return float(np.square(fit.value_error).mean()) if fit.value_error else 0.0


def agreement_of_prediction(measured: Mapping[Key, Sequence[Measured]]) -> dict[str, dict[str, float | None]]:
    """How well closed-form errors foretell the measured ones, side by side of the attention.

    Returns:
        For logits and values: Spearman's rank correlation within layers (mean over them) and over everything,
        and the typical factor between the two once each layer's curve is scaled by its median. A correlation
        is None where there is none, as with errors that are all the same.
    """
    result: dict[str, dict[str, float | None]] = {}
    for side in dict.fromkeys(side for _, side in measured):
        curves = [
            [(each.predicted, each.error) for each in values if each.predicted > 0 and each.error > 0]
            for (_, of), values in measured.items()
            if of == side
        ]
        curves = [curve for curve in curves if len(curve) > 2]
        if not curves:
            continue
        within, factors = [], []
        for curve in curves:
            logs = np.log(np.array(curve))
            within.append(_correlation(logs))
            ratio = logs[:, 1] - logs[:, 0]
            factors.extend(np.abs(ratio - np.median(ratio)).tolist())
        known = [each for each in within if each is not None]
        result[side] = {
            "within_layers": float(np.mean(known)) if known else None,
            "overall": _correlation(np.array([pair for curve in curves for pair in curve])),
            "typical_factor": math.exp(float(np.median(factors))),
        }
    return result


def _correlation(pairs: npt.NDArray[np.float64]) -> float | None:
    """Spearman's, of (N, 2) values; None where one of the two does not change."""
    if any(np.ptp(column) == 0 for column in pairs.T):
        return None
    # Here, for it is slow to import, and few commands come this far.
    from scipy.stats import spearmanr

    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
