"""A classifier that a program holds in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import csa2glmha
from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.reading.layers import glmha_layers
from tests.conftest import smooth_images
from tests.networks import builders

pytestmark = pytest.mark.usefixtures("quick_factors")


def batches(count: int, seed: int) -> list[torch.Tensor]:
    return list(smooth_images(count, seed).split(2))


def test_compress_compares_classes(tmp_path: Path) -> None:
    network = builders.classifier().eval()
    result = csa2glmha.compress(
        network, batches(8, 0), held_out=batches(6, 1), rank=2, distill=6, progress=False
    )
    record = result.record
    assert len(glmha_layers(result.student)) == 2
    assert record.data is not None and record.data.outputs == "logits"
    assert record.figure("student", "teacher", "psnr") is None
    assert 0 < (record.figure("student", "teacher", "kl") or 0) < 1
    assert record.distillation is not None and record.distillation.metric == "kl"
    assert (record.distillation.after or 0) <= (record.distillation.before or 0)
    result.report(tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "top-1 agreement" in text and "PSNR" not in text
    result.save(tmp_path / "student.safetensors")
    loaded = csa2glmha.load(tmp_path / "student.safetensors", network=builders.classifier(seed=5))
    image = smooth_images(1, 9)
    assert torch.equal(loaded(image), result.student(image))


def test_full_rank_is_the_same_classifier() -> None:
    network = builders.classifier().eval()
    result = csa2glmha.compress(network, batches(4, 0), rank="full", progress=False)
    assert (result.record.figure("student", "teacher", "kl") or 0) < 1e-8
    assert result.record.figure("student", "teacher", "top1") == 1


def test_ranks_are_searched_by_divergence() -> None:
    network = builders.classifier().eval()
    result = csa2glmha.compress(
        network, batches(8, 0), held_out=batches(4, 1), rank="auto", macs=0.82, progress=False
    )
    search = result.record.search
    assert search is not None and search.metric == "kl"
    assert search.predicted.psnr_to_teacher is None and (search.predicted.kl_to_teacher or 0) > 0
    assert result.record.complexity.after.macs <= 0.82 * result.record.complexity.before.macs
    with pytest.raises(UsageError, match="logits of classes do not have"):
        csa2glmha.compress(network, batches(8, 0), rank="auto", max_drop=0.1, progress=False)


def test_other_outputs_are_refused() -> None:
    with pytest.raises(DataError, match=r"neither images \(B, C, H, W\) nor logits \(B, classes\)"):
        csa2glmha.compress(builders.Features().eval(), batches(2, 0), progress=False)
