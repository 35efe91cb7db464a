"""The head of the report: what was saved, and what it cost."""

from __future__ import annotations

import math

from csa2glmha.metrics.complexity import BY_VALUES, format_macs, format_params
from csa2glmha.metrics.outputs import Scale
from csa2glmha.report.blocks import Card, Summary, Table
from csa2glmha.report.headline import headline_rows, rank_text, time_share
from csa2glmha.report.metrics import channel_of, metrics_of
from csa2glmha.report.part import Figure
from csa2glmha.report.schema import Report
from csa2glmha.report.schema_search import BudgetAsked, Search
from csa2glmha.report.sections.classes import NOTE as CLASSES_NOTE
from csa2glmha.report.sections.classes import cards_of_classes, cost_of_classes
from csa2glmha.report.sections.numbers import MINUS, TIMES, finite, fixed, percent_change, short, signed

PICTURE_FILE, SPECTRA_FILE = "comparison.png", "spectra.png"

#: Outputs that agree to this many decibels differ by rounding only.
_EXACT_DB = 100.0
_BUDGETS = {
    "macs": "multiply-accumulates",
    "params": "parameters",
    "latency": "latency",
    "max_drop": "loss of PSNR",
}
_NOTE = (
    "MACs count one multiply-add of convolutions and matrix products as one; FLOPs are twice "
    "that plus element-wise arithmetic. "
)
_OF_IMAGES = "PSNR and SSIM are means over images, clipped to [0, 1]."


def summary_of(report: Report) -> Summary:
    """Title, the conversion in one sentence, and its most important figures."""
    height, width = report.input_size
    rows = [[row[0], *(cell.replace("-", MINUS) for cell in row[1:])] for row in headline_rows(report)]
    return Summary(
        file=report.teacher.file,
        lead=lead_sentence(report),
        facts=[
            report.teacher.architecture,
            f"rank {rank_text(report.options)}",
            *([] if report.feed_forwards is None else [f"feed-forward widths {_widths(report)}"]),
            f"{report.options['attention']} attention",
            f"input {height} {TIMES} {width}",
        ],
        search=None if report.search is None else search_sentence(report.search),
        cards=_cards(report),
        figures=Table(("", "before", "after", "ratio"), rows, "Figures before and after"),
        notes=_notes(report),
        pictures=_pictures(report),
    )


def _notes(report: Report) -> list[str]:
    notes = [_NOTE + (CLASSES_NOTE if report.classifies else _OF_IMAGES)]
    return [*notes, f"{BY_VALUES[0].upper()}{BY_VALUES[1:]}."] if report.complexity.by_values else notes


def _pictures(report: Report) -> list[tuple[str, str]]:
    """Words and file of each; none where the report compares no images."""
    if report.comparisons is None:
        return []
    if report.data is None or not report.data.spectral:
        return [("input, teacher, student, difference", PICTURE_FILE)]
    return [
        ("a few bands of teacher, student, difference", PICTURE_FILE),
        ("spectra of teacher and student at three pixels", SPECTRA_FILE),
    ]


def lead_sentence(report: Report) -> str:
    """E.g. "23 % fewer multiply-accumulates and 6.7 % fewer parameters, at a cost of 0.006 dB of PSNR."."""
    before, after = report.complexity.before, report.complexity.after
    saved = [
        _change(before.macs, after.macs, "multiply-accumulates"),
        _change(before.params, after.params, "parameters"),
    ]
    return f"{' and '.join(saved)}, {_cost(report)}.".replace(", .", ".")


def _change(before: float, after: float, what: str) -> str:
    text = percent_change(before, after)
    if text.startswith(MINUS):
        return f"{text[1:]} fewer {what}"
    return f"{text[1:]} more {what}" if text.startswith("+") else f"as many {what}"


def _cost(report: Report) -> str:
    if report.classifies:
        return cost_of_classes(report)
    drop, agreement = report.psnr_drop, report.figure("student", "teacher", "psnr")
    if agreement == math.inf or (finite(agreement) or 0) > _EXACT_DB:
        return "with the same outputs but for rounding"
    if drop is not None:
        text = fixed(abs(drop), 3, " dB")
        if text == "0.000 dB":
            return "at the same PSNR"
        return f"at a cost of {text} of PSNR" if drop < 0 else f"with {text} more PSNR"
    if finite(agreement) is not None:
        return f"with outputs that agree with the teacher's to {fixed(agreement, 1, ' dB')}"
    return ""


def _widths(report: Report) -> str:
    """What was asked for."""
    return "chosen per layer" if report.options.get("ffn") is None else str(report.options["ffn"])


def search_sentence(search: Search) -> str:
    """How the sizes were chosen."""
    found = search.predicted
    predicted = [
        *([] if found.macs is None else [f"MACs {format_macs(round(found.macs))}"]),
        *([] if finite(found.psnr_drop) is None else [f"change of PSNR {fixed(found.psnr_drop, 3, ' dB')}"]),
        *(
            []
            if finite(found.to_teacher) is None
            else [f"{search.scale.label} before distillation {_precise(search.scale, found.to_teacher)}"]
        ),
    ]
    kind = _BUDGETS.get(search.budget.kind, search.budget.kind)
    text = f"Sizes were chosen layer by layer for a budget of {kind}: {_target(search.budget)}"
    text += f"; predicted: {', '.join(predicted)}" if predicted else ""
    if finite(search.gap) is not None:
        text += f"; gap to the optimum {search.gap:.3g}"
    return text + (f" ({search.optimality})." if search.optimality else ".")


def _precise(scale: Scale, figure: Figure) -> str:
    return fixed(figure, 3, scale.unit) if scale.unit else short(figure)


def _target(budget: BudgetAsked) -> str:
    """What was asked for, with its unit."""
    if budget.kind == "max_drop":
        return fixed(budget.target, 3, " dB")
    if not budget.absolute:
        return f"{budget.target:.3g} of the teacher's"
    show = format_params if budget.kind == "params" else format_macs
    return show(round(budget.target))


def _cards(report: Report) -> list[Card]:
    before, after = report.complexity.before, report.complexity.after
    macs = f"{format_macs(round(before.macs))} → {format_macs(round(after.macs))}"
    params = f"{format_params(round(before.params))} → {format_params(round(after.params))}"
    cards = [
        _saving_card("Multiply-accumulates", before.macs, after.macs, macs),
        _saving_card("Parameters", before.params, after.params, params),
    ]
    latency = report.latency_ms
    if latency:
        teacher = latency["teacher"].median
        times = [latency[name].median for name in ("teacher", "student")]
        note = " → ".join(f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms" for ms in times)
        cards.append(_saving_card("Time, ONNX Runtime", teacher, teacher * time_share(latency), note))
    return cards + _quality_cards(report)


def _quality_cards(report: Report) -> list[Card]:
    if report.classifies:
        return cards_of_classes(report)
    psnr = metrics_of(channel_of(report))[0].label
    cards = []
    if report.psnr_drop is not None:
        own, student = (
            fixed(report.figure(name, "ground_truth", "psnr"), 3) for name in ("teacher", "student")
        )
        cards.append(
            _card(f"{psnr} to the ground truth", signed(report.psnr_drop, 3, " dB"), f"{own} → {student} dB")
        )
    agreement = report.figure("student", "teacher", "psnr")
    if agreement is not None:
        start = report.figure("initialisation", "teacher", "psnr")
        note = "student's outputs to the teacher's"
        note = note if start is None else f"{fixed(start, 2)} dB before distillation"
        cards.append(_card(f"{psnr} to the teacher", fixed(agreement, 1, " dB"), note))
    return cards


def _saving_card(name: str, before: float, after: float, note: str) -> Card:
    largest = max(before, after) or 1
    bar = (100 * before / largest, 100 * after / largest)
    return _card(name, percent_change(before, after), note, bar)


def _card(name: str, figure: str, note: str, bar: tuple[float, float] | None = None) -> Card:
    number, _, unit = figure.partition(" ")
    return Card(name, number, unit, note, bar)
