"""What the stages of any conversion have measured, as a report is made of it."""

from __future__ import annotations

from csa2glmha.compression.run import ModelT, Run
from csa2glmha.data.identity import describe_images
from csa2glmha.networks import RestorationModel
from csa2glmha.report.record import Measurements
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
        run.configs,
        run.fits,
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
