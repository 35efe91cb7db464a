"""How the distillation went."""

from __future__ import annotations

from collections.abc import Sequence

from csa2glmha.metrics.outputs import Scale
from csa2glmha.report.blocks import Block, Chart, Fold, Legend, Marker, Note, Series, Table
from csa2glmha.report.headline import STAGE_TITLES
from csa2glmha.report.schema import CurvePoint, Distillation, Report
from csa2glmha.report.sections.axes import axis_of
from csa2glmha.report.sections.numbers import finite, short
from csa2glmha.report.sections.scales import column, gained, scale_axis, shown, with_unit

_COLOURS = {"start": "var(--before)", "layers": "var(--rank-v)", "end": "var(--student)"}


def learning_blocks(report: Report) -> list[Block]:
    """Agreement with the teacher while the student learns."""
    result = report.distillation
    if result is None:
        return [Note("None: the student is the initialisation.", quiet=False)]
    scale = result.scale
    return [
        Note(_sentence(result)),
        *_curve(result),
        Table(
            ("stage", "steps", "minutes", column(scale), with_unit(scale, "gained")),
            [
                (
                    STAGE_TITLES.get(stage.stage, stage.stage),
                    str(stage.steps),
                    f"{stage.seconds / 60:.1f}",
                    f"{shown(scale, stage.before)} → {shown(scale, stage.after)}",
                    gained(scale, stage.before, stage.after),
                )
                for stage in result.stages
            ],
            "Stages of the distillation",
        ),
        Fold("Curve as a table", _curve_table(result)),
    ]


def _sentence(result: Distillation) -> str:
    scale = result.scale
    sentence = (
        f"{result.steps} steps in {result.seconds / 60:.1f} minutes; {scale.label} on {scale.what} "
        f"{shown(scale, result.before)} → {shown(scale, result.after)}{scale.unit}. "
        f"The weights of step {result.best_step} were kept."
    )
    if result.skipped:
        sentence += f" {result.skipped} steps without a finite loss or gradient were skipped."
    return sentence + (f" Training {result.stopped}." if result.stopped else "")


def _curve(result: Distillation) -> list[Block]:
    scale = result.scale
    curve = [point for point in result.curve if finite(point.figure) is not None]
    series = _series(curve, scale)
    if not series:
        return []
    markers = [
        Marker(point.minutes, f"kept: step {result.best_step}")
        for point in curve
        if point.step == result.best_step and point.step
    ][-1:]
    x = axis_of("minutes", [point.minutes for point in curve], zero=True, margin=0.02)
    figures = [point.figure for point in curve]
    y = scale_axis(scale, f"{scale.label}, {scale.what}", figures, margin=0.06, least=0.5)
    label = f"{scale.label} over the minutes of distillation"
    return [Legend.of(series), Chart(label, series, x, y, markers)]


def _series(curve: Sequence[CurvePoint], scale: Scale) -> list[Series]:
    stages = list(dict.fromkeys(point.stage for point in curve))
    series = []
    for index, stage in enumerate(stages):
        if stage == "start":
            continue
        # A stage begins where the one before it ended.
        before = [point for point in curve if point.stage in stages[:index]][-1:]
        points = before + [point for point in curve if point.stage == stage]
        series.append(
            Series(
                STAGE_TITLES.get(stage, stage),
                [(point.minutes, finite(point.figure) or 0.0) for point in points],
                _COLOURS.get(stage, "var(--student)"),
                dots="circle" if len(curve) < 60 else "",
                notes=[
                    f"step {p.step}, {p.minutes:.1f} minutes: {shown(scale, p.figure)}{scale.unit}"
                    for p in points
                ],
            )
        )
    return series


def _curve_table(result: Distillation) -> list[Block]:
    scale = result.scale
    rows = [
        (
            STAGE_TITLES.get(point.stage, point.stage),
            str(point.step),
            f"{point.minutes:.1f}",
            "" if (loss := finite(point.loss)) is None else short(loss),
            shown(scale, point.figure),
        )
        for point in result.curve
    ]
    header = ("stage", "step", "minutes", "loss", column(scale))
    table = Table(header, rows, "The curve of the distillation")
    if len({point.stage for point in result.curve}) == 1:
        return [table]
    return [table, Note("The losses of the two stages are in units of their own.")]
