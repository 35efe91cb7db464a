"""What became of every attention layer: its cost before and after, and its ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from csa2glmha.core.text import listed
from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.report.blocks import Bar, Block, Fold, LayerBars, Legend, Note, RankColumns, Table
from csa2glmha.report.part import Count, Figure
from csa2glmha.report.schema import Layer, Report, SkippedLayer
from csa2glmha.report.sections.axes import Axis, axis_of
from csa2glmha.report.sections.numbers import TIMES, known, percent_change, short

_PARTS = (
    ("rank_q", "queries", "var(--rank-q)"),
    ("rank_k", "keys", "var(--rank-k)"),
    ("rank_v", "values", "var(--rank-v)"),
)


def layer_blocks(report: Report) -> list[Block]:
    """MACs and parameters of every layer, before and after."""
    layers = report.layers
    before = report.complexity.before
    all_layers: list[Layer | SkippedLayer] = [*layers, *(report.skipped or ())]
    sentence = (
        f"Attention takes {_macs(sum(each.macs_before for each in all_layers))} of the teacher's "
        f"{_macs(before.macs)} MACs and {_params(sum(each.params_before for each in all_layers))} of its "
        f"{_params(before.params)} parameters; the student's takes "
        f"{_macs(sum(each.macs_after for each in layers))} and "
        f"{_params(sum(each.params_after for each in layers))}."
    )
    macs = max((max(each.macs_before, each.macs_after) for each in layers), default=0)
    params = max((max(each.params_before, each.params_after) for each in layers), default=0)
    rows = [
        (
            each.name,
            [
                _bar("MACs", each.macs_before, each.macs_after, macs, _macs),
                _bar("parameters", each.params_before, each.params_after, params, _params),
            ],
        )
        for each in layers
    ]
    return [
        Note(sentence),
        Legend([("before", "var(--before)", "box"), ("after", "var(--student)", "box")]),
        LayerBars(("layer", "MACs", "parameters"), rows),
        Fold("Layers as a table", _layer_table(layers)),
    ]


def _macs(count: Count) -> str:
    return format_macs(round(count))


def _params(count: Count) -> str:
    return format_params(round(count))


def _bar(what: str, before: Count, after: Count, largest: Count, show: Callable[[Count], str]) -> Bar:
    share = 100 / (largest or 1)
    text = f"{show(before)} → {show(after)} "
    return Bar(what, before * share, after * share, text, percent_change(before, after))


def rank_blocks(report: Report) -> list[Block]:
    """Ranks of queries, keys and values of every layer before the channels that its heads have."""
    layers = report.layers
    names = [layer.name for layer in report.skipped or ()]
    skipped: list[Block] = []
    if names:
        skipped.append(Note(f"Attention that the student goes without: {listed(names, 8)}."))
    if not layers:
        return skipped
    y = axis_of("rank per head", [layer.head_channels for layer in layers], zero=True, margin=0.04)
    x = Axis("layer, from input to output", 0.5, len(layers) + 0.5, ticks=range(1, len(layers) + 1))
    full = ("channels per head: full rank, where columns are pale", "var(--track)", "box")
    return [
        *skipped,
        Legend([full, *((name, colour, "box") for _, name, colour in _PARTS)]),
        RankColumns("Ranks of queries, keys and values in every layer", layers, _PARTS, x, y),
        Fold("Ranks as a table", [_rank_table(layers)]),
    ]


def _rank_table(layers: Sequence[Layer]) -> Table:
    rows = [
        (
            layer.name,
            f"{layer.heads} {TIMES} {layer.head_channels}",
            *(_rank(rank, layer) for rank in (layer.rank_q, layer.rank_k, layer.rank_v)),
            "" if layer.rank_pos is None else str(layer.rank_pos),
        )
        for layer in layers
    ]
    header = ["layer", f"heads {TIMES} channels", *(name for _, name, _ in _PARTS), "branch"]
    if not any(row[-1] for row in rows):
        return Table(header[:-1], [row[:-1] for row in rows], "Ranks of every layer")
    return Table(header, rows, "Ranks of every layer")


def _rank(rank: int, layer: Layer) -> str:
    return "full" if rank == layer.head_channels else str(rank)


def _layer_table(layers: Sequence[Layer]) -> list[Block]:
    rows = [
        (
            layer.name,
            layer.route,
            _macs(layer.macs_before),
            _macs(layer.macs_after),
            percent_change(layer.macs_before, layer.macs_after),
            _params(layer.params_before),
            _params(layer.params_after),
            percent_change(layer.params_before, layer.params_after),
            _worst(layer.key_error),
            _worst(layer.value_error),
        )
        for layer in layers
    ]
    header = (
        *("layer", "how it computes", "MACs before", "after", "change"),
        *("parameters before", "after", "change", "key error", "value error"),
    )
    note = "Errors are relative, at initialisation, in the metric of the calibration data; worst head."
    return [Table(header, rows, "Cost and errors of every layer", text_columns=2), Note(note)]


def _worst(errors: Sequence[Figure]) -> str:
    return short(max(known(errors), default=float("nan"))) if errors else "exact"
