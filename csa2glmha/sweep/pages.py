"""The sweep in the report of every point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csa2glmha.checkpoint.student import STUDENT_FILE, load_model
from csa2glmha.core.progress import progress
from csa2glmha.data.identity import describe_images
from csa2glmha.data.open import open_data
from csa2glmha.metrics.comparisons import Comparison, compare_images
from csa2glmha.metrics.evaluate import restore
from csa2glmha.report.document import write_report
from csa2glmha.report.html.page import write_html
from csa2glmha.report.record import comparisons_of
from csa2glmha.report.schema_search import Pareto, ParetoPoint
from csa2glmha.report.stored import read_record
from csa2glmha.sweep.folders import check_images
from csa2glmha.sweep.points import Point


def add_pareto(
    checkpoint: Path, points: Sequence[Point], output: Path, pareto: Sequence[ParetoPoint]
) -> None:
    """Write the reports of all points again, with what the others reach.

    Args:
        checkpoint: the teacher's.
        points: done, each in its folder in ``output``.
        pareto: the points of sweep.json.

    Raises:
        OutputError: the images are others than when a point was made.
    """
    options = points[0].options
    teacher = load_model(checkpoint, options.weights, options).model
    data = open_data(teacher, options)
    examples = data.examples(options.input_size, options.seed)
    described = describe_images(data, examples)
    for point in progress(points, what="reports", unit="rank"):
        folder = output / point.folder
        report = read_record(folder)
        check_images(folder, report, described)
        changes: dict[str, object] = {"pareto": Pareto(points=tuple(pareto))}
        images: list[Comparison] = []
        if data.outputs.pictured:
            student = load_model(folder / STUDENT_FILE, network=options).model
            images = compare_images(examples, restore(teacher), restore(student), data.spectral)
            changes["comparisons"] = comparisons_of(images, report.comparisons)
        report = report.model_copy(update=changes)
        write_report(folder, report)
        write_html(folder, report, images)
