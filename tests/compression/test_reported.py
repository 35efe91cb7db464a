"""Reports on networks that a program has compressed in memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import csa2glmha
from csa2glmha.core.errors import OutputError
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.report.stored import read_record
from tests.compression.test_memory import BATCHES, LOW

pytestmark = pytest.mark.usefixtures("quick_factors")


def linked(folder: Path) -> set[str]:
    """What report.md shows of other files."""
    return set(re.findall(r"\]\(([^)]+)\)", (folder / "report.md").read_text()))


def test_a_report_is_whole(tiny_restormer: Restormer, tmp_path: Path) -> None:
    result = csa2glmha.compress(tiny_restormer, BATCHES, **LOW, distill=1, progress=False)
    result.report(tmp_path / "report")
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert files == {"report.json", "report.md", "report.html", "comparison.png"}
    assert linked(tmp_path / "report") == {"comparison.png"}
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Restormer in memory" in page and "data:image/webp" in page
    assert read_record(tmp_path / "report") == result.record
    with pytest.raises(OutputError, match=r"already holds.*: give overwrite=True to replace"):
        result.report(tmp_path / "report")


class Gray(nn.Module):
    """One whose input is no image (B, C, H, W)."""

    def __init__(self, inner: Restormer) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.unsqueeze(1).expand(-1, 3, -1, -1))


def test_what_is_not_there_is_not_linked(tiny_restormer: Restormer, tmp_path: Path) -> None:
    pictured = csa2glmha.compress(tiny_restormer, BATCHES, **LOW, progress=False)
    pictured.report(tmp_path)
    plain = csa2glmha.compress(Gray(tiny_restormer), [torch.rand(2, 16, 16)], **LOW, progress=False)
    plain.report(tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md", "report.html"}
    assert not linked(tmp_path) and plain.record.comparisons is None


class Doubled(nn.Module):
    """One whose output is larger than its input."""

    def __init__(self, inner: Restormer) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_outputs_may_be_larger_than_inputs(tiny_restormer: Restormer, tmp_path: Path) -> None:
    csa2glmha.compress(Doubled(tiny_restormer), BATCHES, **LOW, progress=False).report(tmp_path)
    assert linked(tmp_path) == {"comparison.png"} and (tmp_path / "comparison.png").is_file()
