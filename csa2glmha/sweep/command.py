"""A sweep: every point converted, then all of them timed side by side."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csa2glmha.distill.job import STATE_FOLDER
from csa2glmha.errors import OutputError
from csa2glmha.export.onnx import export_onnx
from csa2glmha.export.runtime import compare_latency, ratio
from csa2glmha.files import atomic_path, prepare_output_dir, sha256_of
from csa2glmha.pipeline import ONNX_FILE, run_conversion
from csa2glmha.progress import manual_progress, say
from csa2glmha.report.complexity import format_macs, format_params
from csa2glmha.report.document import REPORT_FILES, render_table
from csa2glmha.storage import STUDENT_FILE, load_model
from csa2glmha.sweep.pages import add_pareto
from csa2glmha.sweep.plot import plot_pareto
from csa2glmha.sweep.points import Point

SWEEP_FILES = ("sweep.json", "pareto.png", "pareto.svg")
#: Options that change nothing about a point's student.
_FREE = {"output", "overwrite", "resume", "latency", "device", "workers", "state_minutes", "tensorboard"}
ROUNDS, WARM_UP = 10, 2


def run_sweep(
    checkpoint: Path, points: Sequence[Point], output: Path, *, overwrite: bool, latency: bool
) -> dict[str, Any]:
    """Convert to every point that is not there yet, and write what came of all.

    Points are kept in folders of their own in ``output``; one that is finished, with the same options, is not
    made again, and one that was interrupted goes on where it was.

    Returns:
        What sweep.json holds.

    Raises:
        Csa2GlmhaError: a conversion fails, or results of other options are in the way.
    """
    prepare_output_dir(output, (), overwrite)
    teacher_sha256 = sha256_of(checkpoint) if checkpoint.is_file() else ""
    finished = {
        point.label: _finished(output / point.folder, point, teacher_sha256, overwrite) for point in points
    }
    reports = {}
    for number, point in enumerate(points, start=1):
        folder = output / point.folder
        report = finished[point.label]
        if report is not None:
            say(f"rank {point.label} ({number} of {len(points)}): done already")
        else:
            say(f"rank {point.label} ({number} of {len(points)})")
            # All points are timed together in the end, where they can be compared.
            changes = {"output": folder, "latency": False, "overwrite": overwrite}
            changes["resume"] = (folder / STATE_FOLDER).is_dir() and not overwrite
            report = run_conversion(checkpoint, point.options.model_copy(update=changes)).report
        reports[point.label] = report
    times = _times(checkpoint, points, output, reports) if latency else {}
    found = {
        "checkpoint": checkpoint.name,
        "sha256": teacher_sha256,
        "input_size": next(iter(reports.values()))["input_size"],
        "points": _pareto(points, reports, times),
    }
    with atomic_path(output / SWEEP_FILES[0]) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name in SWEEP_FILES[1:]:
        with atomic_path(output / name) as temporary:
            plot_pareto(temporary, found["points"])
    add_pareto(checkpoint, points, output, found["points"])
    return found


def _finished(folder: Path, point: Point, teacher_sha256: str, overwrite: bool) -> dict[str, Any] | None:
    """The report of a point that need not be made again.

    Raises:
        OutputError: there is one that was made otherwise.
    """
    path = folder / REPORT_FILES[0]
    if overwrite or not path.exists() or (folder / STATE_FOLDER).is_dir():
        return None
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made, sha256 = report["options"], report["teacher"]["sha256"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OutputError(
            f"{path}: is damaged; delete {folder}, pass --overwrite, or choose another -o"
        ) from error
    wanted = json.loads(point.options.model_dump_json())
    other = [name for name in wanted if name not in _FREE and made.get(name) != wanted[name]]
    if sha256 != teacher_sha256:
        other.append("checkpoint")
    if other:
        names = ", ".join(name.replace("_", "-") for name in other)
        raise OutputError(
            f"{folder}: was made with other options ({names}); pass --overwrite to make it again, or choose "
            "another folder with -o"
        )
    complete = all((folder / name).exists() for name in (STUDENT_FILE, ONNX_FILE))
    return report if complete else None


def _times(
    checkpoint: Path, points: Sequence[Point], output: Path, reports: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Time of every point over that of the teacher's plain export, all models run in turn."""
    teacher = load_model(checkpoint).model
    shapes = teacher.input_shapes(*next(iter(reports.values()))["input_size"])
    with tempfile.TemporaryDirectory() as folder:
        say("exporting the teacher for comparison")
        files = {"teacher": Path(folder) / "teacher.onnx"}
        export_onnx(teacher, files["teacher"], plain=True)
        files |= {point.label: output / point.folder / ONNX_FILE for point in points}
        with manual_progress(what="timing", unit="round", total=ROUNDS + WARM_UP) as bar:

            def advance() -> None:
                bar.update()

            measured = compare_latency(files, *shapes, runs=ROUNDS, warmup=WARM_UP, on_round=advance)
    return {name: 1 / ratio(measured["teacher"], each) for name, each in measured.items()}


def _pareto(
    points: Sequence[Point], reports: dict[str, dict[str, Any]], times: dict[str, float]
) -> list[dict[str, Any]]:
    before = next(iter(reports.values()))["complexity"]["before"]
    found: list[dict[str, Any]] = [
        {
            "label": "teacher",
            "kind": "teacher",
            "macs": before["macs"],
            "macs_ratio": 1.0,
            "params": before["params"],
            "time_ratio": 1.0 if times else None,
            "psnr_to_teacher": None,
            "psnr_drop": 0.0,
        }
    ]
    for point in points:
        report = reports[point.label]
        after, quality = report["complexity"]["after"], report["quality"]
        truth = quality["student"].get("truth", {}).get("psnr")
        own = quality["teacher"].get("truth", {}).get("psnr")
        known = isinstance(truth, float) and isinstance(own, float)
        to_teacher = quality["student"].get("teacher", {}).get("psnr")
        found.append(
            {
                "label": point.label,
                "kind": point.kind,
                "macs": after["macs"],
                "macs_ratio": after["macs"] / before["macs"],
                "params": after["params"],
                "time_ratio": times.get(point.label),
                "psnr_to_teacher": to_teacher if isinstance(to_teacher, float) else None,
                "psnr_drop": truth - own if known else None,
                "folder": point.folder,
            }
        )
    return found


def describe_sweep(found: dict[str, Any]) -> str:
    """The table for people."""
    height, width = found["input_size"]
    rows = [
        (
            point["label"],
            format_params(point["params"]),
            format_macs(point["macs"]),
            f"{point['macs_ratio']:.3f}",
            _shown(point["time_ratio"], ".3f"),
            _shown(point["psnr_to_teacher"], ".2f", " dB"),
            _shown(point["psnr_drop"], "+.3f", " dB") if point["kind"] != "teacher" else "",
        )
        for point in found["points"]
    ]
    header = (
        f"rank, {height} x {width}",
        "params",
        "MACs",
        "ratio",
        "time",
        "PSNR to teacher",
        "PSNR to truth",
    )
    return render_table(rows, header)


def _shown(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
