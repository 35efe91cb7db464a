from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.attention import Ranks, attention_layers, plan_layers
from csa2glmha.distill.loop import (
    DistillSettings,
    HeldOut,
    agreement,
    distill,
    schedule,
    teacher_outputs,
)
from csa2glmha.errors import Csa2GlmhaError
from csa2glmha.initialize import initialise_student
from csa2glmha.models.restormer import Restormer
from tests.conftest import MakeRestormer


def images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(count, 3, 4, 4, generator=generator), size=(16, 16), mode="bilinear")


def crops(seed: int = 0) -> Iterator[tuple[Tensor, Tensor | None]]:
    while True:
        yield images(2, seed), None
        seed += 1


def after(count: int, then: Callable[[], Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Good batches, then something else."""
    usual = crops()
    for _ in range(count):
        yield next(usual)
    while True:
        yield then(), None


@pytest.fixture(scope="module")
def originals(make_restormer: MakeRestormer) -> tuple[Restormer, Restormer]:
    teacher = make_restormer(num_refinement_blocks=0)
    names = ("encoder_level1.0.attn", "decoder_level1.0.attn")
    layers = {name: layer for name, layer in attention_layers(teacher).items() if name in names}
    student, _ = initialise_student(teacher, plan_layers(layers, Ranks(k=1, v=1)), images(4, 99))
    return teacher, student


@pytest.fixture
def pair(originals: tuple[Restormer, Restormer]) -> tuple[Restormer, Restormer]:
    """A teacher and its student with two layers at rank 1."""
    return copy.deepcopy(originals)


@pytest.fixture
def held_out(pair: tuple[Restormer, Restormer]) -> HeldOut:
    inputs = images(4, 77)
    return HeldOut(inputs, teacher_outputs(pair[0], inputs))


def settings(**changes: object) -> DistillSettings:
    return DistillSettings(**({"steps": 16, "learning_rate": 1e-3} | changes))  # type: ignore[arg-type]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same(model: nn.Module, expected: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_improves_on_the_initialisation(pair: tuple[Restormer, Restormer], held_out: HeldOut) -> None:
    teacher, student = pair
    before, teachers = agreement(student, held_out), weights(teacher)
    said: list[str] = []
    result = distill(student, teacher, crops(), held_out, settings(), said.append)
    assert result.before == before
    assert result.after > result.before + 0.5
    assert agreement(student, held_out) == pytest.approx(result.after, abs=1e-6)
    assert 0 < result.best_step <= result.steps == 16
    assert result.after == max(point["psnr"] for point in result.curve)
    assert [point["step"] for point in result.curve] == [0, 4, 6, 8, 10, 12, 14, 16]
    assert all(point["loss"] > 0 for point in result.curve[1:])
    assert len(said) == 1
    assert said[0].startswith("distilling for 16 steps")
    assert_same(teacher, teachers)
    assert not student.training


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_short_runs_are_judged_too(pair: tuple[Restormer, Restormer], held_out: HeldOut, steps: int) -> None:
    teacher, student = pair
    result = distill(student, teacher, crops(), held_out, settings(steps=steps, learning_rate=1e-4))
    assert result.steps == steps
    assert result.curve[-1]["step"] == steps
    assert result.after > result.before


def test_no_steps_change_nothing(pair: tuple[Restormer, Restormer], held_out: HeldOut) -> None:
    teacher, student = pair
    before = weights(student)
    result = distill(student, teacher, crops(), held_out, settings(steps=0))
    assert (result.steps, result.best_step) == (0, 0)
    assert result.after == result.before == agreement(student, held_out)
    assert_same(student, before)


def test_never_worse_even_with_an_absurd_learning_rate(
    pair: tuple[Restormer, Restormer], held_out: HeldOut
) -> None:
    teacher, student = pair
    before = weights(student)
    result = distill(student, teacher, crops(), held_out, settings(steps=8, learning_rate=1.0))
    assert result.curve[-1]["psnr"] < result.before - 10  # training did ruin it
    assert (result.best_step, result.after) == (0, result.before)
    assert_same(student, before)


@pytest.mark.parametrize("learning_rate", [1e-3, 1.0])
def test_interrupt_leaves_the_best_weights(
    pair: tuple[Restormer, Restormer], held_out: HeldOut, learning_rate: float
) -> None:
    teacher, student = pair
    before, start = agreement(student, held_out), weights(student)

    def interrupt() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(student, teacher, after(11, interrupt), held_out, settings(learning_rate=learning_rate))
    if learning_rate < 1:
        assert agreement(student, held_out) > before
    else:
        assert_same(student, start)


def test_interrupt_before_the_first_evaluation(pair: tuple[Restormer, Restormer], held_out: HeldOut) -> None:
    teacher, student = pair
    start = weights(student)

    def interrupt() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(student, teacher, after(2, interrupt), held_out, settings())
    assert_same(student, start)


@pytest.mark.parametrize(("value", "name"), [(math.nan, "nan"), (math.inf, "nan|inf")])
def test_loss_that_is_not_finite(
    pair: tuple[Restormer, Restormer], held_out: HeldOut, value: float, name: str
) -> None:
    teacher, student = pair
    before = agreement(student, held_out)
    bad = after(9, lambda: torch.full((2, 3, 16, 16), value))
    with pytest.raises(Csa2GlmhaError, match=f"the loss is ({name}) at step 10; lower the") as caught:
        distill(student, teacher, bad, held_out, settings())
    assert "\n" not in str(caught.value)
    assert agreement(student, held_out) >= before
    assert all(parameter.isfinite().all() for parameter in student.parameters())


def test_reproducible_bit_for_bit(pair: tuple[Restormer, Restormer], held_out: HeldOut) -> None:
    teacher, student = pair
    twin = copy.deepcopy(student)
    results = [distill(model, teacher, crops(5), held_out, settings(steps=6)) for model in (student, twin)]
    assert results[0].curve == results[1].curve
    assert_same(twin, student.state_dict())
    other = distill(copy.deepcopy(twin), teacher, crops(500), held_out, settings(steps=6))
    assert other.curve != results[0].curve


def test_budget_in_minutes_decides_the_steps(pair: tuple[Restormer, Restormer], held_out: HeldOut) -> None:
    teacher, student = pair
    tight = settings(steps=None, minutes=1e-6, evaluations=1)
    assert distill(copy.deepcopy(student), teacher, crops(), held_out, tight).steps == 3
    ample = settings(steps=None, minutes=60.0, max_steps=5, evaluations=1)
    assert distill(student, teacher, crops(), held_out, ample).steps == 5


@pytest.mark.parametrize(("total", "warmup"), [(100, 0.1), (37, 0.2), (1000, 0.0), (10, 0.5)])
def test_schedule_rises_linearly_then_falls_as_a_cosine(total: int, warmup: float) -> None:
    factors = [schedule(step, total, warmup) for step in range(total)]
    warm = max(int(total * warmup), 1)
    assert factors[:warm] == pytest.approx([(i + 1) / warm for i in range(warm)])
    assert factors[warm - 1] == 1
    assert all(a >= b for a, b in zip(factors[warm:], factors[warm + 1 :], strict=False))
    assert all(0 <= factor <= 1 for factor in factors)
    middle = warm + (total - warm) // 2
    assert factors[middle] == pytest.approx(0.5, abs=0.6 * math.pi / (total - warm))
    assert 0 < factors[-1] < 0.5 * (math.pi / (total - warm)) ** 2


def test_schedule_of_a_single_step_is_full() -> None:
    assert schedule(0, 1, 0.1) == 1.0


def test_agreement_is_the_mean_psnr_over_images() -> None:
    inputs = torch.zeros(5, 1, 4, 4)
    model = nn.Conv2d(1, 1, 1)
    nn.init.zeros_(model.weight)
    assert model.bias is not None
    nn.init.constant_(model.bias, 0.1)
    teacher = torch.zeros(5, 1, 4, 4)
    teacher[4] = 0.1 + 0.01  # four images at 20 dB, one at 40 dB; the batches are of unequal size
    assert agreement(model, HeldOut(inputs, teacher), batch=3) == pytest.approx((4 * 20 + 40) / 5, abs=1e-3)


def test_result_as_json(pair: tuple[Restormer, Restormer], held_out: HeldOut) -> None:
    teacher, student = pair
    values = distill(student, teacher, crops(), held_out, settings(steps=4)).to_json()
    assert set(values) == {"steps", "seconds", "before", "after", "best_step", "curve"}
    assert values["seconds"] > 0
