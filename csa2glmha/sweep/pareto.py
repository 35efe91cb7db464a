"""The points of a sweep as sweep.json, the plots and the reports have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from csa2glmha.report.schema import Report
from csa2glmha.report.schema_search import AgainstTeacher, Baseline, ParetoPoint
from csa2glmha.report.sections.numbers import finite
from csa2glmha.sweep.points import AUTO, FULL, Point


def pareto_points(
    points: Sequence[Point], reports: Mapping[str, Report], times: Mapping[str, float]
) -> Iterator[ParetoPoint]:
    """The teacher, then every point, each with the baselines that were made beside it.

    Args:
        points: of the sweep, in its order.
        reports: of all of them, by label.
        times: over the teacher's, by label; empty where they were not measured.
    """
    before = next(iter(reports.values())).complexity.before
    yield ParetoPoint(
        label="teacher",
        kind="teacher",
        macs=before.macs,
        macs_ratio=1.0,
        params=before.params,
        time_ratio=1.0 if times else None,
        psnr_to_teacher=None,
        psnr_drop=0.0,
    )
    for point in points:
        report = reports[point.label]
        after = report.complexity.after
        yield ParetoPoint(
            label=point.label,
            kind=point.kind,
            ffn=_share(point),
            macs=after.macs,
            macs_ratio=after.macs / before.macs,
            params=after.params,
            time_ratio=times.get(point.label),
            folder=point.folder,
            **_figures(report.against_teacher("student")),
        )
        for baseline in report.baselines or ():
            yield from _baseline(point, baseline, before.macs)


def _figures(quality: AgainstTeacher) -> dict[str, float | None]:
    """What can be drawn: a student that is its teacher's equal has none in dB."""
    return {name: finite(getattr(quality, name)) for name in AgainstTeacher.model_fields}


def _share(point: Point) -> float | None:
    """As :class:`ParetoPoint` has it."""
    if point.kind == AUTO:
        return 1.0 if point.options.ffn == FULL else None
    return None if point.options.ffn_share == 1 else point.options.ffn_share


def _baseline(point: Point, baseline: Baseline, teacher_macs: float) -> Iterator[ParetoPoint]:
    """Another method's student beside a point; none where it was out of the method's reach."""
    quality = baseline.after or baseline.before
    if quality is None:
        return
    yield ParetoPoint(
        label=f"{baseline.name} beside {point.label}",
        kind="baseline",
        method=baseline.name,
        ffn=baseline.ffn,
        macs=baseline.macs,
        macs_ratio=baseline.macs / teacher_macs,
        params=baseline.params,
        time_ratio=None,
        **_figures(quality),
    )
