"""The rank search of a conversion, from its options to the ranks of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csa2glmha.attention.glmha import GLMHAConfig
from csa2glmha.attention.layers import attention_layers
from csa2glmha.attention.ranks import Ranks
from csa2glmha.data.batches import Data, Inputs
from csa2glmha.distill.held_out import HeldOut, teacher_outputs
from csa2glmha.errors import UsageError
from csa2glmha.files import sha256_of
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.student import Needs, Statistics, gather_statistics
from csa2glmha.models import RestorationModel
from csa2glmha.options import ConvertOptions
from csa2glmha.progress import say
from csa2glmha.search.budget import LATENCY, MAX_DROP, Budget
from csa2glmha.search.choices import Choice, all_choices
from csa2glmha.search.costs import Costs, Key, count_costs
from csa2glmha.search.energy import ranks_for_shares
from csa2glmha.search.search import (
    FoundRanks,
    SearchSpace,
    check_reachable,
    describe_found,
    search_amount,
    search_drop,
    search_latency,
)
from csa2glmha.search.sensitivity import Measured, SensitivityCache, measure_sensitivity
from csa2glmha.search.timing import time_choices

#: Crops of the held-out images that errors are measured on.
CROPS = 8


@dataclass(frozen=True)
class RankSearch:
    """A search whose budget can be reached as far as counting tells.

    Attributes:
        teacher: in eval mode, on its device.
        data, options: of the conversion.
        budget: to keep to.
        choices, costs: of every layer and side.
    """

    teacher: RestorationModel
    data: Data
    options: ConvertOptions
    budget: Budget
    choices: dict[Key, list[Choice]]
    costs: Costs

    @classmethod
    def prepare(cls, teacher: RestorationModel, data: Data, options: ConvertOptions) -> RankSearch:
        """All that can be checked before any work.

        Raises:
            UsageError: the budget cannot be met, or not be judged.
        """
        budget = options.budget
        assert budget is not None
        choices = all_choices(attention_layers(teacher))
        if not choices:
            raise UsageError(
                "no channel attention in this model that can be converted; csa2glmha inspect shows what it is"
            )
        if budget.kind == MAX_DROP and data.examples(64, 0)[0].truth is None:
            raise UsageError(
                f"{budget}: needs the ground truth of the images; give --targets, or clean images and "
                "--degrade"
            )
        costs = count_costs(teacher, choices, data.frame(options.input_size))
        check_reachable(costs, budget)
        return cls(teacher, data, options, budget, choices, costs)

    def run(self, batches: Sequence[Inputs], cache: SensitivityCache) -> tuple[FoundRanks, Statistics]:
        """Measure, allocate and check.

        Args:
            batches: calibration inputs.
            cache: of measurements; opened here.

        Returns:
            What was found, and the statistics of the teacher, for the initialisation.

        Raises:
            UsageError: the budget cannot be met.
        """
        statistics = gather_all(self.teacher, batches)
        measured = measure_choices(
            self.teacher, self.data, self.options, self.choices, batches, statistics, cache
        )
        frame = self.data.frame(self.options.input_size)
        space = SearchSpace(self.choices, self.costs, measured, frame)
        if self.budget.kind == MAX_DROP:

            def build(configs: dict[str, GLMHAConfig]) -> RestorationModel:
                return initialise_student(self.teacher, configs, batches, statistics)[0]

            found = search_drop(self.teacher, space, self.budget, self.truths(), build)
        elif self.budget.kind == LATENCY:
            say("timing every rank in ONNX Runtime")
            times = time_choices(self.teacher, self.choices, self.costs, frame)
            found = search_latency(space, self.budget, times.saved, times.lossless, times.teacher)
        else:
            found = search_amount(self.teacher, space, self.budget)
        return found, statistics

    def truths(self) -> HeldOut:
        """Held-out images with their truth."""
        examples = self.data.examples(self.options.calibration_size, self.options.seed + 1)
        known = [example for example in examples if example.truth is not None]
        truths = [example.truth.unsqueeze(0) for example in known if example.truth is not None]
        return teacher_outputs(self.teacher, [example.inputs for example in known], truths)


def measure_choices(
    teacher: RestorationModel,
    data: Data,
    options: ConvertOptions,
    choices: dict[Key, list[Choice]],
    batches: Sequence[Inputs],
    statistics: Statistics,
    cache: SensitivityCache,
) -> dict[Key, list[Measured]]:
    """What every choice loses on held-out crops; the cache is opened here."""
    side = data.judging_size(options.calibration_size)
    crops = data.calibration(side, CROPS, options.seed + 3, held_out=True)
    cache.open()
    if cache.known:
        say(f"{cache.path}: {len(cache.known)} measurements are there already")
    return measure_sensitivity(teacher, choices, teacher_outputs(teacher, crops), batches, statistics, cache)


def gather_all(teacher: RestorationModel, batches: Sequence[Inputs]) -> Statistics:
    """Statistics of all layers for any ranks."""
    layers = attention_layers(teacher)
    return gather_statistics(teacher, layers, {name: Needs() for name in layers}, batches)


def measured_ranks(
    teacher: RestorationModel,
    options: ConvertOptions,
    batches: Sequence[Inputs],
    search: RankSearch | None,
    cache: SensitivityCache,
) -> tuple[dict[str, Ranks], Statistics, dict[str, Any] | None]:
    """The ranks that follow from a search, or from shares of energy.

    Args:
        teacher: in eval mode, on its device.
        options: with a budget or shares.
        batches: calibration inputs.
        search: None where shares are given.
        cache: of the search's measurements.

    Returns:
        The ranks of every layer, the statistics of the teacher, and what the search reports.
    """
    if search is not None:
        found, statistics = search.run(batches, cache)
        say(describe_found(found.report))
        return found.ranks, statistics, found.report
    statistics = gather_all(teacher, batches)
    ranks = ranks_for_shares(attention_layers(teacher), statistics, options.ranks, options.shares)
    say("ranks of keys and values: " + ", ".join(f"{_show(r.k)}/{_show(r.v)}" for r in ranks.values()))
    return ranks, statistics, None


def _show(rank: int | None) -> str:
    return "full" if rank is None else str(rank)


def sensitivity_file(checkpoint: Path) -> str:
    """Name of the file of a checkpoint's measurements."""
    return f"{checkpoint.stem}-sensitivity.jsonl"


def sensitivity_cache(
    path: Path, teacher_sha256: str, data: Data, options: ConvertOptions
) -> SensitivityCache:
    """Where measurements are kept, and what they depend on."""
    names = ("degrade", "mat_key", "calibration_crops", "calibration_size", "seed")
    identity: dict[str, Any] = {name: getattr(options, name) for name in names}
    for name in ("data", "targets"):
        folder = getattr(options, name)
        identity[name] = None if folder is None else str(folder.resolve())
    identity |= {
        "teacher": teacher_sha256,
        "mask": None if options.mask is None else sha256_of(options.mask),
        "images": [data.training_images, data.held_out_images],
        "crops": CROPS,
    }
    return SensitivityCache(path, identity)
