"""A sweep: every point converted, then all of them timed side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csa2glmha.bench.compare import THOROUGH, compare_with_teacher
from csa2glmha.checkpoint.student import LoadedModel, load_model
from csa2glmha.commands.convert import check_data, plan_conversion, run_conversion
from csa2glmha.compression.run import Plan
from csa2glmha.compression.workspace import ONNX_FILE
from csa2glmha.core.device import resolve_device
from csa2glmha.core.errors import OutputError
from csa2glmha.core.files import atomic_path, prepare_output_dir
from csa2glmha.core.locks import exclusive_folder
from csa2glmha.core.progress import say
from csa2glmha.core.strict_json import dumps
from csa2glmha.data.identity import describe_images
from csa2glmha.data.open import open_data
from csa2glmha.distill.job import check_apart, check_training
from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.report.document import render_table
from csa2glmha.report.schema import Report
from csa2glmha.report.schema_search import ParetoPoint, Sweep
from csa2glmha.sweep.folders import finished_report, has_state
from csa2glmha.sweep.pages import add_pareto
from csa2glmha.sweep.pareto import pareto_points
from csa2glmha.sweep.plot import plot_pareto
from csa2glmha.sweep.points import Point

SWEEP_FILES = ("sweep.json", "pareto.png", "pareto.svg")


def run_sweep(
    checkpoint: Path, points: Sequence[Point], output: Path, *, overwrite: bool, latency: bool
) -> Sweep:
    """Convert to every point that is not there yet, and write what came of all.

    Points are kept in folders of their own in ``output``; one that is finished, with the same options, is not
    made again, and one that was interrupted goes on where it was.

    Returns:
        What sweep.json holds.

    Raises:
        Csa2GlmhaError: a conversion fails, or results of other options are in the way.
    """
    with exclusive_folder(output):
        return _run_sweep(checkpoint, points, output, overwrite, latency)


def _run_sweep(
    checkpoint: Path, points: Sequence[Point], output: Path, overwrite: bool, latency: bool
) -> Sweep:
    loaded = load_model(checkpoint, points[0].options.weights, points[0].options)
    plans = {point.label: plan_conversion(loaded, point.options) for point in points}
    finished = _look(loaded, points, output, overwrite)
    _check_states([(output / point.folder, plans[point.label]) for point in points], overwrite)
    check_apart(output, points[0].options)
    prepare_output_dir(output, (), overwrite)
    reports = {}
    for number, point in enumerate(points, start=1):
        folder = output / point.folder
        report = finished[point.label]
        if report is not None:
            say(f"rank {point.label} ({number} of {len(points)}): done already")
        else:
            say(f"rank {point.label} ({number} of {len(points)})")
            changes = {
                "output": folder,
                "timing": False,  # all points are timed together in the end, where they can be compared
                "overwrite": True,  # what is there is an unfinished part of this very point
                "resume": has_state(folder) and not overwrite,
            }
            options = point.options.model_copy(update=changes)
            report = run_conversion(checkpoint, options, "repeat the command").record
        reports[point.label] = report
    times, missing = _times(checkpoint, points, output, reports) if latency else ({}, None)
    found = Sweep(
        checkpoint=checkpoint.name,
        sha256=loaded.checkpoint.sha256,
        input_size=next(iter(reports.values())).input_size,
        points=tuple(pareto_points(points, reports, times)),
        latency_missing=missing,
    )
    with atomic_path(output / SWEEP_FILES[0]) as temporary:
        temporary.write_text(dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
    for name in SWEEP_FILES[1:]:
        with atomic_path(output / name) as temporary:
            plot_pareto(temporary, found.points)
    add_pareto(checkpoint, points, output, found.points)
    return found


def _look(
    loaded: LoadedModel, points: Sequence[Point], output: Path, overwrite: bool
) -> dict[str, Report | None]:
    """The reports of the points that are there; that the others can be made is checked, as far as is cheap.

    Hours may pass before the last point is begun.
    """
    options = points[0].options  # all have the same on data and training
    check_training(options, resolve_device(options.device))
    data = open_data(loaded.model, options)
    images = describe_images(data, data.examples(options.input_size, options.seed))
    found: dict[str, Report | None] = {}
    for point in points:
        folder = output / point.folder
        report = None
        if not overwrite:
            report = finished_report(folder, point, loaded.checkpoint, images)
        if report is None:
            check_data(loaded.model, data, point.options)
        found[point.label] = report
    return found


def _check_states(folders: Sequence[tuple[Path, Plan]], overwrite: bool) -> None:
    for folder, plan in folders:
        if has_state(folder) and not plan.distilled and not overwrite:
            raise OutputError(
                f"{folder}: holds the state of an interrupted distillation, and this point is not distilled; "
                "pass --overwrite to make it again, or choose another folder with -o"
            )


def _times(
    checkpoint: Path, points: Sequence[Point], output: Path, reports: dict[str, Report]
) -> tuple[dict[str, float], str | None]:
    """Time of every point over that of the teacher's plain export, all models run in turn.

    Returns:
        The times, and why there are none: the points that are done are worth a table without them.
    """
    teacher = load_model(checkpoint, points[0].options.weights, points[0].options).model
    height, width = next(iter(reports.values())).input_size
    files = {point.label: output / point.folder / ONNX_FILE for point in points}
    try:
        measured = compare_with_teacher(teacher, files, (height, width), THOROUGH, beside=output)
    except Exception as error:
        missing = str(error) or type(error).__name__
        say(f"not timed: {missing}; the table goes without times")
        return {}, missing
    return {name: ratio.median for name, ratio in measured.ratios.items()}, None


def describe_sweep(found: Sweep) -> str:
    """The table for people."""
    height, width = found.input_size
    classes = any(point.kl_to_teacher is not None for point in found.points)
    rows = [
        (
            point.label,
            format_params(round(point.params)),
            format_macs(round(point.macs)),
            f"{point.macs_ratio:.3f}",
            _shown(point.time_ratio, ".3f"),
            *_quality_cells(point, classes),
        )
        for point in found.points
    ]
    names: tuple[str, ...] = ("PSNR to teacher", "PSNR to ground truth")
    if classes:
        names = ("KL divergence to teacher", "top-1 agreement", "top-1 accuracy")
    return render_table(rows, (f"rank, {height} x {width}", "params", "MACs", "ratio", "time", *names))


def _quality_cells(point: ParetoPoint, classes: bool) -> tuple[str, ...]:
    """Of classifiers others than of networks that make images."""
    change = point.kind != "teacher"
    if classes:
        return (
            _shown(point.kl_to_teacher, ".3g"),
            _shown(point.top1_to_teacher, ".1%"),
            _shown(point.top1_change, "+.1%") if change else "",
        )
    drop = _shown(point.psnr_drop, "+.3f", " dB") if change else ""
    return _shown(point.psnr_to_teacher, ".2f", " dB"), drop


def _shown(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
