"""How good the student's outputs are: every metric, and of spectra every band."""

from __future__ import annotations

from csa2glmha.report.blocks import Block, Chart, Fold, Group, Heading, Legend, Note, Series, Table
from csa2glmha.report.metrics import channel_of, metrics_of
from csa2glmha.report.part import Figure
from csa2glmha.report.schema import Against, Report
from csa2glmha.report.sections.axes import axis_of
from csa2glmha.report.sections.numbers import finite, fixed

_BAND_COLUMNS: tuple[tuple[str, Against, str, str, int], ...] = (
    ("student", "teacher", "psnr", "PSNR to teacher, dB", 2),
    ("student", "teacher", "ssim", "SSIM to teacher", 4),
    ("teacher", "ground_truth", "psnr", "teacher's PSNR to ground truth, dB", 2),
    ("student", "ground_truth", "psnr", "student's PSNR to ground truth, dB", 2),
    ("teacher", "ground_truth", "ssim", "teacher's SSIM to ground truth", 4),
    ("student", "ground_truth", "ssim", "student's SSIM to ground truth", 4),
)
_BAND_CHARTS: tuple[tuple[str, Against, tuple[tuple[str, str], ...]], ...] = (
    (
        "PSNR to the ground truth, dB",
        "ground_truth",
        (("teacher", "var(--teacher)"), ("student", "var(--student)")),
    ),
    (
        "PSNR to the teacher, dB",
        "teacher",
        (("initialisation", "var(--before)"), ("student", "var(--student)")),
    ),
)
_NOTE = (
    "The mean of the PSNR of the bands is what papers on spectral imaging give. "
    "The spectral angle (SAM) is in degrees; MRAE leaves out values that are zero in the reference."
)


def quality_blocks(report: Report) -> list[Block]:
    """Every metric of teacher, initialisation and student, and every band."""
    return [*_metrics(report), *_bands(report)]


def _metrics(report: Report) -> list[Block]:
    rows: list[list[str]] = []
    comparisons: tuple[Against, ...] = ("teacher", "ground_truth")
    for against in comparisons:
        for metric in metrics_of(channel_of(report)):
            values = [
                report.figure(name, against, metric.name) for name in ("teacher", "initialisation", "student")
            ]
            if any(value is not None for value in values):
                cells = ["" if value is None else metric.shown(value, against) for value in values]
                unit = f",{metric.unit}" if metric.unit else ""
                rows.append([metric.title(against, "the ") + unit, *cells])
    if not rows:
        return []
    header = ["metric", "teacher", "before distillation", "student"]
    if not any(row[2] for row in rows):
        rows, header = [[row[0], row[1], row[3]] for row in rows], [header[0], header[1], header[3]]
    return [Table(header, rows, "Quality of teacher and student")]


def _bands(report: Report) -> list[Block]:
    columns = [
        (label, values, digits)
        for network, against, metric, label, digits in _BAND_COLUMNS
        if (values := report.bands(network, against, metric))
    ]
    if not columns:
        return []
    bands = len(columns[0][1])
    header = ["band", *(label for label, _, _ in columns)]
    rows = [
        [str(band + 1), *(fixed(values[band], digits) for _, values, digits in columns)]
        for band in range(bands)
    ]
    return [
        Group(
            [
                Heading("Bands"),
                Note(_NOTE),
                Group(_band_charts(report, bands), "multiples pairs"),
                Fold("Bands as a table", [Table(header, rows, "Quality of every band")]),
            ]
        )
    ]


def _band_charts(report: Report, bands: int) -> list[Block]:
    drawn: list[Block] = []
    for title, against, networks in _BAND_CHARTS:
        series = [
            Series("before distillation" if name == "initialisation" else name, points, colour)
            for name, colour in networks
            if (points := _points(report.bands(name, against, "psnr")))
        ]
        if series:
            y = axis_of(title, [value for each in series for _, value in each.points], least=1.0)
            x = axis_of("band", [1, max(bands, 2)], margin=0.02)
            chart = Chart(f"{title}, of every band", series, x, y, room="half")
            drawn.append(Group([Legend.of(series), chart]))
    return drawn


def _points(values: tuple[Figure, ...]) -> list[tuple[float, float]]:
    return [(band, number) for band, value in enumerate(values, 1) if (number := finite(value)) is not None]
