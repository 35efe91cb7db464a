"""Logits against a teacher's, and against true classes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from csa2glmha.core.errors import DataError
from csa2glmha.metrics.logits import LogitMeter, cross_entropy, divergence
from csa2glmha.metrics.outputs import IMAGES, LOGITS, outputs_like

STUDENT = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.5]])
TEACHER = torch.tensor([[1.0, 0.5, -1.0], [2.0, 1.0, 0.0]])


def test_divergence_is_that_of_the_definition_and_zero_for_equal_logits() -> None:
    p, q = TEACHER.double().softmax(-1), STUDENT.double().softmax(-1)
    by_hand = (p * (p / q).log()).sum(-1)
    assert torch.allclose(divergence(STUDENT, TEACHER), by_hand)
    assert float(divergence(TEACHER, TEACHER).max()) == 0
    assert float(divergence(TEACHER + 5, TEACHER).max()) < 1e-12  # softmax does not see a constant


def test_cross_entropy_is_that_of_pytorch() -> None:
    truth = F.one_hot(torch.tensor([0, 2]), 3).float()
    expected = F.cross_entropy(STUDENT, torch.tensor([0, 2]), reduction="none").double()
    assert torch.allclose(cross_entropy(STUDENT, truth), expected)


def test_a_meter_averages_over_images() -> None:
    meter = LogitMeter()
    for number in range(2):
        meter.add(f"image {number}", STUDENT[number], TEACHER[number])
    assert meter.mean()["top1"] == 0.5
    assert meter.mean()["kl"] == pytest.approx(float(divergence(STUDENT, TEACHER).mean()))
    truth = LogitMeter(of_truth=True)
    assert set(truth.add("image", STUDENT[0], torch.tensor([1.0, 0.0, 0.0])).values) == {
        "top1",
        "cross_entropy",
    }


def test_other_classes_are_refused() -> None:
    with pytest.raises(DataError, match=r"a\.png: .*no logits of the same classes"):
        LogitMeter().add("a.png", torch.rand(3), torch.rand(4))
    with pytest.raises(DataError, match="no images to average over"):
        LogitMeter().mean()


def test_scores_rise_as_divergence_falls() -> None:
    assert LOGITS.score(1e-3) == pytest.approx(30)
    assert LOGITS.score(0.0) == 200 and math.isnan(LOGITS.score(math.nan))
    assert IMAGES.score(41.5) == 41.5


def test_the_shape_tells_logits_from_images() -> None:
    assert outputs_like(STUDENT) is LOGITS
    assert outputs_like(torch.rand(1, 3, 8, 8)) is IMAGES
    assert LOGITS.scale.change(0.0123456, 0.001) == "0.0123 -> 0.001"
    assert IMAGES.scale.change(40, 45.123) == "40.00 -> 45.12 dB"
