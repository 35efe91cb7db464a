"""The head of the page: what was saved, and what it cost."""

from __future__ import annotations

from typing import Any

from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.report.document import channel_of, headline_rows, metrics_of, rank_text, time_share
from csa2glmha.report.html.markup import Markup, breakable, details, table, tag
from csa2glmha.report.html.numbers import MINUS, TIMES, finite, fixed, percent_change, signed

#: Outputs that agree to this many decibels differ by rounding only.
_EXACT_DB = 100.0
_BUDGETS = {
    "macs": "multiply-accumulates",
    "params": "parameters",
    "latency": "latency",
    "max_drop": "loss of PSNR",
}
_NAMES = {
    "macs": "MACs",
    "params": "parameters",
    "psnr_drop": "change of PSNR",
    "max_drop": "loss of PSNR",
    "psnr_to_teacher": "PSNR to the teacher before distillation",
}


def summary(report: dict[str, Any]) -> Markup:
    """Title, the conversion in one sentence, and its most important figures."""
    teacher, (height, width) = report["teacher"], report["input_size"]
    facts = [
        teacher["architecture"],
        f"rank {rank_text(report['options'])}",
        f"{report['options']['attention']} attention",
        f"input {height} {TIMES} {width}",
    ]
    return tag(
        "header",
        tag("p", "Channel attention to GLMHA", class_="eyebrow"),
        tag("h1", breakable(teacher["file"])),
        tag("p", lead_sentence(report), class_="lead"),
        tag("ul", [tag("li", fact) for fact in facts], class_="chips"),
        tag("p", search_sentence(report["search"]), class_="search") if report.get("search") else None,
        tag("div", _cards(report), class_="cards"),
        details(
            "All figures as a table",
            table(
                [[row[0], *(cell.replace("-", MINUS) for cell in row[1:])] for row in headline_rows(report)],
                ("", "before", "after", "ratio"),
                "Figures before and after",
            ),
            tag(
                "p",
                "MACs count one multiply-add of convolutions and matrix products as one; FLOPs are twice "
                "that plus element-wise arithmetic. PSNR and SSIM are means over images, clipped to [0, 1].",
                class_="note",
            ),
        ),
        class_="hero",
    )


def lead_sentence(report: dict[str, Any]) -> str:
    """E.g. "23 % fewer multiply-accumulates and 6.7 % fewer parameters, at a cost of 0.006 dB of PSNR."."""
    before, after = report["complexity"]["before"], report["complexity"]["after"]
    saved = [
        _change(before["macs"], after["macs"], "multiply-accumulates"),
        _change(before["params"], after["params"], "parameters"),
    ]
    return f"{' and '.join(saved)}, {_cost(report.get('quality', {}))}.".replace(", .", ".")


def _change(before: float, after: float, what: str) -> str:
    text = percent_change(before, after)
    if text.startswith(MINUS):
        return f"{text[1:]} fewer {what}"
    return f"{text[1:]} more {what}" if text.startswith("+") else f"as many {what}"


def _cost(quality: dict[str, Any]) -> str:
    drop, agreement = psnr_change(quality), quality.get("student", {}).get("teacher", {}).get("psnr")
    if agreement == "inf" or (finite(agreement) or 0) > _EXACT_DB:
        return "with the same outputs but for rounding"
    if drop is not None:
        text = fixed(abs(drop), 3, " dB")
        if text == "0.000 dB":
            return "at the same PSNR"
        return f"at a cost of {text} of PSNR" if drop < 0 else f"with {text} more PSNR"
    if finite(agreement) is not None:
        return f"with outputs that agree with the teacher's to {fixed(agreement, 1, ' dB')}"
    return ""


def psnr_change(quality: dict[str, Any]) -> float | None:
    """The student's PSNR to the truth minus the teacher's, where the truth is known."""
    values = [finite(quality.get(name, {}).get("truth", {}).get("psnr")) for name in ("teacher", "student")]
    return None if values[0] is None or values[1] is None else values[1] - values[0]


def search_sentence(search: dict[str, Any]) -> str:
    """How the ranks were chosen."""
    kind = search["budget"]["kind"]
    predicted = ", ".join(
        f"{_NAMES.get(name, name.replace('_', ' '))} {_figure(name, value)}"
        for name, value in search.get("predicted", {}).items()
        if finite(value) is not None and name != "error"  # the same as the PSNR, in no unit of the page
    )
    text = f"Ranks were chosen layer by layer for a budget of {_BUDGETS.get(kind, kind)}: "
    text += _target(search["budget"])
    text += f"; predicted: {predicted}" if predicted else ""
    if finite(search.get("gap")) is not None:
        text += f"; gap to the optimum {search['gap']:.3g}"
    return text + (f" ({search['optimality']})." if search.get("optimality") else ".")


def _target(budget: dict[str, Any]) -> str:
    """What was asked for, with its unit."""
    kind, target = budget["kind"], budget["target"]
    if kind == "max_drop":
        return fixed(target, 3, " dB")
    if not budget["absolute"]:
        return f"{target:.3g} of the teacher's"
    return format_params(round(target)) if kind == "params" else format_macs(round(target))


def _figure(name: str, value: float) -> str:
    """A prediction with its unit; numbers up to 1 are shares of the teacher's."""
    if "drop" in name or "psnr" in name:
        return fixed(value, 3, " dB")
    if "ratio" in name or value <= 1:
        return f"{value:.3g} of the teacher's"
    if "param" in name:
        return format_params(round(value))
    if "macs" in name:
        return format_macs(round(value))
    return f"{value:.4g} ms" if "latency" in name or "ms" in name else f"{value:.4g}"


def _cards(report: dict[str, Any]) -> list[Markup]:
    before, after = report["complexity"]["before"], report["complexity"]["after"]
    latency, quality = report.get("latency_ms"), report.get("quality", {})
    cards = [
        _saving_card(
            "Multiply-accumulates",
            before["macs"],
            after["macs"],
            f"{format_macs(before['macs'])} → {format_macs(after['macs'])}",
        ),
        _saving_card(
            "Parameters",
            before["params"],
            after["params"],
            f"{format_params(before['params'])} → {format_params(after['params'])}",
        ),
    ]
    if latency:
        teacher = latency["teacher"]["median"]
        times = [latency[name]["median"] for name in ("teacher", "student")]
        note = " → ".join(f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms" for ms in times)
        cards.append(_saving_card("Time, ONNX Runtime", teacher, teacher * time_share(latency), note))
    drop = psnr_change(quality)
    psnr = metrics_of(channel_of(report))[0][1]
    if drop is not None:
        values = [fixed(quality[name]["truth"]["psnr"], 3) for name in ("teacher", "student")]
        cards.append(_card(f"{psnr} to the truth", signed(drop, 3, " dB"), f"{values[0]} → {values[1]} dB"))
    agreement = quality.get("student", {}).get("teacher", {}).get("psnr")
    if agreement is not None:
        start = quality.get("initialisation", {}).get("teacher", {}).get("psnr")
        note = "student's outputs to the teacher's"
        note = note if start is None else f"{fixed(start, 2)} dB before distillation"
        cards.append(_card(f"{psnr} to the teacher", fixed(agreement, 1, " dB"), note))
    return cards


def _saving_card(name: str, before: float, after: float, note: str) -> Markup:
    largest = max(before, after) or 1
    bars = tag(
        "svg",
        tag("rect", width="100%", height=6, rx=3, class_="track"),
        tag("rect", width=f"{100 * before / largest:.2f}%", height=6, rx=3, class_="before"),
        tag("rect", width=f"{100 * after / largest:.2f}%", height=6, rx=3, class_="after"),
        class_="gauge",
        aria_hidden="true",
    )
    return _card(name, percent_change(before, after), note, bars)


def _card(name: str, figure: str, note: str, extra: Markup | None = None) -> Markup:
    number, _, unit = figure.partition(" ")
    return tag(
        "div",
        tag("p", name, class_="card-name"),
        tag("p", number, tag("small", f" {unit}"), class_="card-figure"),
        extra,
        tag("p", note, class_="card-note"),
        class_="card",
    )
