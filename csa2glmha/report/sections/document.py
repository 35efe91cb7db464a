"""All sections of a report in their order: what both Markdown and HTML render."""

from __future__ import annotations

from collections.abc import Sequence

from csa2glmha.metrics.comparisons import Comparison
from csa2glmha.report.blocks import Block, Document, Gallery, Section
from csa2glmha.report.schema import Report
from csa2glmha.report.sections.analysis import analysis_blocks
from csa2glmha.report.sections.layers import layer_blocks, rank_blocks
from csa2glmha.report.sections.learning import learning_blocks
from csa2glmha.report.sections.provenance import data_blocks, export_blocks, making_blocks
from csa2glmha.report.sections.quality import quality_blocks
from csa2glmha.report.sections.search import search_blocks
from csa2glmha.report.sections.summary import summary_of
from csa2glmha.report.sections.tradeoff import baseline_blocks, pareto_blocks
from csa2glmha.report.sections.widths import refit_blocks, width_blocks


def document_of(report: Report, images: Sequence[Comparison] = ()) -> Document:
    """The report for people; sections without content are left out."""
    sections = (
        Section("images", "Images", "Teacher and student side by side", _pictures(report, images)),
        Section("quality", "Quality", "Quality", quality_blocks(report)),
        Section("tradeoff", "Trade-off", "Quality against cost", pareto_blocks(report)),
        Section("search", "Search", "What the search measured", search_blocks(report)),
        Section("baselines", "Baselines", "Against other methods", baseline_blocks(report)),
        Section("layers", "Layers", "Cost of every attention layer", layer_blocks(report)),
        Section("ranks", "Ranks", "Rank of every layer", rank_blocks(report)),
        Section("widths", "Widths", "Feed-forward networks", width_blocks(report)),
        Section("refit", "Refit", "Refit of output projections", refit_blocks(report)),
        Section("spectra", "Spectra", "Spectra of the teacher's attention", analysis_blocks(report)),
        Section("distillation", "Distillation", "Distillation", learning_blocks(report)),
        Section("export", "ONNX", "ONNX file", export_blocks(report)),
        Section("data", "Data", "Data", data_blocks(report)),
        Section("making", "Provenance", "How this was made", making_blocks(report)),
    )
    return Document(
        f"{report.teacher.file}: channel attention to GLMHA",
        report.tool,
        summary_of(report),
        [section for section in sections if section.blocks],
    )


def _pictures(report: Report, images: Sequence[Comparison]) -> list[Block]:
    if not images or report.comparisons is None:
        return []
    return [Gallery(report.comparisons, images, report.search is not None)]
