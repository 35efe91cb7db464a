"""Sensitivities and searches as parts of reports, and for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from csa2glmha.config.budget import MACS, MAX_DROP, PARAMS, Budget
from csa2glmha.config.ranks import Ranks
from csa2glmha.metrics.complexity import Complexity, format_macs, format_params
from csa2glmha.metrics.outputs import IMAGES, Outputs, Scale, figure_of
from csa2glmha.report.document import render_table
from csa2glmha.report.schema_search import (
    Agreement,
    BudgetAsked,
    LayerChoice,
    Predicted,
    PredictedPoint,
    Reached,
    Search,
    SearchChoice,
    Sensitivity,
)
from csa2glmha.search.allocate import Allocation, InfeasibleError
from csa2glmha.search.choices import LOGITS, VALUES, Choice, Key, RankChoice, WidthChoice
from csa2glmha.search.sensitivity import Measured, agreement_of_prediction
from csa2glmha.search.space import SearchSpace

#: Ranks the table has columns for, of those that were measured.
COLUMNS = ((LOGITS, (16, 8, 4, 0)), (VALUES, (16, 8, 4)))


def sensitivity_report(
    choices: Mapping[Key, Sequence[Choice]],
    measured: Mapping[Key, Sequence[Measured]],
    crops: int,
    outputs: Outputs = IMAGES,
) -> Sensitivity:
    """What each layer's ranks cost in agreement with the teacher."""
    return Sensitivity(
        metric=outputs.scale.metric,
        crops=crops,
        choices=tuple(
            LayerChoice(**_figures(choice, value, outputs))
            for choice, value in _pairs(choices, measured)
            if not choice.full
        ),
        agreement=_agreement(measured),
    )


def _agreement(measured: Mapping[Key, Sequence[Measured]]) -> dict[str, Agreement]:
    return {side: Agreement(**each) for side, each in agreement_of_prediction(measured).items()}


def _pairs(
    choices: Mapping[Key, Sequence[Choice]], measured: Mapping[Key, Sequence[Measured]]
) -> Iterator[tuple[Choice, Measured]]:
    for key, each in choices.items():
        yield from zip(each, measured[key], strict=True)


class _Figures(TypedDict):
    """The fields of :class:`LayerChoice`."""

    layer: str
    side: str
    ranks: str
    rank_q: int | None
    rank_k: int | None
    rank_v: int | None
    width: int | None
    error: float
    psnr_to_teacher: float | None
    kl_to_teacher: float | None
    predicted: float


def _figures(choice: Choice, value: Measured, outputs: Outputs) -> _Figures:
    """Decibels are None where there is no error."""
    ranks = choice.ranks if isinstance(choice, RankChoice) else Ranks()
    return _Figures(
        layer=choice.layer,
        side=choice.side,
        ranks=choice.label,
        rank_q=ranks.q,
        rank_k=ranks.k,
        rank_v=ranks.v,
        width=choice.width if isinstance(choice, WidthChoice) else None,
        error=value.error,
        **figures_of(value.error if value.error > 0 else None, outputs),
        predicted=value.predicted,
    )


def describe_sensitivity(found: Sensitivity) -> str:
    """The table for people: agreement with the teacher, where one part of one layer is made smaller."""
    scale = found.scale
    names = list(dict.fromkeys(each.layer for each in found.choices))
    known: dict[tuple[str, str, int], float | None] = {
        (each.layer, each.side, rank): each.to_teacher
        for each in found.choices
        for rank in [each.rank_v if each.side == VALUES else each.rank_k]
        if each.rank_q is None and rank is not None
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
            *(_shown(known.get((name, side, rank)), scale) for side, rank in columns),
        )
        for name in names
    ]
    header = ("layer", *(f"{'k' if side == LOGITS else 'v'} {rank}" for side, rank in columns))
    lines = [
        f"{scale.label}{' in' + scale.unit if scale.unit else ''} where one layer alone has keys (k) or "
        f"values (v) of a rank, {found.crops} {scale.what}",
        "",
        render_table(rows, header),
        "",
    ]
    for side, figures in found.agreement.items():
        within, overall = _correlation(figures.within_layers), _correlation(figures.overall)
        lines.append(
            f"closed-form errors of {side}: rank correlation with the measured ones {within} within a layer, "
            f"{overall} over all; they differ by a factor of {_correlation(figures.typical_factor)}, "
            "typically, about a constant of each layer"
        )
    return "\n".join(lines)


def _shown(figure: float | None, scale: Scale) -> str:
    if figure is None:
        return ""
    return f"{figure:.1f}" if scale.unit else scale.number(figure)


def _correlation(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"


def search_report(
    space: SearchSpace,
    budget: Budget,
    found: Allocation,
    counted: Complexity,
    reached: Mapping[str, object],
) -> Search:
    """What was asked, reached, predicted and measured.

    Args:
        space, budget: of the search.
        found: the choices; the loss is that in agreement with the teacher.
        counted: the student.
        reached: what else is known of it: fields of :class:`Reached`.
    """
    uniform = uniform_curve(space)
    return Search(
        metric=space.outputs.scale.metric,
        budget=BudgetAsked(kind=budget.kind, target=budget.target, absolute=budget.absolute),
        reached=Reached.model_validate({"macs": counted.macs, "params": counted.params, **reached}),
        predicted=Predicted(
            error=found.loss,
            **figures_of(found.loss, space.outputs),
            uniform=tuple(uniform),
            searched=tuple(searched_curve(space, uniform, PARAMS if budget.kind == PARAMS else MACS)),
        ),
        gap=None if budget.kind == MAX_DROP else found.gap,
        optimality=(
            "cheapest for errors that add up, of those that were found to keep to the drop"
            if budget.kind == MAX_DROP
            else f"within {100 * found.gap:.1f} % of the least error that these ranks allow, as errors add up"
        ),
        agreement=_agreement(space.measured),
        choices=tuple(_search_choices(space, found)),
    )


def _search_choices(space: SearchSpace, found: Allocation) -> Iterator[SearchChoice]:
    picked = {each[pick] for each, pick in zip(space.choices.values(), found.picks, strict=True)}
    saved = (each for key in space.choices for each in space.costs.saved[key])
    for (choice, value), (macs, params) in zip(_pairs(space.choices, space.measured), saved, strict=True):
        yield SearchChoice(
            **_figures(choice, value, space.outputs),
            macs_saved=macs,
            params_saved=params,
            picked=choice in picked,
        )


def uniform_curve(space: SearchSpace) -> list[PredictedPoint]:
    """What one rank for keys and values of all layers is predicted to lose, rank by rank."""
    ranks = sorted(
        {
            choice.ranks.v
            for (_, side), each in space.choices.items()
            for choice in each
            if side == VALUES and isinstance(choice, RankChoice) and choice.ranks.v is not None
        }
    )
    curve = []
    for rank in ranks:
        picks = [_at_least(each, rank, side) for (_, side), each in space.choices.items()]
        error = sum(each[pick] for each, pick in zip(space.losses(), picks, strict=True))
        curve.append(_predicted_point(space, rank, picks, error))
    return curve


def _predicted_point(space: SearchSpace, rank: int, picks: Sequence[int], error: float) -> PredictedPoint:
    saved = [space.costs.saved[key][pick] for key, pick in zip(space.choices, picks, strict=True)]
    return PredictedPoint(
        rank=rank,
        macs=space.costs.lossless[0] - sum(macs for macs, _ in saved),
        params=space.costs.lossless[1] - sum(params for _, params in saved),
        error=error,
        **figures_of(error, space.outputs),
    )


def _at_least(choices: Sequence[Choice], rank: int, side: str) -> int:
    """The choice of the least rank that is not below this one; of widths and the like the first."""
    best, least = 0, float("inf")
    for index, choice in enumerate(choices):
        if not isinstance(choice, RankChoice):
            return 0
        own = choice.ranks.v if side == VALUES else choice.ranks.k
        if choice.ranks.q is None and own is not None and rank <= own < least:
            best, least = index, own
    return best


def searched_curve(space: SearchSpace, uniform: Sequence[PredictedPoint], kind: str) -> list[PredictedPoint]:
    """The least predicted loss at what each rank of :func:`uniform_curve` costs, in MACs or parameters."""
    lossless = space.costs.lossless[0 if kind == MACS else 1]
    losses, amounts = space.losses(), space.amounts(kind)
    curve = []
    for point in uniform:
        try:
            found = space.allocate(losses, amounts, (point.macs if kind == MACS else point.params) - lossless)
        except InfeasibleError:  # by a rounding: uniform ranks are choices themselves
            continue
        curve.append(_predicted_point(space, point.rank, found.picks, found.loss))
    return curve


def describe_found(report: Search) -> str:
    """A search's result in a sentence or two."""
    reached, predicted = report.reached, report.predicted
    extra = "" if reached.drop is None else f", {reached.drop:.3f} dB below the teacher"
    if reached.time_share is not None:
        extra += f", {reached.time_share:.3f} of the teacher's time"
    macs, params = format_macs(round(reached.macs)), format_params(round(reached.params))
    found = f"sizes found: {macs}, {params}{extra}"
    if predicted.error is not None and predicted.error <= 0:
        return f"{found}; full ranks keep to the budget, nothing is approximated"
    return (
        f"{found}; predicted {report.scale.label} {report.scale.show(predicted.to_teacher or 0.0)} before "
        f"distillation; "
        f"{report.optimality}"
    )


class _ToTeacher(TypedDict):
    """An error by the names that records have for it."""

    psnr_to_teacher: float | None
    kl_to_teacher: float | None


def figures_of(error: float | None, outputs: Outputs) -> _ToTeacher:
    """An error to the teacher, None where there is none, as PSNR in dB or as KL divergence."""
    figure = None if error is None else figure_of(outputs, error)
    classes = outputs.scale.metric == "kl"
    return _ToTeacher(psnr_to_teacher=None if classes else figure, kl_to_teacher=figure if classes else None)
