"""report.html: the report as one page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from csa2glmha.core.files import atomic_path
from csa2glmha.metrics.comparisons import Comparison
from csa2glmha.report.html.analysis import analysis_section
from csa2glmha.report.html.gallery import gallery
from csa2glmha.report.html.layers import layer_bars, rank_chart
from csa2glmha.report.html.learning import learning_curve
from csa2glmha.report.html.markup import Markup, join, tag
from csa2glmha.report.html.provenance import data_section, export_section, making_section
from csa2glmha.report.html.quality import band_charts, quality_table
from csa2glmha.report.html.search import search_section
from csa2glmha.report.html.summary import summary
from csa2glmha.report.html.tradeoff import baseline_table, pareto_section

HTML_FILE = "report.html"


def write_html(folder: Path, report: dict[str, Any], images: Sequence[Comparison]) -> None:
    """Write report.html into a folder.

    Args:
        folder: it exists.
        report: what report.json holds; every figure of the page is from it.
        images: the pictures of ``report["comparisons"]``, in the same order.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_path(folder / HTML_FILE) as temporary:
        temporary.write_text(html_page(report, images), encoding="utf-8")


def html_page(report: dict[str, Any], images: Sequence[Comparison] = ()) -> str:
    """The page as text."""
    shown = [section for section in _sections(report, images) if section.content is not None]
    sections = [tag("section", tag("h2", each.title), each.content, id=each.name) for each in shown]
    links = [tag("li", tag("a", each.link, href=f"#{each.name}")) for each in shown]
    style, script = Markup(_file("style.css")), Markup(_file("script.js"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="generator", content=report["tool"]),
        tag("title", f"{report['teacher']['file']}: channel attention to GLMHA"),
        tag("link", rel="icon", href="data:,"),
        tag("style", style),
    )
    top = tag(
        "div",
        tag(
            "div",
            tag("nav", tag("ul", links), aria_label="Sections"),
            tag(
                "button",
                "Dark",
                type="button",
                id="theme",
                title="Switch between light and dark",
                hidden=True,
            ),
            class_="top-inner",
        ),
        class_="top",
    )
    footer = tag("footer", f"Made by {report['tool']}. All figures are in report.json beside this page.")
    body = tag(
        "body",
        tag("a", "To the content", href="#content", class_="skip"),
        top,
        tag("main", summary(report), sections, footer, id="content"),
        tag("script", script),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


@dataclass(frozen=True)
class _Section:
    """A part of the page: its anchor, its words in the navigation, its heading; None is left out."""

    name: str
    link: str
    title: str
    content: Markup | None


def _sections(report: dict[str, Any], images: Sequence[Comparison]) -> list[_Section]:
    quality = [part for part in (quality_table(report), band_charts(report)) if part is not None]
    analysis, pareto = report.get("analysis"), report.get("pareto")
    pictures = gallery(report.get("comparisons", {}), images, "search" in report)
    return [
        _Section("images", "Images", "Teacher and student side by side", pictures),
        _Section("quality", "Quality", "Quality", join(quality) if quality else None),
        _Section(
            "tradeoff",
            "Trade-off",
            "Quality against cost",
            pareto_section(pareto) if pareto and pareto.get("points") else None,
        ),
        _Section("search", "Search", "What the rank search measured", search_section(report)),
        _Section(
            "baselines",
            "Baselines",
            "Against other methods",
            baseline_table(report) if report.get("baselines") else None,
        ),
        _Section("layers", "Layers", "Cost of every attention layer", layer_bars(report)),
        _Section("ranks", "Ranks", "Rank of every layer", rank_chart(report)),
        _Section(
            "spectra",
            "Spectra",
            "Spectra of the teacher's attention",
            analysis_section(analysis) if analysis and analysis.get("layers") else None,
        ),
        _Section("distillation", "Distillation", "Distillation", learning_curve(report)),
        _Section("export", "ONNX", "ONNX file", export_section(report)),
        _Section("data", "Data", "Data", data_section(report)),
        _Section("making", "Provenance", "How this was made", making_section(report)),
    ]


def _policy(script: str) -> str:
    """Nothing is loaded from anywhere, and no script runs but the page's own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _file(name: str) -> str:
    return resources.files("csa2glmha.report.html").joinpath(name).read_text(encoding="utf-8")
