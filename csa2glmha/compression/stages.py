"""The stages that make a student, the same for files and in memory."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from csa2glmha.analysis.measure import analyse_layer
from csa2glmha.compression.pictured import Pictured
from csa2glmha.compression.run import Always, Run, Stage
from csa2glmha.config.options import WorkOptions
from csa2glmha.core.progress import say
from csa2glmha.core.text import listed
from csa2glmha.data.batches import Data, Inputs
from csa2glmha.distill.held_out import teacher_outputs
from csa2glmha.distill.job import DistillJob, held_out_crops
from csa2glmha.distill.refitting import refit_where_better
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.feedforward import HiddenMoments, narrow
from csa2glmha.metrics.comparisons import compare_images
from csa2glmha.metrics.complexity import BY_VALUES, count_complexity
from csa2glmha.metrics.evaluate import evaluate, restore
from csa2glmha.networks.foreign import ForeignNetwork
from csa2glmha.networks.skipped import skip
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.layers import attention_layers, by_reason
from csa2glmha.search.plan import measured_sizes


def calibration_inputs(data: Data, options: WorkOptions) -> list[Inputs]:
    """The inputs that statistics are taken on."""
    say(f"measuring attention statistics on {options.calibration_crops} crops")
    return data.calibration(options.calibration_size, options.calibration_crops, options.seed)


class Calibrate(Always[Run[Any]]):
    """Collect the inputs for the statistics."""

    def wanted(self, run: Run[Any]) -> bool:
        """Not where nothing is approximated, or a state holds the student already."""
        return run.state is None and not run.plan.exact

    def __call__(self, run: Run[Any]) -> None:
        """Sets ``inputs``."""
        run.inputs = calibration_inputs(run.data, run.options)


class MeasureSizes(Always[Run[Any]]):
    """Choose ranks, widths and depth by a search, or ranks by shares of energy."""

    name = "ranks"

    def planned(self, run: Run[Any]) -> bool:
        """Where ranks follow from measurements."""
        return run.options.measured

    def wanted(self, run: Run[Any]) -> bool:
        """Not where a state holds the student already."""
        return run.state is None and run.options.measured

    def __call__(self, run: Run[Any]) -> None:
        """Sets ``sizes``, ``known`` and ``found``."""
        assert run.inputs is not None
        sizes, run.known, run.found = measured_sizes(
            run.teacher, run.options, run.inputs, run.search, run.cache
        )
        run.sizes = replace(sizes, widths={**run.plan.sizes.widths, **sizes.widths})


class Initialise(Always[Run[Any]]):
    """Make the student from the teacher's statistics."""

    name = "initialise"

    def wanted(self, run: Run[Any]) -> bool:
        """Not where a state holds the student already."""
        return run.state is None

    def __call__(self, run: Run[Any]) -> None:
        """Sets ``student`` and ``fits``."""
        configs, skipped = run.sizes.configs, run.sizes.skipped
        same = [name for name in attention_layers(run.teacher) if name not in configs and name not in skipped]
        if same:
            say(f"not converted: {listed(same, 3)}: at these ranks they would be no cheaper")
        statistics = None if run.known is None else run.known.statistics
        run.student, run.fits = initialise_student(
            run.teacher, dict(configs), run.inputs, statistics, analyse_layer
        )
        if run.known is not None:
            run.known = replace(run.known, statistics={})  # large


class Narrow(Always[Run[Any]]):
    """Leave out hidden channels of the feed-forward networks, and skipped layers."""

    name = "widths"

    def planned(self, run: Run[Any]) -> bool:
        """Where some are to have fewer, or a search may find so."""
        return bool(run.plan.sizes.widths) or (run.search is not None and run.options.ffn is None)

    def wanted(self, run: Run[Any]) -> bool:
        """Not where a state holds the student already."""
        return run.state is None and bool(run.sizes.widths or run.sizes.skipped)

    def __call__(self, run: Run[Any]) -> None:
        """Changes ``student``; sets ``width_errors``."""
        assert run.inputs is not None
        if isinstance(run.teacher, ForeignNetwork):
            for line in by_reason(run.teacher.refused_feed_forwards):
                say(f"not narrowed: {line}")
        widths = run.sizes.widths
        hidden = None if run.known is None else run.known.hidden
        if hidden is None or not widths.keys() <= hidden.orders.keys():
            layers = feed_forwards(run.teacher)
            hidden = HiddenMoments.of(run.teacher, {name: layers[name] for name in widths}, run.inputs)
        run.width_errors = narrow(feed_forwards(run.student), widths, hidden)
        skip(run.student, run.sizes.skipped)
        run.known = None


class Refit(Always[Run[Any]]):
    """Refit output projections to the teacher's sums."""

    name = "refit"

    def planned(self, run: Run[Any]) -> bool:
        """Where it is not switched off, and something is approximated."""
        return run.options.refit and not run.plan.exact

    def wanted(self, run: Run[Any]) -> bool:
        """Not where a state holds the student already, or all ranks that were measured are full."""
        return run.state is None and self.planned(run) and run.approximates

    def __call__(self, run: Run[Any]) -> None:
        """Changes ``student``; sets ``refitted``."""
        assert run.inputs is not None
        held_out = teacher_outputs(run.teacher, held_out_crops(run.data, run.options))
        run.refitted = refit_where_better(run.teacher, run.student, run.inputs, held_out)


class Distil(Always[Run[Any]]):
    """Train the student against the teacher."""

    name = "distill"

    def planned(self, run: Run[Any]) -> bool:
        """Where it is asked for."""
        return run.plan.distilled

    def wanted(self, run: Run[Any]) -> bool:
        """Where something is approximated."""
        return run.trains

    def __call__(self, run: Run[Any]) -> None:
        """Sets ``initial`` and ``distillation``; trains ``student``."""
        run.initial = copy.deepcopy(run.student)
        job = DistillJob(run.options, run.data, run.states, run.log, run.settings)
        run.distillation = job.run(run.student, run.teacher, run.state)


class Evaluate(Always[Run[Any]]):
    """Measure teacher and student on the held-out images."""

    name = "evaluate"

    def __call__(self, run: Run[Any]) -> None:
        """Finishes ``student``; sets ``quality``."""
        run.student = run.finish(run.student)
        networks = {"teacher": run.teacher, "initialisation": run.initial, "student": run.student}
        candidates = {name: restore(network) for name, network in networks.items() if network is not None}
        run.quality = evaluate(candidates, run.examples, "teacher", run.data.outputs)


class Count(Always[Run[Any]]):
    """Count operations and parameters, and let go of the device."""

    def __call__(self, run: Run[Any]) -> None:
        """Sets ``before`` and ``after``; both networks are on the CPU then."""
        run.student.cpu().eval()
        run.teacher.cpu()
        run.before = count_complexity(run.teacher, *run.shapes(run.teacher))
        run.after = count_complexity(run.student, *run.shapes(run.student))
        if run.before.by_values or run.after.by_values:
            say(BY_VALUES)


class Compare(Always[Run[Any]]):
    """Put teacher's and student's outputs on a few images side by side."""

    def wanted(self, run: Run[Any]) -> bool:
        """Where inputs and outputs are images; of networks of known families they are."""
        return run.data.outputs.pictured and run.examples[0].inputs[0].ndim == 4

    def __call__(self, run: Run[Any]) -> None:
        """Sets ``comparisons`` and ``pictured``."""
        teacher, student = restore(run.teacher), restore(run.student)
        run.comparisons = compare_images(run.examples, teacher, student, run.data.spectral)
        run.pictured = Pictured.of(run.examples[0], teacher, student, run.data.spectral)


#: How a student is made, up to its training.
MAKING: tuple[Stage[Run[Any]], ...] = (Calibrate(), MeasureSizes(), Initialise(), Narrow(), Refit())
