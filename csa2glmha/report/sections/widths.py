"""What became of the rest of the network: widths of feed-forward networks, and refitted projections."""

from __future__ import annotations

from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.metrics.outputs import SCALES
from csa2glmha.report.blocks import Block, Fold, Note, Table
from csa2glmha.report.part import Count
from csa2glmha.report.schema import Report
from csa2glmha.report.sections.numbers import percent_change, short
from csa2glmha.report.sections.scales import shown


def saved_sentence(report: Report) -> str:
    """What the attention has saved of the multiply-accumulates, and what the feed-forward networks."""
    before, after = report.complexity.before.macs, report.complexity.after.macs
    attention = sum(layer.macs_before - layer.macs_after for layer in report.layers)
    attention += sum(layer.macs_before for layer in report.skipped or ())
    rest = sum(layer.macs_before - layer.macs_after for layer in report.feed_forwards or ())
    parts = [
        f"{what} {_macs(saved)} ({100 * saved / (before or 1):.1f} %)"
        for what, saved in (("attention", attention), ("feed-forward networks", rest))
    ]
    saved = _macs(before - after)
    return f"Of the teacher's {_macs(before)} MACs the student saves {saved}: {', '.join(parts)}."


def width_blocks(report: Report) -> list[Block]:
    """Hidden channels of every feed-forward network; nothing where all are as wide as the teacher's."""
    layers = report.feed_forwards
    if layers is None:
        return []
    rows = [
        (
            layer.name,
            str(layer.hidden_before),
            str(layer.hidden_after),
            _macs(layer.macs_before),
            _macs(layer.macs_after),
            percent_change(layer.macs_before, layer.macs_after),
            format_params(round(layer.params_before)),
            format_params(round(layer.params_after)),
            "exact" if layer.error == 0 else short(layer.error),
        )
        for layer in layers
    ]
    header = (
        "layer",
        "channels",
        "kept",
        "MACs before",
        "after",
        "change",
        "parameters before",
        "after",
        "error",
    )
    error = (
        "The error is the share of the output's energy that is lost on the calibration data, not refitted."
    )
    return [
        Note(saved_sentence(report)),
        Table(header, rows, "Widths of feed-forward networks"),
        Note(error),
    ]


def refit_blocks(report: Report) -> list[Block]:
    """What the refit of output projections changed."""
    found = report.refit
    if found is None:
        return []
    kept = "The student goes on from it." if found.kept else "The student was better without it."
    scale = SCALES[found.metric]
    sentence = (
        f"Output projections of {len(found.layers)} layers were refitted to the teacher's sums, in closed "
        f"form, before any distillation: {scale.label} on {scale.what} {shown(scale, found.before)} → "
        f"{shown(scale, found.after)}{scale.unit}. {kept}"
    )
    rows = [(layer.name, short(layer.before), short(layer.after)) for layer in found.layers]
    table = Table(("layer", "before", "after"), rows, "Difference of every layer's sum to the teacher's")
    note = "Root mean square of the difference, as a share of what the layer is to add to the stream."
    return [Note(sentence), Fold("Refitted layers as a table", [table, Note(note)])]


def _macs(count: Count) -> str:
    return format_macs(round(count))
