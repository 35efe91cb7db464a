"""Compressing networks in memory."""

from __future__ import annotations

import copy
import doctest
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import csa2glmha
from csa2glmha.checkpoint import student
from csa2glmha.commands import convert
from csa2glmha.compression import memory
from csa2glmha.core.errors import DataError
from csa2glmha.families.restormer.network import Restormer

BATCHES = [torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


class Around(nn.Module):
    """A network of a user's with a known one in it."""

    def __init__(self, inner: Restormer) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 0.5


@pytest.mark.parametrize(("module", "lines"), [(memory, 6), (convert, 3), (student, 2)])
def test_the_examples_of_public_functions_run(
    module: ModuleType,
    lines: int,
    tiny_restormer: Restormer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"params": tiny_restormer.state_dict()}, "tiny.pth")
    done = doctest.testmod(module)
    assert done.failed == 0 and done.attempted >= lines


def test_a_module_around_is_compressed_and_the_teacher_kept(tiny_restormer: Restormer) -> None:
    teacher = Around(tiny_restormer)
    before = copy.deepcopy(teacher.state_dict())
    result = csa2glmha.compress(teacher, BATCHES, rank=4, distill=2, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert result.record.distillation is not None and result.record.distillation.steps == 2
    assert result.student(BATCHES[0]).shape == BATCHES[0].shape


def test_full_rank_is_the_teacher_and_files_are_read_again(tiny_restormer: Restormer, tmp_path: Path) -> None:
    result = csa2glmha.compress(tiny_restormer, BATCHES, rank="full", progress=False)
    expected = tiny_restormer(BATCHES[0])
    assert torch.allclose(result.student(BATCHES[0]), expected, atol=1e-4)
    result.save(tmp_path / "student.safetensors")
    result.report(tmp_path / "report")
    assert torch.allclose(csa2glmha.load(tmp_path / "student.safetensors")(BATCHES[0]), expected, atol=1e-4)
    assert (tmp_path / "report" / "report.json").is_file()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([], "holds no batches"),
        (3, "no iterable of batches"),
        ([{"x": 1}], "batch 0: holds dict"),
        ([torch.full((1, 3, 16, 16), float("nan"))], "not finite"),
        ([torch.rand(1, 4, 16, 16)], "does not run on inputs"),
    ],
)
def test_unfit_batches(given: object, match: str, tiny_restormer: Restormer) -> None:
    with pytest.raises(DataError, match=match):
        csa2glmha.compress(tiny_restormer, given, progress=False)  # type: ignore[arg-type]
