"""How the distillation went."""

from __future__ import annotations

from collections.abc import Sequence

from csa2glmha.report.blocks import Block, Chart, Fold, Legend, Marker, Note, Series, Table
from csa2glmha.report.headline import STAGE_TITLES
from csa2glmha.report.schema import CurvePoint, Distillation, Report, Stage
from csa2glmha.report.sections.axes import axis_of
from csa2glmha.report.sections.numbers import finite, fixed, known, short, signed

_COLOURS = {"start": "var(--before)", "layers": "var(--rank-v)", "end": "var(--student)"}


def learning_blocks(report: Report) -> list[Block]:
    """PSNR to the teacher while the student learns."""
    result = report.distillation
    if result is None:
        return [Note("None: the student is the initialisation.", quiet=False)]
    return [
        Note(_sentence(result)),
        *_curve(result),
        Table(
            ("stage", "steps", "minutes", "PSNR to teacher, dB", "gained, dB"),
            [
                (
                    STAGE_TITLES.get(stage.stage, stage.stage),
                    str(stage.steps),
                    f"{stage.seconds / 60:.1f}",
                    f"{fixed(stage.before, 2)} → {fixed(stage.after, 2)}",
                    _gain(stage),
                )
                for stage in result.stages
            ],
            "Stages of the distillation",
        ),
        Fold("Curve as a table", _curve_table(result)),
    ]


def _sentence(result: Distillation) -> str:
    sentence = (
        f"{result.steps} steps in {result.seconds / 60:.1f} minutes; PSNR to the teacher on held-out "
        f"crops {fixed(result.before, 2)} → {fixed(result.after, 2)} dB. "
        f"The weights of step {result.best_step} were kept."
    )
    if result.skipped:
        sentence += f" {result.skipped} steps without a finite loss or gradient were skipped."
    return sentence + (f" Training {result.stopped}." if result.stopped else "")


def _curve(result: Distillation) -> list[Block]:
    curve = [point for point in result.curve if finite(point.psnr) is not None]
    series = _series(curve)
    if not series:
        return []
    markers = [
        Marker(point.minutes, f"kept: step {result.best_step}")
        for point in curve
        if point.step == result.best_step and point.step
    ][-1:]
    x = axis_of("minutes", [point.minutes for point in curve], zero=True, margin=0.02)
    y = axis_of("PSNR to the teacher, held-out crops, dB", known(p.psnr for p in curve), least=0.5)
    label = "PSNR to the teacher over the minutes of distillation"
    return [Legend.of(series), Chart(label, series, x, y, markers)]


def _series(curve: Sequence[CurvePoint]) -> list[Series]:
    stages = list(dict.fromkeys(point.stage for point in curve))
    series = []
    for index, stage in enumerate(stages):
        if stage == "start":
            continue
        # A stage begins where the one before it ended.
        before = [point for point in curve if point.stage in stages[:index]][-1:]
        shown = before + [point for point in curve if point.stage == stage]
        series.append(
            Series(
                STAGE_TITLES.get(stage, stage),
                [(point.minutes, finite(point.psnr) or 0.0) for point in shown],
                _COLOURS.get(stage, "var(--student)"),
                dots="circle" if len(curve) < 60 else "",
                notes=[f"step {p.step}, {p.minutes:.1f} minutes: {p.psnr:.2f} dB" for p in shown],
            )
        )
    return series


def _curve_table(result: Distillation) -> list[Block]:
    rows = [
        (
            STAGE_TITLES.get(point.stage, point.stage),
            str(point.step),
            f"{point.minutes:.1f}",
            "" if (loss := finite(point.loss)) is None else short(loss),
            fixed(point.psnr, 2),
        )
        for point in result.curve
    ]
    header = ("stage", "step", "minutes", "loss", "PSNR to teacher, dB")
    return [
        Table(header, rows, "The curve of the distillation"),
        Note("The losses of the two stages are in units of their own."),
    ]


def _gain(stage: Stage) -> str:
    before, after = finite(stage.before), finite(stage.after)
    return "" if before is None or after is None else signed(after - before, 2)
