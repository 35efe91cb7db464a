"""What a rank search found, completed for the report: every figure that the page shows is in report.json."""

from __future__ import annotations

import re
from typing import Any

from csa2glmha.report.quality import finite_values
from csa2glmha.search.allocate import InfeasibleError, allocate
from csa2glmha.search.budget import PARAMS
from csa2glmha.search.search import decibels_of

_LABEL = re.compile(r"(?:q (?P<rank_q>full|\d+) k (?P<rank_k>full|\d+)|v (?P<rank_v>full|\d+))")


def complete_search(search: dict[str, Any]) -> dict[str, Any]:
    """The report of a search with ranks as numbers, decibels, and the curve of searched ranks.

    Args:
        search: as :class:`csa2glmha.search.search.FoundRanks` has it.

    Returns:
        The same as strict JSON values, with ``rank_q``, ``rank_k``, ``rank_v`` and ``psnr_to_teacher`` of
        every choice, None where they are full or without error, and ``searched`` beside ``uniform``.
    """
    completed = {**search, "choices": [_described(choice) for choice in search["choices"]]}
    completed["predicted"] = {**search["predicted"], "searched": _searched_curve(search)}
    found: dict[str, Any] = finite_values(completed)
    return found


def _described(choice: dict[str, Any]) -> dict[str, Any]:
    match = _LABEL.fullmatch(choice["ranks"])
    ranks = {} if match is None else match.groupdict()
    numbers = {name: None if rank in (None, "full") else int(rank) for name, rank in ranks.items()}
    error = choice["error"]
    return {**numbers, "psnr_to_teacher": decibels_of(error) if error > 0 else None, **choice}


def _searched_curve(search: dict[str, Any]) -> list[dict[str, Any]]:
    """The least predicted error at what each uniform rank costs; see ``search.search.uniform_curve``."""
    cost = "params" if search["budget"]["kind"] == PARAMS else "macs"
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for choice in search["choices"]:
        groups.setdefault((choice["layer"], choice["side"]), []).append(choice)
    losses = [[choice["error"] for choice in each] for each in groups.values()]
    amounts = [[-float(choice[f"{cost}_saved"]) for choice in each] for each in groups.values()]
    saved = {
        name: sum(choice[f"{name}_saved"] for choice in search["choices"] if choice["picked"])
        for name in ("macs", "params")
    }
    lossless = {name: search["reached"][name] + saved[name] for name in saved}
    curve = []
    for point in search["predicted"]["uniform"]:
        try:
            found = allocate(losses, amounts, point[cost] - lossless[cost])
        except InfeasibleError:  # by a rounding: the uniform ranks are choices themselves
            continue
        picked = [each[pick] for each, pick in zip(groups.values(), found.picks, strict=True)]
        curve.append(
            {
                "rank": point["rank"],
                **{name: lossless[name] - sum(each[f"{name}_saved"] for each in picked) for name in lossless},
                "error": found.loss,
                "psnr_to_teacher": decibels_of(found.loss),
            }
        )
    return curve
