"""report.html: the report as one page that needs nothing but itself."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from csa2glmha.core.files import atomic_path
from csa2glmha.core.text import writable
from csa2glmha.metrics.comparisons import Comparison
from csa2glmha.report.html.charts import chart, legend
from csa2glmha.report.html.gallery import pictures_of
from csa2glmha.report.html.markup import breakable
from csa2glmha.report.html.ranks import rank_chart
from csa2glmha.report.schema import Report
from csa2glmha.report.sections.document import document_of

HTML_FILE = "report.html"


def write_html(folder: Path, report: Report, images: Sequence[Comparison]) -> None:
    """Write report.html into a folder.

    Args:
        folder: it exists.
        report: every figure of the page is from it.
        images: the pictures of ``report.comparisons``, in the same order.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_path(folder / HTML_FILE) as temporary:
        temporary.write_text(html_page(report, images), encoding="utf-8")


def html_page(report: Report, images: Sequence[Comparison] = ()) -> str:
    """The page as text."""
    script = _file("script.js")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            document=document_of(report, images),
            style=Markup(_file("style.css")),
            script=Markup(script),
            policy=_policy(script),
        )
    )


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("csa2glmha.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["kind"] = lambda value: type(value).__name__
    environment.filters["breakable"] = breakable
    environment.globals |= {
        "draw_chart": chart,
        "draw_legend": legend,
        "draw_ranks": rank_chart,
        "pictures_of": pictures_of,
    }
    return environment


def _shown(value: object) -> object:
    """Characters that no page can hold become U+FFFD."""
    return value if isinstance(value, Markup) else writable(str(value))


def _policy(script: str) -> str:
    """Nothing is loaded from anywhere, and no script runs but the page's own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _file(name: str) -> str:
    return resources.files("csa2glmha.report.html").joinpath(name).read_text(encoding="utf-8")
