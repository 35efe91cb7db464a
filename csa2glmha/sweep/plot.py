"""Quality against cost, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from csa2glmha.metrics.outputs import KL_SCALE, PSNR_SCALE
from csa2glmha.report.schema_search import ParetoPoint
from csa2glmha.report.sections.scales import is_exact, with_unit

#: Line, colour and name of each kind.
STYLES = {"uniform": ("o-", "#1b4965", "one rank"), "auto": ("D--", "#e4572e", "searched ranks")}
#: Lines and colours of one rank with narrower feed-forward networks, one after the other.
NARROWER = (("s-", "#2a9d8f"), ("^-", "#8e6c8a"), ("v-", "#bc8034"), ("P-", "#5b8c5a"))


def plot_pareto(path: Path, points: Sequence[ParetoPoint]) -> None:
    """Write a PNG or SVG (by the suffix) of agreement with the teacher against MACs and, if measured, time.

    Args:
        path: of the file.
        points: as sweep.json has them.
    """
    timed = any(point.time_ratio is not None for point in points if point.kind != "teacher")
    scale = KL_SCALE if any(point.kl_to_teacher is not None for point in points) else PSNR_SCALE
    costs = ["MACs, share of the teacher's"]
    if timed:
        costs.append("time in ONNX Runtime, share of the teacher's")
    figure = Figure(figsize=(5.2 * len(costs), 4), dpi=110, layout="constrained")
    plots = figure.subplots(1, len(costs), squeeze=False)[0]
    for index, (plot, label) in enumerate(zip(plots, costs, strict=True)):
        for (kind, share), (line, colour, title) in _series(points).items():
            known = sorted(
                (cost, agreement, point.label)
                for point in points
                for cost in [point.time_ratio if index else point.macs_ratio]
                if (point.kind, point.ffn) == (kind, share)
                and cost is not None
                and (agreement := point.to_teacher) is not None
                # A lossless student is at infinity, as far as rounding goes.
                and not is_exact(scale, agreement)
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
        plot.set_ylabel(with_unit(scale, scale.label), fontsize=9)
        if not scale.unit:
            plot.set_yscale("log")
        plot.tick_params(labelsize=8)
        plot.grid(alpha=0.25)
        plot.margins(x=0.2, y=0.12)  # room for the names beside the first points
    if plots[0].get_legend_handles_labels()[0]:
        plots[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, format=path.suffix.lstrip("."))


def _series(points: Sequence[ParetoPoint]) -> dict[tuple[str, float | None], tuple[str, str, str]]:
    """The points that a line joins, by kind and share of feed-forward channels, with how it looks."""
    found: dict[tuple[str, float | None], tuple[str, str, str]] = {}
    found |= {(kind, None): style for kind, style in STYLES.items()}
    shares = sorted({point.ffn for point in points if point.ffn is not None}, reverse=True)
    for number, share in enumerate(shares):
        line, colour = NARROWER[number % len(NARROWER)]
        found["uniform", share] = line, colour, f"one rank, --ffn {share:g}"
    return found
