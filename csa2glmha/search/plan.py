"""The search of a conversion, from its options to the sizes of the student."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, cast

from torch import nn

from csa2glmha.checkpoint import Checkpoint
from csa2glmha.checkpoint.student import teacher_weights, weight_bytes
from csa2glmha.config.affects import Affects, values_that_affect
from csa2glmha.config.budget import LATENCY, MAX_DROP, Budget
from csa2glmha.config.options import ConvertOptions, WorkOptions
from csa2glmha.config.rank_options import RankOptions
from csa2glmha.core.errors import UsageError
from csa2glmha.core.files import scratch_folder, sha256_of
from csa2glmha.core.progress import say
from csa2glmha.core.version import __version__
from csa2glmha.data.batches import Data, Inputs
from csa2glmha.data.folders import digest_of
from csa2glmha.distill.held_out import teacher_outputs
from csa2glmha.distill.job import held_out_crops
from csa2glmha.distill.refitting import refit_where_better
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import layer_config, worthwhile
from csa2glmha.initialize.feedforward import HiddenMoments, narrow
from csa2glmha.initialize.residual import skippable
from csa2glmha.initialize.student import Needs, gather_statistics
from csa2glmha.metrics.complexity import Complexity, count_complexity
from csa2glmha.metrics.evaluate import psnr_to_ground_truth, restore
from csa2glmha.metrics.outputs import PSNR_SCALE
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.skipped import skip
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.layers import attention_layers
from csa2glmha.reading.sizes import Sizes
from csa2glmha.search.choices import HIDDEN, Choice, Key, all_choices
from csa2glmha.search.costs import (
    ChoiceCosts,
    Finish,
    ModelT,
    ShapesOf,
    StudentCount,
    count_costs,
    unchanged,
)
from csa2glmha.search.energy import ranks_for_shares
from csa2glmha.search.report import describe_found
from csa2glmha.search.search import SearchResult, check_reachable, search_amount
from csa2glmha.search.sensitivity import Known, Measured, SensitivityCache, measure_sensitivity
from csa2glmha.search.space import SearchSpace
from csa2glmha.search.stopwatch import Stopwatch
from csa2glmha.search.trials import check_time, search_drop, search_latency

#: Crops of the held-out images that errors are measured on.
CROPS = 8
#: Side of the crop that shows which layers can be skipped.
SMALL = 64


@dataclass(frozen=True)
class SizeSearch(Generic[ModelT]):
    """A search whose budget can be reached as far as counting tells.

    Attributes:
        teacher: in eval mode, on its device.
        data: of the conversion.
        options: of them what is evaluated on and measured on, and whether students are refitted.
        budget: to keep to.
        shapes: of a network's inputs, that operations are counted for.
        choices, costs: of every layer and side.
        finish: what is done to the student before it is used.
    """

    teacher: ModelT
    data: Data
    options: ConvertOptions
    budget: Budget
    shapes: ShapesOf[ModelT]
    choices: dict[Key, list[Choice]]
    costs: ChoiceCosts
    finish: Finish[ModelT] = unchanged

    @classmethod
    def prepare(
        cls,
        teacher: ModelT,
        data: Data,
        budget: Budget,
        options: ConvertOptions,
        shapes: ShapesOf[ModelT],
        finish: Finish[ModelT] = unchanged,
    ) -> SizeSearch[ModelT]:
        """All that can be checked before any work; arguments are the attributes.

        Raises:
            UsageError: the budget cannot be met, or not be checked.
        """
        _check_budget(teacher, data, budget)
        choices = choices_of(teacher, data, options)

        count = StudentCount(teacher, shapes, finish)
        before = count_complexity(teacher, *shapes(teacher))
        costs = count_costs(choices, before, count)
        check_reachable(teacher, choices, costs, budget, count)
        return cls(teacher, data, options, budget, shapes, choices, costs, finish)

    def run(self, batches: Sequence[Inputs], cache: SensitivityCache | None) -> tuple[SearchResult, Known]:
        """Measure, allocate and check.

        Args:
            batches: calibration inputs.
            cache: of measurements; opened here. None keeps none.

        Returns:
            What was found, and what is known of the teacher, for the initialisation.

        Raises:
            UsageError: the budget cannot be met.
        """
        if self.budget.kind == LATENCY:
            with scratch_folder(4 * weight_bytes(self.teacher)) as folder:
                return self._within_time(batches, cache, self._stopwatch(folder))
        known, space = self._measure(batches, cache)
        if self.budget.kind == MAX_DROP:
            return self._within_drop(known, space), known
        return search_amount(self.teacher, space, self.budget), known

    def _within_drop(self, known: Known, space: SearchSpace) -> SearchResult:
        """By the figures that the report gives, so that what was asked for is what it shows."""
        examples = self.data.examples(self.options.input_size, self.options.seed)
        held_out = None
        if self.options.refit:
            held_out = teacher_outputs(self.teacher, held_out_crops(self.data, self.options))

        def psnr_of(sizes: Sizes) -> float:
            student = student_of(self.teacher, sizes, known)
            if held_out is not None:
                refit_where_better(self.teacher, student, known.batches, held_out)
            return psnr_to_ground_truth(restore(student), examples)

        own = psnr_to_ground_truth(restore(self.teacher), examples)
        return search_drop(self.teacher, space, self.budget, own, psnr_of)

    def _stopwatch(self, folder: Path) -> Stopwatch:
        assert isinstance(self.teacher, RestorationModel)
        frame = self.data.frame(self.options.input_size)
        return Stopwatch(self.teacher, frame, folder, cast(Finish[RestorationModel], self.finish))

    def _within_time(
        self, batches: Sequence[Inputs], cache: SensitivityCache | None, stopwatch: Stopwatch
    ) -> tuple[SearchResult, Known]:
        """Times come first: they show whether the budget can be met at all."""
        say("timing every choice in ONNX Runtime")
        times = stopwatch.times(self.choices, self.costs)
        check_time(self.budget, times)
        known, space = self._measure(batches, cache)
        return search_latency(self.teacher, space, self.budget, times, stopwatch.share), known

    def _measure(
        self, batches: Sequence[Inputs], cache: SensitivityCache | None
    ) -> tuple[Known, SearchSpace]:
        known = gather_all(self.teacher, batches, widths=any(side == HIDDEN for _, side in self.choices))
        # What no calibration image reaches, such as an expert that none of them chooses, stays as it is.
        choices = {
            key: each
            for key, each in self.choices.items()
            if key[1] != HIDDEN or key[0] in known.hidden.orders
        }
        measured = measure_choices(self.teacher, self.data, self.options, choices, known, cache)
        return known, SearchSpace(choices, self.costs, measured, self._count, self.data.outputs)

    def _count(self, sizes: Sizes) -> Complexity:
        return StudentCount(self.teacher, self.shapes, self.finish)(sizes)


def _check_budget(teacher: nn.Module, data: Data, budget: Budget) -> None:
    """Raise UsageError for a budget that cannot be checked on this network and data."""
    if budget.kind == MAX_DROP and data.outputs.scale.metric != PSNR_SCALE.metric:
        raise UsageError(
            f"{budget}: is in decibels of PSNR, which logits of classes do not have; give --macs or --params"
        )
    if budget.kind == MAX_DROP and data.examples(64, 0)[0].ground_truth is None:
        raise UsageError(
            f"{budget}: needs the ground truth of the images; give --targets, or clean images and --degrade"
        )
    if budget.kind == LATENCY and not isinstance(teacher, RestorationModel):
        raise UsageError(
            f"{budget}: {type(teacher).__name__} is of no known family, whose deployment could be timed; "
            "give another budget, such as --macs"
        )


def choices_of(teacher: nn.Module, data: Data, options: ConvertOptions) -> dict[Key, list[Choice]]:
    """What a search chooses from: ranks, and where widths are not given, widths and layers to skip.

    Raises:
        UsageError: there is nothing.
    """
    layers = attention_layers(teacher)
    if not layers:
        raise UsageError(
            "no channel attention in this model that can be converted; csa2glmha inspect shows what it is"
        )
    if options.ffn is not None:
        return all_choices(layers, {}, ())
    crop = data.calibration(data.evaluation_size(SMALL), 1, options.seed)[0]
    return all_choices(layers, feed_forwards(teacher), skippable(teacher, crop))


def measure_choices(
    teacher: nn.Module,
    data: Data,
    options: WorkOptions,
    choices: Mapping[Key, Sequence[Choice]],
    known: Known,
    cache: SensitivityCache | None,
) -> dict[Key, list[Measured]]:
    """What every choice loses on held-out crops; the cache is opened here, None keeps nothing."""
    side = data.evaluation_size(options.calibration_size)
    crops = data.calibration(side, CROPS, options.seed + 3, held_out=True)
    if cache is not None:
        cache.open()
    if cache is not None and cache.known:
        say(f"{cache.path}: {len(cache.known)} measurements are there already")
    return measure_sensitivity(teacher, choices, crops, data.outputs, known, cache)


def gather_all(teacher: nn.Module, batches: Sequence[Inputs], widths: bool = False) -> Known:
    """What all ranks need of a teacher, and all widths if they are wanted."""
    layers = attention_layers(teacher)
    statistics = gather_statistics(teacher, layers, {name: Needs() for name in layers}, batches)
    hidden = HiddenMoments.of(teacher, feed_forwards(teacher), batches) if widths else HiddenMoments({}, {})
    return Known(batches, statistics, hidden)


def student_of(teacher: ModelT, sizes: Sizes, known: Known) -> ModelT:
    """The student of these sizes before refit and training."""
    student, _ = initialise_student(teacher, dict(sizes.configs), known.batches, known.statistics)
    narrow(feed_forwards(student), sizes.widths, known.hidden)
    skip(student, sizes.skipped)
    return student


def measured_sizes(
    teacher: nn.Module,
    options: RankOptions,
    batches: Sequence[Inputs],
    search: SizeSearch[Any] | None,
    cache: SensitivityCache | None,
) -> tuple[Sizes, Known, dict[str, Any] | None]:
    """The sizes that follow from a search, or from shares of energy.

    Args:
        teacher: in eval mode, on its device.
        options: with shares, where there is no search.
        batches: calibration inputs.
        search: None where shares are given.
        cache: of the search's measurements; None keeps none.

    Returns:
        The sizes, what is known of the teacher, and what the search reports.
    """
    if search is not None:
        found, known = search.run(batches, cache)
        say(describe_found(found.report))
        return found.sizes, known, found.report.to_json()
    known, layers = gather_all(teacher, batches), attention_layers(teacher)
    ranks = ranks_for_shares(layers, known.statistics, options.ranks, options.shares)
    say("ranks of keys and values: " + ", ".join(f"{_show(r.k)}/{_show(r.v)}" for r in ranks.values()))
    configs = {name: layer_config(layers[name].form, each) for name, each in ranks.items()}
    return Sizes(worthwhile(layers, configs)), known, None


def _show(rank: int | None) -> str:
    return "full" if rank is None else str(rank)


def sensitivity_cache(output: Path, teacher: Checkpoint, options: WorkOptions) -> SensitivityCache:
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
