"""How the distillation went."""

from __future__ import annotations

from typing import Any

from csa2glmha.report.document import STAGE_TITLES
from csa2glmha.report.html.axes import axis_of
from csa2glmha.report.html.charts import Marker, Series, chart, legend_of
from csa2glmha.report.html.markup import Markup, details, table, tag
from csa2glmha.report.html.numbers import finite, fixed, known, short, signed

_COLOURS = {"start": "var(--before)", "layers": "var(--rank-v)", "end": "var(--student)"}


def learning_curve(report: dict[str, Any]) -> Markup:
    """PSNR to the teacher while the student learns."""
    result = report.get("distillation")
    if result is None:
        return tag("p", "None: the student is the initialisation.")
    curve = [point for point in result["curve"] if finite(point["psnr"]) is not None]
    stages = list(dict.fromkeys(point["stage"] for point in curve))
    series = []
    for index, stage in enumerate(stages):
        of_stage = [point for point in curve if point["stage"] == stage]
        # A stage begins where the one before it ended.
        before = [point for point in curve if point["stage"] in stages[:index]][-1:]
        dots = "circle" if len(curve) < 60 else ""
        notes = [
            f"step {p['step']}, {p['minutes']:.1f} minutes: {p['psnr']:.2f} dB" for p in before + of_stage
        ]
        places = [(point["minutes"], point["psnr"]) for point in before + of_stage]
        if stage == "start":
            continue
        series.append(
            Series(
                STAGE_TITLES.get(stage, stage),
                places,
                _COLOURS.get(stage, "var(--student)"),
                dots=dots,
                notes=notes,
            )
        )
    markers = [
        Marker(point["minutes"], f"kept: step {result['best_step']}")
        for point in curve
        if point["step"] == result["best_step"] and point["step"]
    ][-1:]
    x = axis_of("minutes", [point["minutes"] for point in curve], zero=True, margin=0.02)
    y = axis_of("PSNR to the teacher, held-out crops, dB", known(p["psnr"] for p in curve), least=0.5)
    sentence = (
        f"{result['steps']} steps in {result['seconds'] / 60:.1f} minutes; PSNR to the teacher on held-out "
        f"crops {fixed(result['before'], 2)} → {fixed(result['after'], 2)} dB. "
        f"The weights of step {result['best_step']} were kept."
    )
    if result.get("skipped"):
        sentence += f" {result['skipped']} steps without a finite loss or gradient were skipped."
    if result.get("stopped"):
        sentence += f" Training {result['stopped']}."
    return tag(
        "div",
        tag("p", sentence, class_="note"),
        [
            legend_of(series),
            chart("PSNR to the teacher over the minutes of distillation", series, x, y, markers),
        ]
        if series
        else None,
        table(
            [
                (
                    STAGE_TITLES.get(stage["stage"], stage["stage"]),
                    str(stage["steps"]),
                    f"{stage['seconds'] / 60:.1f}",
                    f"{fixed(stage['before'], 2)} → {fixed(stage['after'], 2)}",
                    _gain(stage),
                )
                for stage in result["stages"]
            ],
            ("stage", "steps", "minutes", "PSNR to teacher, dB", "gained, dB"),
            "Stages of the distillation",
        ),
        details(
            "Curve as a table",
            table(
                [
                    (
                        STAGE_TITLES.get(point["stage"], point["stage"]),
                        str(point["step"]),
                        f"{point['minutes']:.1f}",
                        short(point["loss"]) if finite(point.get("loss")) is not None else "",
                        fixed(point["psnr"], 2),
                    )
                    for point in result["curve"]
                ],
                ("stage", "step", "minutes", "loss", "PSNR to teacher, dB"),
                "The curve of the distillation",
            ),
            tag("p", "The losses of the two stages are in units of their own.", class_="note"),
        ),
    )


def _gain(stage: dict[str, Any]) -> str:
    before, after = finite(stage["before"]), finite(stage["after"])
    return "" if before is None or after is None else signed(after - before, 2)
