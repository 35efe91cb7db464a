"""The rank search of a conversion, from its options to the ranks of every layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from csa2glmha.checkpoint import Checkpoint
from csa2glmha.checkpoint.student import teacher_weights, weight_bytes
from csa2glmha.config.affects import Affects, values_that_affect
from csa2glmha.config.budget import LATENCY, MAX_DROP, Budget
from csa2glmha.config.options import ConvertOptions
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import UsageError
from csa2glmha.core.files import scratch_folder, sha256_of
from csa2glmha.core.progress import say
from csa2glmha.core.version import __version__
from csa2glmha.data.batches import Data, Inputs
from csa2glmha.data.folders import digest_of
from csa2glmha.distill.held_out import teacher_outputs
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.student import Needs, Statistics, gather_statistics
from csa2glmha.metrics.evaluate import psnr_to_ground_truth, restore
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers
from csa2glmha.search.choices import Choice, all_choices
from csa2glmha.search.costs import Costs, Finish, Key, count_costs, unchanged
from csa2glmha.search.energy import ranks_for_shares
from csa2glmha.search.report import describe_found
from csa2glmha.search.search import FoundRanks, check_reachable, search_amount
from csa2glmha.search.sensitivity import Measured, SensitivityCache, measure_sensitivity
from csa2glmha.search.space import Configs, SearchSpace
from csa2glmha.search.timing import Stopwatch
from csa2glmha.search.trials import check_time, search_drop, search_latency

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
        finish: what is done to the student before it is used.
    """

    teacher: RestorationModel
    data: Data
    options: ConvertOptions
    budget: Budget
    choices: dict[Key, list[Choice]]
    costs: Costs
    finish: Finish = unchanged

    @classmethod
    def prepare(
        cls, teacher: RestorationModel, data: Data, options: ConvertOptions, finish: Finish = unchanged
    ) -> RankSearch:
        """All that can be checked before any work.

        Raises:
            UsageError: the budget cannot be met, or not be checked.
        """
        budget = options.budget
        assert budget is not None
        choices = all_choices(attention_layers(teacher))
        if not choices:
            raise UsageError(
                "no channel attention in this model that can be converted; csa2glmha inspect shows what it is"
            )
        if budget.kind == MAX_DROP and data.examples(64, 0)[0].ground_truth is None:
            raise UsageError(
                f"{budget}: needs the ground truth of the images; give --targets, or clean images and "
                "--degrade"
            )
        frame = data.frame(options.input_size)
        costs = count_costs(teacher, choices, frame, finish)
        check_reachable(teacher, choices, costs, budget, frame, finish)
        return cls(teacher, data, options, budget, choices, costs, finish)

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
        if self.budget.kind == LATENCY:
            with scratch_folder(4 * weight_bytes(self.teacher)) as folder:
                stopwatch = Stopwatch(self.teacher, self._frame, folder, self.finish)
                return self._within_time(batches, cache, stopwatch)
        statistics, space = self._measure(batches, cache)
        if self.budget.kind == MAX_DROP:
            # The figures that the report gives, so that what was asked for is what it shows.
            examples = self.data.examples(self.options.input_size, self.options.seed)

            def psnr_of(configs: Configs) -> float:
                student, _ = initialise_student(self.teacher, configs, batches, statistics)
                return psnr_to_ground_truth(restore(student), examples)

            own = psnr_to_ground_truth(restore(self.teacher), examples)
            return search_drop(self.teacher, space, self.budget, own, psnr_of), statistics
        return search_amount(self.teacher, space, self.budget), statistics

    def _within_time(
        self, batches: Sequence[Inputs], cache: SensitivityCache, stopwatch: Stopwatch
    ) -> tuple[FoundRanks, Statistics]:
        """Times come first: they show whether the budget can be met at all."""
        say("timing every rank in ONNX Runtime")
        times = stopwatch.times(self.choices, self.costs)
        check_time(self.budget, times)
        statistics, space = self._measure(batches, cache)
        return search_latency(self.teacher, space, self.budget, times, stopwatch.share), statistics

    def _measure(self, batches: Sequence[Inputs], cache: SensitivityCache) -> tuple[Statistics, SearchSpace]:
        statistics = gather_all(self.teacher, batches)
        measured = measure_choices(
            self.teacher, self.data, self.options, self.choices, batches, statistics, cache
        )
        return statistics, SearchSpace(self.choices, self.costs, measured, self._frame, self.finish)

    @property
    def _frame(self) -> tuple[int, int]:
        return self.data.frame(self.options.input_size)


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
    side = data.evaluation_size(options.calibration_size)
    crops = data.calibration(side, CROPS, options.seed + 3, held_out=True)
    cache.open()
    if cache.known:
        say(f"{cache.path}: {len(cache.known)} measurements are there already")
    return measure_sensitivity(teacher, choices, teacher_outputs(teacher, crops), batches, statistics, cache)


def gather_all(teacher: nn.Module, batches: Sequence[Inputs]) -> Statistics:
    """Statistics of all layers for any ranks."""
    layers = attention_layers(teacher)
    return gather_statistics(teacher, layers, {name: Needs() for name in layers}, batches)


def measured_ranks(
    teacher: nn.Module,
    options: ConvertOptions,
    batches: Sequence[Inputs],
    search: RankSearch | None,
    cache: SensitivityCache | None,
) -> tuple[dict[str, Ranks], Statistics, dict[str, Any] | None]:
    """The ranks that follow from a search, or from shares of energy.

    Args:
        teacher: in eval mode, on its device.
        options: with a budget or shares.
        batches: calibration inputs.
        search: None where shares are given.
        cache: of the search's measurements; None where there is no search.

    Returns:
        The ranks of every layer, the statistics of the teacher, and what the search reports.
    """
    if search is not None:
        assert cache is not None
        found, statistics = search.run(batches, cache)
        say(describe_found(found.report))
        return found.ranks, statistics, found.report.to_json()
    statistics = gather_all(teacher, batches)
    ranks = ranks_for_shares(attention_layers(teacher), statistics, options.ranks, options.shares)
    say("ranks of keys and values: " + ", ".join(f"{_show(r.k)}/{_show(r.v)}" for r in ranks.values()))
    return ranks, statistics, None


def _show(rank: int | None) -> str:
    return "full" if rank is None else str(rank)


def sensitivity_cache(output: Path, teacher: Checkpoint, options: ConvertOptions) -> SensitivityCache:
    """Where measurements are kept, and what they depend on.

    Args:
        output: folder of the results. Measurements are kept beside it, since searches with other budgets need
            the same; in it, where nothing can be written beside it.
        teacher: its file, and which weights of it.
        options: of the conversion.
    """
    name = f"{teacher.path.stem}-sensitivity.jsonl"
    beside = output.parent / name
    own = beside.is_file() and not beside.is_symlink()
    usable = os.access(beside if own else output.parent, os.W_OK)
    path = beside if usable else output / name
    identity: dict[str, Any] = values_that_affect(Affects.MEASUREMENTS, options)
    del identity["weights"]  # those that were taken count, whether or not they were asked for
    for name in ("data", "targets"):
        folder = getattr(options, name)
        identity[name] = None if folder is None else digest_of(folder)
    identity |= {
        "version": __version__,
        "teacher": teacher.sha256,
        **teacher_weights(teacher),
        "mask": None if options.mask is None else sha256_of(options.mask),
        "crops": CROPS,
    }
    return SensitivityCache(path, identity)
