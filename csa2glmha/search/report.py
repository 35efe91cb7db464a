"""Sensitivities as JSON values and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from csa2glmha.report.document import render_table
from csa2glmha.search.choices import LOGITS, VALUES, Choice
from csa2glmha.search.costs import Key
from csa2glmha.search.search import decibels_of
from csa2glmha.search.sensitivity import Measured, agreement_of_prediction

#: Ranks the table has columns for, of those that were measured.
COLUMNS = ((LOGITS, (16, 8, 4, 0)), (VALUES, (16, 8, 4)))


def sensitivity_report(
    choices: Mapping[Key, Sequence[Choice]], measured: Mapping[Key, Sequence[Measured]], crops: int
) -> dict[str, Any]:
    """What each layer's ranks cost in agreement with the teacher, as JSON values."""
    return {
        "crops": crops,
        "choices": [
            {
                "layer": name,
                "side": side,
                "ranks": choice.label,
                "rank_q": choice.ranks.q,
                "rank_k": choice.ranks.k,
                "rank_v": choice.ranks.v,
                "error": value.error,
                "psnr_to_teacher": decibels_of(value.error),
                "predicted": value.predicted,
            }
            for (name, side), each in choices.items()
            for choice, value in zip(each, measured[name, side], strict=True)
            if not choice.full
        ],
        "agreement": agreement_of_prediction(measured),
    }


def describe_sensitivity(found: dict[str, Any]) -> str:
    """The table for people: PSNR to the teacher, where one side of one layer has a rank."""
    names = list(dict.fromkeys(each["layer"] for each in found["choices"]))
    known: dict[tuple[str, str, int], float] = {
        (each["layer"], each["side"], rank): each["psnr_to_teacher"]
        for each in found["choices"]
        for rank in [each["rank_v"] if each["side"] == VALUES else each["rank_k"]]
        if each["rank_q"] is None and rank is not None
    }
    columns = [
        (side, rank)
        for side, ranks in COLUMNS
        for rank in ranks
        if any((name, side, rank) in known for name in names)
    ]
    rows = [
        (
            name,
            *(_shown(known.get((name, side, rank))) for side, rank in columns),
        )
        for name in names
    ]
    header = ("layer", *(f"{'k' if side == LOGITS else 'v'} {rank}" for side, rank in columns))
    lines = [
        "PSNR to the teacher in dB where one layer alone has keys (k) or values (v) of a rank, "
        f"{found['crops']} held-out crops",
        "",
        render_table(rows, header),
        "",
    ]
    for side, figures in found["agreement"].items():
        within, overall = figures["within_layers"], figures["overall"]
        lines.append(
            f"closed-form errors of {side}: rank correlation with the measured ones {within:.2f} within a "
            f"layer, {overall:.2f} over all; they differ by a factor of {figures['typical_factor']:.2f}, "
            "typically, about a constant of each layer"
        )
    return "\n".join(lines)


def _shown(decibels: float | None) -> str:
    return "" if decibels is None else f"{decibels:.1f}"
