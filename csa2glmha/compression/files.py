"""The stages that a conversion of files adds: states, other methods, ONNX, timing, pictures, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from csa2glmha.checkpoint.student import student_metadata, teacher_weights
from csa2glmha.compression.exporting import Export, ExportFor, TimeFiles
from csa2glmha.compression.file_run import FileRun
from csa2glmha.compression.measured import measurements_of
from csa2glmha.compression.run import Always, Stage
from csa2glmha.compression.stages import (
    MAKING,
    Compare,
    Count,
    Distil,
    Evaluate,
    calibration_inputs,
)
from csa2glmha.config.options import ConvertOptions
from csa2glmha.core.hub import teacher_source
from csa2glmha.data.inputs.masks import mask_provenance
from csa2glmha.data.open import input_provenance
from csa2glmha.distill.initial import Initial, load_initial, save_initial
from csa2glmha.metrics.complexity import count_complexity
from csa2glmha.networks.skipped import skipped_layers
from csa2glmha.reading.feedforwards import narrowed_widths
from csa2glmha.reading.sizes import Sizes
from csa2glmha.report.card import write_card
from csa2glmha.report.document import write_report
from csa2glmha.report.html import write_html
from csa2glmha.report.record import Measurements, build_report, teacher_of
from csa2glmha.search.baselines import BaselineJob


class Resume(Always[FileRun]):
    """Take up the student that an interrupted training began with."""

    def wanted(self, run: FileRun) -> bool:
        """Where there is a state."""
        return run.state is not None

    def __call__(self, run: FileRun) -> None:
        """Sets what the stages before the training would."""
        initial = load_initial(run.workspace.states, run.teacher)
        run.fits, run.width_errors, run.found = dict(initial.fits), dict(initial.width_errors), initial.found
        run.refitted = initial.refitted
        run.seconds |= initial.seconds
        run.sizes = Sizes.of(initial.student)
        run.student = initial.student.to(run.device)


class KeepInitial(Always[FileRun]):
    """Keep the student that training begins with beside the states, for the report of a resumed run."""

    def wanted(self, run: FileRun) -> bool:
        """Where a training begins."""
        return run.trains and run.state is None

    def __call__(self, run: FileRun) -> None:
        """Writes it."""
        states = run.workspace.states
        states.clear()
        metadata = student_metadata(run.student, run.loaded.checkpoint.sha256, run.options.seed, {})
        initial = Initial(run.student, run.fits, run.width_errors, run.refitted, run.seconds, run.found)
        save_initial(states, initial, metadata)


class CompareMethods(Always[FileRun]):
    """Make and measure other methods' students, in as many steps as the student took."""

    name = "baselines"

    def planned(self, run: FileRun) -> bool:
        """Where they are asked for."""
        return run.options.baselines

    def __call__(self, run: FileRun) -> None:
        """Sets ``methods`` and ``baselines``."""
        steps = 0 if run.distillation is None else run.distillation.steps
        run.methods = BaselineJob(
            run.teacher,
            run.options.model_copy(update={"distill_steps": steps}),
            run.data,
            run.examples,
            calibration_inputs(run.data, run.options),
            {**run.identity, "the steps": steps},
            run.workspace.folder,
            run.finish,
            narrowed_widths(run.student),
            skipped_layers(run.student),
        )
        run.baselines = run.methods.run(count_complexity(run.student, *run.shapes(run.student)).macs)


class WriteStudent(Always[FileRun]):
    """Write the student's file."""

    def __call__(self, run: FileRun) -> None:
        """Sets ``metadata``."""
        checkpoint = run.loaded.checkpoint
        extra = provenance(run.options) | teacher_source(checkpoint.path) | teacher_weights(checkpoint)
        extra |= input_provenance(run.teacher, run.options)
        run.metadata = student_metadata(run.student, checkpoint.sha256, run.options.seed, extra)
        steps = None if run.distillation is None else run.distillation.steps
        run.workspace.replace_student(run.student, run.metadata, steps)


class DrawPictures(Always[FileRun]):
    """Write the pictures of one image."""

    def wanted(self, run: FileRun) -> bool:
        """Where there are any."""
        return run.pictured is not None

    def __call__(self, run: FileRun) -> None:
        """Writes them."""
        pictured = run.pictured
        assert pictured is not None
        run.workspace.write(lambda: pictured.write(run.workspace.folder))


@dataclass(frozen=True)
class WriteReport(Always[FileRun]):
    """Write the report in all its forms, report.json by ``writer``; then states are needed no more."""

    writer: Callable[..., None] = write_report

    def __call__(self, run: FileRun) -> None:
        """Sets ``record``."""
        record = run.record = build_report(measurements(run))
        space = run.workspace
        space.write(lambda: self.writer(space.folder, record))
        space.write(lambda: write_html(space.folder, record, run.comparisons))
        space.write(lambda: write_card(space.folder, record))
        if run.methods is not None:
            run.methods.clear()
        space.states.clear()


def measurements(run: FileRun) -> Measurements:
    """What the report is made of."""
    return replace(
        measurements_of(run, teacher_of(run.loaded), run.frame),
        export=run.export,
        exports=run.exports,
        exports_missing=run.exports_missing,
        latency=run.latency,
        latency_missing=run.latency_missing,
        baselines=run.baselines,
    )


def provenance(options: ConvertOptions) -> dict[str, str]:
    """What a student file says of its making."""
    made = {"ranks": options.ranks_in_words(), "task": options.degrade or "", "attention": options.attention}
    made |= {} if options.ffn_share == 1 else {"ffn": f"{options.ffn_share:g}"}
    return made if options.mask is None else made | mask_provenance(options.mask, options.mask_key)


#: All stages of a conversion of files, in order.
CONVERSION_STAGES: tuple[Stage[FileRun], ...] = (
    Resume(),
    *MAKING,
    KeepInitial(),
    Distil(),
    Evaluate(),
    CompareMethods(),
    Count(),
    WriteStudent(),
    Export(),
    ExportFor(),
    TimeFiles(),
    Compare(),
    DrawPictures(),
    WriteReport(),
)


def replaced(stage: Stage[FileRun], stages: Sequence[Stage[FileRun]]) -> tuple[Stage[FileRun], ...]:
    """The stages with one in the place of that of its class."""
    return tuple(stage if type(each) is type(stage) else each for each in stages)
