"""Agreement with the teacher as pages have it: words, figures, axes."""

from __future__ import annotations

from collections.abc import Iterable

from csa2glmha.metrics.outputs import Scale
from csa2glmha.report.part import Figure
from csa2glmha.report.sections.axes import Axis, axis_of
from csa2glmha.report.sections.numbers import TIMES, UNKNOWN, finite, fixed, known, short, signed

#: Outputs that agree to this many decibels, or whose divergence is less than that, differ by rounding only.
EXACT_DB, EXACT_KL = 100.0, 1e-10


def shown(scale: Scale, figure: Figure) -> str:
    """A figure without its unit."""
    return fixed(figure, 2) if scale.unit else short(figure)


def with_unit(scale: Scale, words: str) -> str:
    """The words, and behind them the unit, if there is one."""
    return f"{words},{scale.unit}" if scale.unit else words


def column(scale: Scale) -> str:
    """Heads a column of figures."""
    return with_unit(scale, scale.label.replace("the ", ""))


def gained(scale: Scale, before: Figure, after: Figure) -> str:
    """By how many decibels, or to what share of what it was."""
    before, after = finite(before), finite(after)
    if before is None or after is None:
        return ""
    if scale.unit:
        return signed(after - before, 2)
    return f"{TIMES} {after / before:.3g}" if before else UNKNOWN


def is_exact(scale: Scale, figure: float) -> bool:
    """Whether it is that of outputs that differ by rounding only, which would squeeze others on an axis."""
    return figure >= EXACT_DB if scale.unit else figure <= EXACT_KL


def scale_axis(scale: Scale, words: str, figures: Iterable[object], margin: float, least: float) -> Axis:
    """An axis of figures: of decibels an even one, of divergences a logarithmic one.

    Args:
        scale: of the figures.
        words: what they are, without the unit.
        figures: to hold, where they are finite.
        margin: as :func:`axis_of` has it.
        least: decibels that it spans at least.
    """
    label, values = with_unit(scale, words), known(figures)
    if scale.unit:
        return axis_of(label, values, margin=margin, least=least)
    return axis_of(label, values, logarithmic=True)
