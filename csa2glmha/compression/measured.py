"""What the stages of any conversion have measured, as a report is made of it."""

from __future__ import annotations

from csa2glmha.compression.run import ModelT, Run
from csa2glmha.data.identity import describe_images
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.report.record import Measurements, Width
from csa2glmha.report.schema import Teacher


def measurements_of(run: Run[ModelT], teacher: Teacher, frame: tuple[int, int]) -> Measurements:
    """The measurements that files and networks in memory have in common.

    Args:
        run: all of its stages are done.
        teacher: what the report is to say of it.
        frame: height and width that MACs are counted for.
    """
    distilled = {} if run.distillation is None else {"distill": run.distillation.seconds}
    return Measurements(
        teacher,
        run.options,
        run.data,
        run.sizes,
        run.fits,
        widths_of(run),
        run.refitted,
        run.before,
        run.after,
        run.seconds | distilled,
        frame,
        run.distillation,
        run.settings,
        run.quality,
        describe_images(run.data, run.examples),
        device=str(run.device),
        channels=run.teacher.out_channels if isinstance(run.teacher, RestorationModel) else 0,
        search=run.found,
        comparisons=run.comparisons,
    )


def widths_of(run: Run[ModelT]) -> dict[str, Width]:
    """All feed-forward networks, where some of them are narrower than the teacher's; otherwise none."""
    student, skipped = feed_forwards(run.student), run.sizes.skipped
    widths = {
        name: Width(layer.hidden, student[name].hidden, run.width_errors.get(name, 0.0), layer.modules)
        if name in student
        else Width(layer.hidden, 0, 1.0, layer.modules)
        for name, layer in feed_forwards(run.teacher).items()
        if name in student or name in skipped
    }
    return widths if any(width.after < width.before for width in widths.values()) else {}
