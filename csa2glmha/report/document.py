"""Rendering the report of a conversion: JSON, Markdown, and the table printed at the end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from csa2glmha.core.files import atomic_path
from csa2glmha.core.lines import markdown_text
from csa2glmha.core.strict_json import dumps
from csa2glmha.core.text import one_line, writable
from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.report.schema import Report
from csa2glmha.report.stored import JSON_FILE, write_record

Row = tuple[str, str, str, str]

REPORT_FILES = (JSON_FILE, "report.md")
PICTURE_FILE, SPECTRA_FILE = "comparison.png", "spectra.png"

#: How reports name the stages of distillation.
STAGE_TITLES = {"start": "start", "layers": "layer by layer", "end": "end to end"}

#: Metrics in the order of the headline: name, label, unit, digits to the teacher and to the truth.
METRICS = (
    ("psnr", "PSNR", " dB", 2, 3),
    ("ssim", "SSIM", "", 4, 4),
    ("psnr_bands", "PSNR, mean of bands", " dB", 2, 3),
    ("sam", "spectral angle", " deg", 3, 3),
    ("mrae", "MRAE", "", 4, 4),
    ("rmse", "RMSE", "", 5, 5),
)


#: How reports name what PSNR and SSIM are of.
CHANNELS = {"rgb": "RGB", "y": "Y of YCbCr", "gray": "gray"}


def channel_of(report: dict[str, Any]) -> str | None:
    """What PSNR and SSIM of a report are of, a key of :data:`CHANNELS`; None where it does not say."""
    return report.get("data", {}).get("channel")


def metrics_of(channel: str | None) -> tuple[tuple[str, str, str, int, int], ...]:
    """:data:`METRICS`, PSNR and SSIM labelled by what they are of; spectra and older reports do not say."""
    if channel not in CHANNELS:
        return METRICS
    return tuple(
        (name, f"{label} ({CHANNELS[channel]})" if name in ("psnr", "ssim") else label, unit, digits, more)
        for name, label, unit, digits, more in METRICS
    )


def headline_rows(report: dict[str, Any]) -> list[Row]:
    """The table: what, before, after, ratio."""
    before, after = report["complexity"]["before"], report["complexity"]["after"]
    rows: list[Row] = [
        _ratio_row("parameters", before["params"], after["params"], format_params),
        _ratio_row("MACs", before["macs"], after["macs"], format_macs),
        _ratio_row("FLOPs", before["flops"], after["flops"], format_macs),
    ]
    if after.get("constants"):
        rows.insert(1, ("constants of the mask", "", format_params(after["constants"]), ""))
    latency = report.get("latency_ms")
    if latency:
        teacher, student = (f"{latency[name]['median']:.0f} ms" for name in ("teacher", "student"))
        rows.append(("ONNX latency", teacher, student, f"{time_share(latency):.3f}"))
    quality = report.get("quality", {})
    student_quality = quality.get("student", {})
    metrics = metrics_of(channel_of(report))
    for metric, label, unit, digits, _ in metrics:
        start = quality.get("initialisation", {}).get("teacher", {}).get(metric)
        value = student_quality.get("teacher", {}).get(metric)
        if value is not None:
            note = "" if start is None else f"{_number(start, digits)} before distillation"
            rows.append((f"{label} to teacher", "", _number(value, digits) + unit, note))
    for metric, label, unit, _, digits in metrics:
        teacher_value = quality.get("teacher", {}).get("truth", {}).get(metric)
        value = student_quality.get("truth", {}).get(metric)
        if isinstance(teacher_value, float) and isinstance(value, float):
            rows.append(
                (
                    f"{label} to truth",
                    _number(teacher_value, digits) + unit,
                    _number(value, digits) + unit,
                    f"{value - teacher_value:+.{digits}f}{unit}",
                )
            )
    return rows


def time_share(latency: dict[str, Any]) -> float:
    """The student's time over the teacher's, from a report's ``latency_ms``.

    It is the median over rounds of the ratio within a round, which a machine that speeds up or slows down
    between them leaves alone. Reports of earlier versions have the times' medians only.
    """
    teacher, student = latency["teacher"], latency["student"]
    return float(student.get("ratio", student["median"] / teacher["median"]))


def _ratio_row(name: str, before: float, after: float, show: Any) -> Row:
    return (name, show(before), show(after), f"{after / before:.3f}" if before else "")


def _number(value: float | str | None, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else str(value)


def render_table(rows: Iterable[Iterable[str]], header: Iterable[str]) -> str:
    """A plain-text table, the first column left-aligned."""
    table = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for index, row in enumerate(table):
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
        if index == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def headline(report: dict[str, Any]) -> str:
    """What `convert` prints at the end."""
    height, width = report["input_size"]
    title = f"{report['teacher']['file']} at {height} x {width}"
    return render_table(headline_rows(report), (title, "before", "after", "ratio"))


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    teacher, options = report["teacher"], report["options"]
    height, width = report["input_size"]
    lines = [
        f"# {markdown_text(teacher['file'])}: channel attention to GLMHA",
        "",
        f"{teacher['architecture']}, input {height} x {width}, rank {rank_text(options)}, "
        f"{options['attention']} attention. Made by {report['tool']} on {report['device']}.",
        "",
        *markdown_table(headline_rows(report), ("", "before", "after", "ratio")),
        "",
        *_pictures(report),
        "",
        "MACs count one multiply-add of convolutions and matrix products as one; "
        "FLOPs are twice that plus element-wise arithmetic. "
        "PSNR and SSIM are means over images, values clipped to [0, 1].",
        *_spectral_note(report),
    ]
    data = report.get("data")
    if data:
        truth = (
            "no ground truth"
            if "truth" not in report.get("quality", {}).get("teacher", {})
            else "truth known"
        )
        lines += [
            "",
            "## Data",
            "",
            f"- source: {markdown_text(data['source'])}",
            f"- degradation: {data['degradation'] or 'none, the images are inputs as they are'}; {truth}",
            f"- {data['training_images']} images for calibration and distillation, "
            f"{data['held_out_images']} held out",
            f"- judged on {data['judged_images']} images: {data['judged_on']}",
            *(f"- note: {markdown_text(note)}" for note in data["notes"]),
        ]
    lines += ["", "## Distillation", "", *_distillation(report)]
    lines += _bands(report)
    lines += ["", "## Layers", "", *_routes(report), "", *_layer_table(report)]
    onnx = report.get("onnx")
    if onnx:
        lines += [
            "",
            "## ONNX",
            "",
            f"{onnx['file']}: {onnx['bytes'] / 1e6:.1f} MB, opset {onnx['opset']}, "
            f"{'simplified' if onnx['simplified'] else 'not simplified'}. Largest difference to PyTorch:",
            "",
            *markdown_table(
                [
                    (" x ".join(map(str, size["shape"])), f"{size['max_abs']:.1e}", f"{size['relative']:.1e}")
                    for size in onnx["parity"]
                ],
                ("input", "absolute", "relative to range"),
            ),
            *(f"- {markdown_text(note)}" for note in onnx["notes"]),
        ]
    latency = report.get("latency_ms")
    if latency:
        lines += [
            "",
            "## Latency",
            "",
            "ONNX Runtime on the CPU, teacher and student run in turn; the teacher is its plain export.",
            "",
            *markdown_table(
                [
                    (name, f"{v['median']:.0f}", f"{v['low']:.0f} to {v['high']:.0f}", str(v["runs"]))
                    for name, v in latency.items()
                ],
                ("", "median ms", "quartiles", "runs"),
            ),
        ]
    if "latency_missing" in report:
        lines += ["", "## Latency", "", f"Not measured: {markdown_text(report['latency_missing'])}"]
    lines += [
        "",
        "## How this was made",
        "",
        f"- teacher SHA-256: `{teacher['sha256']}`",
        *([f"- teacher from: {markdown_text(teacher['source'])}"] if "source" in teacher else []),
        *(f"- teacher's file: {markdown_text(note)}" for note in teacher.get("notes", [])),
        f"- seed {report['seed']}, {report['threads']} threads, "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        "- seconds: " + ", ".join(f"{stage} {value}" for stage, value in report["seconds"].items()),
        f"- hyper-parameters: `{dumps(teacher['hyperparameters'])}`",
        "",
    ]
    return "\n".join(lines)


def _spectral_note(report: dict[str, Any]) -> list[str]:
    if not report.get("data", {}).get("spectral"):
        return []
    return [
        "PSNR is that of a whole cube; the mean of the bands' PSNR is what papers on spectral imaging give. "
        "The spectral angle (SAM) is in degrees; MRAE leaves out values that are zero in the reference."
    ]


def _bands(report: dict[str, Any]) -> list[str]:
    """PSNR and SSIM of every band, where there are bands."""
    quality = report.get("quality", {})
    teacher, student = quality.get("teacher", {}), quality.get("student", {})
    columns = [
        ("PSNR to teacher, dB", student.get("teacher_bands", {}).get("psnr"), 2),
        ("SSIM to teacher", student.get("teacher_bands", {}).get("ssim"), 4),
        ("teacher's PSNR to truth, dB", teacher.get("truth_bands", {}).get("psnr"), 2),
        ("student's", student.get("truth_bands", {}).get("psnr"), 2),
        ("teacher's SSIM to truth", teacher.get("truth_bands", {}).get("ssim"), 4),
        ("student's", student.get("truth_bands", {}).get("ssim"), 4),
    ]
    known = [(name, values, digits) for name, values, digits in columns if values]
    if not known:
        return []
    rows = [
        (str(band + 1), *(_number(values[band], digits) for _, values, digits in known))
        for band in range(len(known[0][1]))
    ]
    return ["", "## Bands", "", *markdown_table(rows, ("band", *(name for name, _, _ in known)))]


def _routes(report: dict[str, Any]) -> list[str]:
    """How the layers compute; in one line for all that do it alike."""
    groups: dict[str, list[str]] = {}
    for layer in report["layers"]:
        groups.setdefault(layer["route"], []).append(layer["name"])
    if len(groups) == 1:
        return [f"All layers: {next(iter(groups))}."]
    return [f"- {route}: {', '.join(f'`{name}`' for name in names)}" for route, names in groups.items()]


def rank_text(options: dict[str, Any]) -> str:
    """The ranks that were asked for, e.g. "8 (q 16)"."""
    parts = ("q", "k", "v", "pos")
    extra = [f"{part} {options[f'rank_{part}']}" for part in parts if options.get(f"rank_{part}") is not None]
    return str(options["rank"]) + (f" ({', '.join(extra)})" if extra else "")


def _distillation(report: dict[str, Any]) -> list[str]:
    result = report.get("distillation")
    if result is None:
        return ["None: the student is the initialisation."]
    return [
        f"{result['steps']} steps in {result['seconds'] / 60:.1f} minutes; "
        f"PSNR to the teacher on held-out crops {result['before']:.2f} -> {result['after']:.2f} dB "
        f"(weights of step {result['best_step']} kept)." + _troubles(result),
        "",
        *markdown_table(
            [
                (
                    STAGE_TITLES[stage["stage"]],
                    str(stage["steps"]),
                    f"{stage['seconds'] / 60:.1f}",
                    f"{stage['before']:.2f} -> {stage['after']:.2f}",
                    f"{stage['after'] - stage['before']:+.2f}",
                )
                for stage in result["stages"]
            ],
            ("stage", "steps", "minutes", "PSNR to teacher, dB", "gained, dB"),
        ),
        "",
        *markdown_table(
            [
                (
                    STAGE_TITLES[point["stage"]],
                    str(point["step"]),
                    f"{point['loss']:.2e}" if "loss" in point else "",
                    f"{point['psnr']:.2f}",
                    f"{point['minutes']:.1f}",
                )
                for point in result["curve"]
            ],
            ("stage", "step", "loss", "PSNR to teacher, dB", "minutes"),
        ),
        "",
        "The losses of the two stages are in units of their own.",
    ]


def _troubles(result: dict[str, Any]) -> str:
    """What did not go as planned, as further sentences."""
    skipped = (
        f" {result['skipped']} steps without a finite loss or gradient skipped." if result["skipped"] else ""
    )
    return skipped + (f" Training {result['stopped']}." if result["stopped"] else "")


def _layer_table(report: dict[str, Any]) -> list[str]:
    rows = []
    for layer in report["layers"]:
        c = layer["head_channels"]
        ranks = "/".join(
            "full" if layer[f"rank_{part}"] == c else str(layer[f"rank_{part}"]) for part in "qkv"
        )
        rows.append(
            (
                layer["name"],
                f"{layer['heads']} x {c}",
                ranks,
                f"{format_macs(layer['macs_before'])} -> {format_macs(layer['macs_after'])}",
                f"{format_params(layer['params_before'])} -> {format_params(layer['params_after'])}",
                _worst(layer["key_error"]),
                _worst(layer["value_error"]),
            )
        )
    header = ("layer", "heads x c", "rank q/k/v", "MACs", "parameters", "key error", "value error")
    return [
        *markdown_table(rows, header),
        "",
        "Errors are relative, at initialisation, in the metric of the calibration data; worst head.",
    ]


def _worst(errors: list[float]) -> str:
    return f"{max(errors):.3f}" if errors else "exact"


def markdown_table(rows: Iterable[Iterable[str]], header: Iterable[str]) -> list[str]:
    """A table in Markdown, one line each; the text of the cells is shown as it is."""
    header = list(map(markdown_text, header))
    return [
        "| " + " | ".join(header) + " |",
        "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|",
        *("| " + " | ".join(map(markdown_text, row)) + " |" for row in rows),
    ]


def _pictures(report: dict[str, Any]) -> list[str]:
    if not report.get("data", {}).get("spectral"):
        return [f"![input, teacher, student, difference]({PICTURE_FILE})"]
    return [
        f"![a few bands of teacher, student, difference]({PICTURE_FILE})",
        "",
        f"![spectra of teacher and student at three pixels]({SPECTRA_FILE})",
    ]


def write_report(output: Path, report: Report) -> None:
    """Write report.json and report.md into a folder.

    Raises:
        OutputError: a file cannot be written.
    """
    write_record(output, report)
    with atomic_path(output / "report.md") as temporary:
        temporary.write_text(writable(markdown(report.to_json())), encoding="utf-8")
