"""The head of the report of a classifier: what compression cost, in classes."""

from __future__ import annotations

from csa2glmha.metrics.logits import TOP1
from csa2glmha.report.blocks import Card
from csa2glmha.report.metrics import AGREEMENT, DIVERGENCE
from csa2glmha.report.schema import Report
from csa2glmha.report.sections.numbers import signed

NOTE = (
    "Top-1 agreement is the share of held-out images to which teacher and student give the same class. "
    "KL divergence is that of their softmax, in nats, the mean over images."
)


def cost_of_classes(report: Report) -> str:
    """The end of the sentence that the report begins with."""
    accuracies = _accuracies(report)
    if accuracies is not None:
        own, student = (AGREEMENT.shown(each, "ground_truth") for each in accuracies)
        return f"with a top-1 accuracy of {student} % in place of {own} %"
    agreement = report.figure("student", "teacher", TOP1)
    if agreement is None:
        return ""
    return f"with the teacher's class for {AGREEMENT.shown(agreement, 'teacher')} % of the images"


def cards_of_classes(report: Report) -> list[Card]:
    """Accuracy where classes are known, and agreement with the teacher."""
    cards = []
    accuracies = _accuracies(report)
    if accuracies is not None:
        note = " → ".join(f"{AGREEMENT.shown(each, 'ground_truth')} %" for each in accuracies)
        change = signed(100 * (accuracies[1] - accuracies[0]), 1)
        cards.append(Card("Top-1 accuracy", change, "%", note, None))
    for metric in (AGREEMENT, DIVERGENCE):
        value, start = (report.figure(name, "teacher", metric.name) for name in ("student", "initialisation"))
        if value is None:
            continue
        note = "student's logits to the teacher's"
        if start is not None:
            note = f"{metric.shown(start, 'teacher')}{metric.unit} before distillation"
        title = metric.title("teacher", "the ")
        title = title[0].upper() + title[1:]
        cards.append(Card(title, metric.shown(value, "teacher"), metric.unit.strip(), note, None))
    return cards


def _accuracies(report: Report) -> tuple[float, float] | None:
    """The teacher's and the student's, where classes are known."""
    own, student = (report.figure(name, "ground_truth", TOP1) for name in ("teacher", "student"))
    return None if own is None or student is None else (own, student)
