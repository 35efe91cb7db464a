from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.distill import DistillResult, HeldOut, StateFolder, TrainingLog, agreement, distill, schedule
from csa2glmha.distill import engine as engine_module
from csa2glmha.distill.held_out import errors
from tests.distilling import Crops, Pair, assert_same, make_held_out, settings, weights


@pytest.fixture
def held_out(pair: Pair) -> HeldOut:
    return make_held_out(pair[0])


def train(pair: Pair, held_out: HeldOut, data: Crops | None = None, **changes: Any) -> DistillResult:
    teacher, student = pair
    return distill(student, teacher, data or Crops(), held_out, settings(**changes))


# --- what comes out


def test_improves_on_the_initialisation(pair: Pair, held_out: HeldOut) -> None:
    teacher, student = pair
    before, teachers = agreement(student, held_out), weights(teacher)
    said: list[str] = []
    result = distill(student, teacher, Crops(), held_out, settings(steps=32), said.append)
    assert result.before == pytest.approx(before, abs=1e-9)
    assert result.after > result.before + 0.5
    assert agreement(student, held_out) == pytest.approx(result.after, abs=1e-6)
    assert 0 < result.best_step <= result.steps == 32
    assert result.after == max(point["psnr"] for point in result.curve)
    assert said[0] == "distilling layer by layer for 6 steps"
    assert any(line.startswith("distilling end to end for 26 steps") for line in said)
    assert_same(teacher, teachers)
    assert not student.training


def test_stages_and_curve(pair: Pair, held_out: HeldOut) -> None:
    result = train(pair, held_out, steps=20, learning_rate=1e-4)
    layers, end = result.stages
    assert (layers["stage"], layers["steps"], end["stage"], end["steps"]) == ("layers", 4, "end", 16)
    assert layers["before"] == result.before and end["after"] == result.after
    assert layers["after"] == end["before"]
    assert [point["stage"] for point in result.curve] == ["start", *["layers"] * 4, *["end"] * 8]
    assert [point["step"] for point in result.curve] == [0, 1, 2, 3, 4, *range(6, 21, 2)]
    assert all(point["loss"] > 0 and point["minutes"] >= 0 for point in result.curve[1:])
    assert set(json.loads(json.dumps(result.to_json()))) == set(vars(result))


@pytest.mark.parametrize("stage", ["layers", "end"])
def test_either_stage_can_be_skipped(pair: Pair, held_out: HeldOut, stage: str) -> None:
    result = train(pair, held_out, stages=stage, learning_rate=3e-4, layer_rate=1.0)
    assert [each["stage"] for each in result.stages] == [stage]
    assert result.stages[0]["steps"] == result.steps == 16
    assert result.after > result.before


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_short_runs_are_evaluated_too(pair: Pair, held_out: HeldOut, steps: int) -> None:
    result = train(pair, held_out, steps=steps, learning_rate=1e-4)
    assert result.steps == steps
    assert result.curve[-1]["step"] == steps
    assert result.after > result.before


def test_no_steps_change_nothing(pair: Pair, held_out: HeldOut) -> None:
    before = weights(pair[1])
    result = train(pair, held_out, steps=0)
    assert (result.steps, result.best_step, result.after) == (0, 0, result.before)
    assert_same(pair[1], before)


def test_a_lossless_student_has_no_layers_to_learn(pair: Pair, held_out: HeldOut) -> None:
    teacher, _ = pair
    twin = copy.deepcopy(teacher).requires_grad_(True)
    result = distill(twin, teacher, Crops(), held_out, settings(steps=2, learning_rate=1e-9))
    assert [stage["stage"] for stage in result.stages] == ["end"]


def test_never_worse_even_with_an_absurd_learning_rate(pair: Pair, held_out: HeldOut) -> None:
    before = weights(pair[1])
    result = train(pair, held_out, steps=8, learning_rate=1.0)
    assert result.curve[1]["psnr"] < result.before - 10  # training did ruin it
    assert (result.best_step, result.after) == (0, result.before)
    assert_same(pair[1], before)


def test_reproducible_bit_for_bit(pair: Pair, held_out: HeldOut) -> None:
    teacher, student = pair
    twin, other = copy.deepcopy(student), copy.deepcopy(student)
    first = train((teacher, student), held_out, steps=6)
    second = train((teacher, twin), held_out, steps=6)
    assert [point["psnr"] for point in first.curve] == [point["psnr"] for point in second.curve]
    assert_same(twin, student.state_dict())
    third = train((teacher, other), held_out, Crops(seed=500), steps=6)
    assert third.curve[-1]["psnr"] != first.curve[-1]["psnr"]


def test_frozen_weights_stay(pair: Pair, held_out: HeldOut) -> None:
    _, student = pair
    student.patch_embed.requires_grad_(False)
    before = weights(student)
    train(pair, held_out)
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert "output.weight" in changed and not any(name.startswith("patch_embed") for name in changed)


# --- the options


@pytest.mark.parametrize("loss", ["charbonnier", "l2"])
def test_other_losses_train_too(pair: Pair, held_out: HeldOut, loss: str) -> None:
    assert train(pair, held_out, loss=loss).after > agreement(pair[1], held_out) - 1e-6


def test_accumulated_parts_are_one_large_batch(pair: Pair, held_out: HeldOut) -> None:
    teacher, student = pair
    twin = copy.deepcopy(student)
    start = weights(student)
    train((teacher, student), held_out, batch=4, steps=10)
    train((teacher, twin), held_out, batch=1, accumulate=4, steps=10)
    # Adam makes whole steps of gradients that are next to rounding, so single weights differ a little.
    apart = moved = 0.0
    for name, value in student.state_dict().items():
        apart += float((twin.state_dict()[name] - value).square().sum())
        moved += float((value - start[name]).square().sum())
    assert apart < 0.03**2 * moved


def test_worker_processes_change_nothing(pair: Pair, held_out: HeldOut) -> None:
    teacher, student = pair
    twin = copy.deepcopy(student)
    train((teacher, student), held_out, steps=4)
    train((teacher, twin), held_out, steps=4, workers=2)
    assert_same(twin, student.state_dict())


def test_activation_checkpointing_changes_nothing(pair: Pair, held_out: HeldOut) -> None:
    teacher, student = pair
    twin = copy.deepcopy(student)
    train((teacher, student), held_out, steps=4)
    train((teacher, twin), held_out, steps=4, activation_checkpointing=True)
    assert_same(twin, student.state_dict())
    assert all("forward" not in vars(module) for module in twin.modules())


def test_bf16_trains_float32_weights(pair: Pair, held_out: HeldOut) -> None:
    result = train(pair, held_out, precision="bf16", learning_rate=3e-4)
    assert result.after > result.before
    assert {value.dtype for value in pair[1].state_dict().values()} == {torch.float32}


def test_fp16_needs_a_gpu(pair: Pair, held_out: HeldOut) -> None:
    with pytest.raises(UsageError, match="--precision fp16: needs a GPU"):
        train(pair, held_out, precision="fp16")


def test_precisions_can_follow_each_other_in_one_process(pair: Pair, held_out: HeldOut) -> None:
    for precision in ("bf16", "fp32", "bf16"):
        assert train(pair, held_out, steps=1, precision=precision).steps == 1


# --- ground truth


def test_ground_truth_has_its_weight(pair: Pair, held_out: HeldOut) -> None:
    teacher, student = pair
    ground_truth = [inputs[0].flip(-1) for inputs in held_out.inputs]
    known = HeldOut(held_out.inputs, held_out.teacher, ground_truth)
    before = errors(student, known)[1].mean()
    changes = {"steps": 40, "stages": "end", "learning_rate": 1e-2}
    train((teacher, student), known, Crops(ground_truth=True), truth_weight=100.0, **changes)
    assert errors(student, known)[1].mean() < 0.9 * before


def test_ground_truth_that_is_not_there(pair: Pair, held_out: HeldOut) -> None:
    with pytest.raises(UsageError, match="--truth-weight: these images come without a ground truth"):
        train(pair, held_out, truth_weight=0.1)


# --- data that fails


class Failing(Crops):
    def batch(self, step: int, first: int, count: int) -> Any:
        if step == 7:
            raise DataError("photos/a.png: cannot be read; check it")
        return super().batch(step, first, count)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_fails_says_so_and_keeps_the_state(
    pair: Pair, held_out: HeldOut, tmp_path: Path, workers: int
) -> None:
    teacher, student = pair
    states = StateFolder(tmp_path / "state", {})
    with pytest.raises(DataError, match=r"^photos/a.png: cannot be read; check it$"):
        distill(student, teacher, Failing(), held_out, settings(workers=workers), states=states)
    assert states.steps() == [7, 0]


# --- half precision


def test_a_scaled_loss_gives_the_same_steps(
    pair: Pair, held_out: HeldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fp16 needs a GPU for, in float32 on the CPU."""
    teacher, student = pair
    twin = copy.deepcopy(student)
    train((teacher, student), held_out, Crops(bad=range(3, 5)), steps=8)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    monkeypatch.setattr(engine_module.Processes, "scaler", scaler)
    result = train((teacher, twin), held_out, Crops(bad=range(3, 5)), steps=8)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    assert result.skipped == 2 and scaler.get_scale() == 256.0  # halved by each


# --- budget and early stop


def test_minutes_decide_the_steps(pair: Pair, held_out: HeldOut, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(engine_module.time, "monotonic", lambda: clock[0])
    taken = engine_module._Training.step

    def slow(self: Any, *arguments: Any) -> bool:
        clock[0] += 1.0
        return taken(self, *arguments)

    monkeypatch.setattr(engine_module._Training, "step", slow)
    result = train(pair, held_out, steps=None, minutes=1.0)
    assert result.seconds == pytest.approx(60, abs=1)
    # A fifth of the time, of which a planned step must not take more than is left.
    assert [stage["steps"] for stage in result.stages] == [12, 48]
    assert result.after > result.before


def test_a_budget_too_short_still_ends(pair: Pair, held_out: HeldOut) -> None:
    result = train(pair, held_out, steps=None, minutes=1e-6)
    assert [stage["steps"] for stage in result.stages] == [5, 5]
    assert [point["step"] for point in result.curve] == [0, 5, 10]


def test_steps_within_a_time() -> None:
    assert schedule.steps_within(60, 1.0, 0.0) == 60
    # 240 steps have an evaluation every 25: 240 * 2 s and 9.6 * 10 s are more than 480 s.
    assert schedule.steps_within(480, 2.0, 10.0) == int(480 / 2.4)
    assert schedule.steps_within(0.1, 1.0, 5.0) == 1


@pytest.mark.parametrize(
    ("total", "every"), [(1, 1), (7, 1), (80, 10), (200, 25), (900, 25), (1000, 25), (4000, 100)]
)
def test_evaluation_interval(total: int, every: int) -> None:
    assert schedule.evaluation_interval(total) == every


@pytest.mark.parametrize(("total", "warmup"), [(100, 0.1), (37, 0.2), (1000, 0.0), (10, 0.5)])
def test_schedule_rises_linearly_then_falls_as_a_cosine(total: int, warmup: float) -> None:
    factors = [schedule.learning_rate(step, total, warmup) for step in range(total)]
    warm = max(int(total * warmup), 1)
    assert factors[:warm] == pytest.approx([(i + 1) / warm for i in range(warm)])
    assert factors[warm - 1] == 1
    assert all(a >= b for a, b in zip(factors[warm:], factors[warm + 1 :], strict=False))
    middle = warm + (total - warm) // 2
    assert factors[middle] == pytest.approx(0.5, abs=0.6 * math.pi / (total - warm))
    assert 0 < factors[-1] < 0.5 * (math.pi / (total - warm)) ** 2


def test_a_stage_ends_early_only_when_the_rate_is_low_and_nothing_is_gained() -> None:
    def ends(step: int, *scores: float) -> bool:
        return schedule.gains_nothing_more([49.0, *scores], step, 1000, 0.1)

    flat = [50.0] * 40
    # 25 steps between evaluations; the rate is below a fifth of its peak from step 735 on, and four
    # evaluations later is step 825.
    assert not ends(500, *flat) and not ends(775, *flat)
    assert ends(825, *flat)
    assert not ends(825, *flat[:-1], 50.01)
    assert not ends(825, *flat[:-4], 50.01, 50.0, 50.0, 50.0)
    assert ends(825, *flat[:-5], 50.01, 50.0, 50.0, 50.0, 50.0)
    assert ends(825, *flat[:-1], 50.004)
    assert ends(25, 50.0, 111.0)  # nothing but rounding is left


def test_a_stage_without_any_gain_ends_half_way() -> None:
    flat = [50.0] * 21
    assert not schedule.gains_nothing_more(flat[:20], 475, 1000, 0.1)
    assert schedule.gains_nothing_more(flat, 500, 1000, 0.1)
    assert not schedule.gains_nothing_more([*flat[:5], 50.1, *flat[6:]], 500, 1000, 0.1)
    assert not schedule.gains_nothing_more([50.0] * 5, 5, 8, 0.1)  # too few to tell


def test_falling_twice_in_a_row_is_too_large_a_rate() -> None:
    assert not schedule.falls([50.0, 40.0])
    assert schedule.falls([50.0, 49.4, 49.4])
    assert not schedule.falls([50.0, 49.4, 49.6])
    assert not schedule.falls([50.0, 52.0, 51.0, 51.0])  # below the best, not below the beginning


def test_weights_that_are_not_finite_are_left_behind(pair: Pair, held_out: HeldOut) -> None:
    result = train(pair, held_out, steps=60, stages="end", learning_rate=1e30)
    assert result.after == result.before and math.isfinite(result.after)
    assert all(bool(value.isfinite().all()) for value in pair[1].state_dict().values())


def test_harm_at_every_rate_ends_the_stage(
    pair: Pair, held_out: HeldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "falls", lambda scores: len(scores) > 2)
    monkeypatch.setattr(schedule, "gains_nothing_more", lambda *_: False)
    result = train(pair, held_out, steps=400, stages="end")
    assert result.steps == 2 * 25 * (schedule.MAX_BACK_OFFS + 1)


def test_too_large_a_rate_is_lowered_until_it_helps(pair: Pair, held_out: HeldOut, tmp_path: Path) -> None:
    teacher, student = pair
    said: list[str] = []
    log = TrainingLog(tmp_path / "log")
    changes = settings(steps=150, stages="end", learning_rate=0.05)
    result = distill(student, teacher, Crops(), held_out, changes, said.append, log=log)
    rates = [entry["rate"] for entry in lines(tmp_path / "log") if entry["event"] == "back_off"]
    assert rates == [0.25**number for number in range(1, len(rates) + 1)] and rates
    assert sum("back to the best weights" in line for line in said) == len(rates)
    assert result.after > result.before + 0.1


def test_early_stop_ends_the_stage(pair: Pair, held_out: HeldOut, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "gains_nothing_more", lambda scores, step, *_: step >= 3)
    result = train(pair, held_out, steps=20)
    # What the first stage leaves goes to the second.
    assert [stage["steps"] for stage in result.stages] == [3, 4]
    assert result.steps == 7 and result.stopped == ""


# --- what is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("stages", ["layers", "end"])
def test_single_bad_steps_are_skipped_and_counted(
    pair: Pair, held_out: HeldOut, value: float, stages: str
) -> None:
    teacher, student = pair
    said: list[str] = []
    data = Crops(bad=range(4, 7), value=value)
    gentle = settings(stages=stages, learning_rate=3e-4, layer_rate=1.0)
    result = distill(student, teacher, data, held_out, gentle, said.append)
    assert (result.skipped, result.steps, result.stopped) == (3, 16, "")
    assert result.after > result.before
    assert sum("the step is skipped" in line for line in said) == 1
    assert all(parameter.isfinite().all() for parameter in student.parameters())


def test_many_in_a_row_end_the_training_with_the_best_weights(pair: Pair, held_out: HeldOut) -> None:
    teacher, student = pair
    said: list[str] = []
    data = Crops(bad=range(20, 1000))
    result = distill(student, teacher, data, held_out, settings(steps=60), said.append)
    assert (result.skipped, result.steps) == (10, 30)
    assert result.stopped.startswith("stopped at step 30") and "--learning-rate" in result.stopped
    assert result.stopped in said
    assert agreement(student, held_out) == pytest.approx(result.after, abs=1e-6)
    assert result.after > result.before


def test_a_skipped_step_leaves_weights_and_moments_alone(pair: Pair, held_out: HeldOut) -> None:
    student = pair[1]
    before = weights(student)
    result = train(pair, held_out, Crops(bad=range(100)), steps=5)
    assert result.skipped == 5 and result.after == result.before
    assert_same(student, before)


# --- interrupts


class Interrupting(Crops):
    def batch(self, step: int, first: int, count: int) -> Any:
        if step == 7:
            raise KeyboardInterrupt
        return super().batch(step, first, count)


@pytest.mark.parametrize("learning_rate", [1e-3, 1.0])
def test_interrupt_leaves_the_best_weights(pair: Pair, held_out: HeldOut, learning_rate: float) -> None:
    student = pair[1]
    before, start = agreement(student, held_out), weights(student)
    with pytest.raises(KeyboardInterrupt):
        train(pair, held_out, Interrupting(), learning_rate=learning_rate)
    if learning_rate < 1:
        assert agreement(student, held_out) > before
    else:
        assert_same(student, start)


# --- the log


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_log(pair: Pair, held_out: HeldOut, tmp_path: Path) -> None:
    teacher, student = pair
    path = tmp_path / "distill.jsonl"
    data = Crops(bad=range(3, 4))
    began = time.time()
    result = distill(student, teacher, data, held_out, settings(steps=30), log=TrainingLog(path))
    ended = time.time()
    entries = lines(path)
    assert [entry["event"] for entry in entries if entry["event"] != "evaluation"] == [
        "start", "skipped", "stage", "step", "step", "step", "stage", "end"
    ]  # fmt: skip
    curve = [entry["psnr"] for entry in entries if entry["event"] == "evaluation"]
    assert curve == [point["psnr"] for point in result.curve[1:]]
    step = next(entry for entry in entries if entry["event"] == "step" and entry["step"] == 20)
    assert step["stage"] == "end" and step["psnr"] > 10 and 0 < step["learning_rate"] <= 1e-3
    assert step["images_per_second"] > 0
    assert began - 1 <= entries[0]["time"] <= entries[-1]["time"] <= ended + 1  # of rounding
    assert entries[-1]["after"] == result.after


def test_log_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"event": "start"}\n{"event": "st')
    with TrainingLog(path, append=True) as log:
        log.write("resume", step=5)
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 5
    with TrainingLog(path) as log:
        log.write("start")
    assert len(path.read_text().splitlines()) == 1


def test_log_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TrainingLog(tmp_path / "missing" / "log") as log:
        log.write("start")
    assert "training goes on without that log" in capsys.readouterr().err


def test_tensorboard_gets_the_curves(pair: Pair, held_out: HeldOut, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    teacher, student = pair
    log = TrainingLog(tmp_path / "log", tmp_path / "board")
    distill(student, teacher, Crops(), held_out, settings(steps=60, layer_rate=1.0), log=log)
    events = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    assert {"held_out_psnr", "layers/loss", "end/loss", "end/psnr"} <= set(events.Tags()["scalars"])
    assert [point.step for point in events.Scalars("end/loss")] == [20, 30, 40, 50, 60]


# --- agreement


def test_agreement_is_the_mean_psnr_over_images() -> None:
    model = nn.Conv2d(1, 1, 1)
    nn.init.zeros_(model.weight)
    assert model.bias is not None
    nn.init.constant_(model.bias, 0.1)
    near, far = torch.full((1, 1, 4, 4), 0.11), torch.zeros(4, 1, 4, 4)  # 40 dB, and four at 20 dB
    inputs = [(torch.zeros(4, 1, 4, 4),), (torch.zeros(1, 1, 4, 4),)]
    assert agreement(model, HeldOut(inputs, [far, near])) == pytest.approx((4 * 20 + 40) / 5, abs=1e-3)
