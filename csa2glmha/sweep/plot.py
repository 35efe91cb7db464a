"""Quality against cost, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from csa2glmha.report.schema_search import ParetoPoint

STYLES = {"uniform": ("o-", "#1b4965", "one rank"), "auto": ("D--", "#e4572e", "searched ranks")}


def plot_pareto(path: Path, points: Sequence[ParetoPoint]) -> None:
    """Write a PNG or SVG (by the suffix) of PSNR to the teacher against MACs and, where measured, time.

    Args:
        path: of the file.
        points: as sweep.json has them.
    """
    timed = any(point.time_ratio is not None for point in points if point.kind != "teacher")
    costs = ["MACs, share of the teacher's"]
    if timed:
        costs.append("time in ONNX Runtime, share of the teacher's")
    figure = Figure(figsize=(5.2 * len(costs), 4), dpi=110, layout="constrained")
    plots = figure.subplots(1, len(costs), squeeze=False)[0]
    for index, (plot, label) in enumerate(zip(plots, costs, strict=True)):
        for kind, (line, colour, title) in STYLES.items():
            known = sorted(
                (cost, point.psnr_to_teacher, point.label)
                for point in points
                for cost in [point.time_ratio if index else point.macs_ratio]
                if point.kind == kind
                and cost is not None
                and point.psnr_to_teacher is not None
                # A lossless student is at infinity, as far as rounding goes.
                and point.psnr_to_teacher < 100
            )
            if known:
                plot.plot(
                    [x for x, _, _ in known],
                    [y for _, y, _ in known],
                    line,
                    color=colour,
                    label=title,
                    markersize=5,
                )
            for x, y, name in known:
                # Curves rise to the right, so above and to the left of a point there is room.
                plot.annotate(
                    name, (x, y), (-6, 4), textcoords="offset points", fontsize=8, color=colour, ha="right"
                )
        plot.set_xlabel(label, fontsize=9)
        plot.set_ylabel("PSNR to the teacher, dB", fontsize=9)
        plot.tick_params(labelsize=8)
        plot.grid(alpha=0.25)
        plot.margins(x=0.2, y=0.12)  # room for the names beside the first points
    if plots[0].get_legend_handles_labels()[0]:
        plots[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, format=path.suffix.lstrip("."))
