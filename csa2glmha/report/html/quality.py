"""How good the student's outputs are: every metric, and of spectra every band."""

from __future__ import annotations

from typing import Any

from csa2glmha.report.document import channel_of, metrics_of
from csa2glmha.report.html.axes import axis_of
from csa2glmha.report.html.charts import Series, chart, legend_of
from csa2glmha.report.html.markup import Markup, details, table, tag
from csa2glmha.report.html.numbers import finite, fixed

_BAND_COLUMNS = (
    ("student", "teacher_bands", "psnr", "PSNR to teacher, dB", 2),
    ("student", "teacher_bands", "ssim", "SSIM to teacher", 4),
    ("teacher", "truth_bands", "psnr", "teacher's PSNR to truth, dB", 2),
    ("student", "truth_bands", "psnr", "student's PSNR to truth, dB", 2),
    ("teacher", "truth_bands", "ssim", "teacher's SSIM to truth", 4),
    ("student", "truth_bands", "ssim", "student's SSIM to truth", 4),
)


def quality_table(report: dict[str, Any]) -> Markup | None:
    """Every metric of teacher, initialisation and student."""
    quality = report.get("quality", {})
    rows: list[list[str]] = []
    metrics = metrics_of(channel_of(report))
    for against, words in (("teacher", "to the teacher"), ("truth", "to the truth")):
        for metric, label, unit, to_teacher, to_truth in metrics:
            values = [
                quality.get(name, {}).get(against, {}).get(metric)
                for name in ("teacher", "initialisation", "student")
            ]
            if any(value is not None for value in values):
                digits = to_teacher if against == "teacher" else to_truth
                cells = ["" if value is None else fixed(value, digits) for value in values]
                rows.append([f"{label} {words}{',' + unit if unit else ''}", *cells])
    if not rows:
        return None
    header = ["metric", "teacher", "before distillation", "student"]
    if not any(row[2] for row in rows):
        rows, header = [[row[0], row[1], row[3]] for row in rows], [header[0], header[1], header[3]]
    return table(rows, header, "Quality of teacher and student")


def band_charts(report: dict[str, Any]) -> Markup | None:
    """PSNR of every band, to the teacher and to the truth."""
    quality = report.get("quality", {})
    columns = [
        (label, values, digits)
        for model, against, metric, label, digits in _BAND_COLUMNS
        if (values := quality.get(model, {}).get(against, {}).get(metric))
    ]
    if not columns:
        return None
    bands = len(columns[0][1])
    header = ["band", *(label for label, _, _ in columns)]
    rows = [
        [str(band + 1), *(fixed(values[band], digits) for _, values, digits in columns)]
        for band in range(bands)
    ]
    wanted = (
        (
            "PSNR to the truth, dB",
            "truth_bands",
            (("teacher", "var(--teacher)"), ("student", "var(--student)")),
        ),
        (
            "PSNR to the teacher, dB",
            "teacher_bands",
            (("initialisation", "var(--before)"), ("student", "var(--student)")),
        ),
    )
    drawn = []
    for title, against, models in wanted:
        series = [
            Series("before distillation" if model == "initialisation" else model, points, colour)
            for model, colour in models
            if (points := _points(quality.get(model, {}).get(against, {}).get("psnr", [])))
        ]
        if series:
            y = axis_of(title, [value for each in series for _, value in each.points], least=1.0)
            x = axis_of("band", [1, max(bands, 2)], margin=0.02)
            drawn.append(
                tag("div", legend_of(series), chart(f"{title}, of every band", series, x, y, room="half"))
            )
    note = (
        "The mean of the PSNR of the bands is what papers on spectral imaging give. "
        "The spectral angle (SAM) is in degrees; MRAE leaves out values that are zero in the reference."
    )
    return tag(
        "div",
        tag("h3", "Bands"),
        tag("p", note, class_="note"),
        tag("div", drawn, class_="multiples pairs"),
        details("Bands as a table", table(rows, header, "Quality of every band")),
    )


def _points(values: list[Any]) -> list[tuple[float, float]]:
    return [(band, number) for band, value in enumerate(values, 1) if (number := finite(value)) is not None]
