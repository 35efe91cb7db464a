"""The metrics of reports: how each is called, and written, against the teacher and the ground truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

from csa2glmha.metrics.logits import CROSS_ENTROPY, KL, TOP1
from csa2glmha.report.schema import Against, Report
from csa2glmha.report.sections.numbers import fixed, short


@dataclass(frozen=True)
class Metric:
    """One of them.

    Attributes:
        name: in records.
        label: for people.
        unit: with the space before it.
        digits, truth_digits: behind the point, to the teacher and to the truth; None: three that count.
        link: between label and "teacher".
        truth_label: what it is called against the ground truth; None: by the label, to that.
        factor: of the value as it is shown.
        column: heads the values of both in a table; "": the label does.
    """

    name: str
    label: str
    unit: str
    digits: int | None
    truth_digits: int | None
    link: str = "to"
    truth_label: str | None = None
    factor: float = 1.0
    column: str = ""

    def title(self, against: Against, article: str = "") -> str:
        """What it is called, e.g. "PSNR to teacher"; ``article`` is "the " or nothing."""
        if against == "teacher":
            return f"{self.label} {self.link} {article}teacher"
        return self.truth_label or f"{self.label} to {article}ground truth"

    def number(self, value: float, against: Against) -> str:
        """The value for a terminal, without the unit."""
        digits = self._digits(against)
        return f"{value * self.factor:{'.3g' if digits is None else f'.{digits}f'}}"

    def shown(self, value: float | None, against: Against) -> str:
        """The value for a page, without the unit; an en dash where it is not known."""
        scaled, digits = None if value is None else value * self.factor, self._digits(against)
        return short(scaled) if digits is None else fixed(scaled, digits)

    def change(self, before: float, after: float, against: Against) -> str:
        """The difference of two values, with its sign and the unit, for a terminal."""
        digits = self._digits(against)
        return f"{(after - before) * self.factor:+.{4 if digits is None else digits}f}{self.unit}"

    def _digits(self, against: Against) -> int | None:
        return self.digits if against == "teacher" else self.truth_digits


PSNR = Metric("psnr", "PSNR", " dB", 2, 3)
AGREEMENT = Metric(TOP1, "top-1 agreement", " %", 1, 1, "with", "top-1 accuracy", 100.0, "top-1")
DIVERGENCE = Metric(KL, "KL divergence", "", None, None)
#: In the order of the headline.
METRICS = (
    PSNR,
    Metric("ssim", "SSIM", "", 4, 4),
    Metric("psnr_bands", "PSNR, mean of bands", " dB", 2, 3),
    Metric("sam", "spectral angle", " deg", 3, 3),
    Metric("mrae", "MRAE", "", 4, 4),
    Metric("rmse", "RMSE", "", 5, 5),
    AGREEMENT,
    DIVERGENCE,
    Metric(CROSS_ENTROPY, "cross-entropy", "", 4, 4, truth_label="cross-entropy to the true class"),
)

#: How reports name what PSNR and SSIM are of.
CHANNELS = {"rgb": "RGB", "y": "Y of YCbCr", "gray": "gray"}


def channel_of(report: Report) -> str | None:
    """What PSNR and SSIM of a report are of, a key of :data:`CHANNELS`; None where it does not say."""
    return None if report.data is None else report.data.channel


def metrics_of(channel: str | None) -> tuple[Metric, ...]:
    """:data:`METRICS`, PSNR and SSIM labelled by what they are of; spectra and older reports do not say."""
    if channel not in CHANNELS:
        return METRICS
    named = f" ({CHANNELS[channel]})"
    return tuple(
        replace(each, label=each.label + named) if each.name in ("psnr", "ssim") else each for each in METRICS
    )
