"""Runs that are killed, interrupted, resumed, or divided between processes."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from csa2glmha.checkpoint.student import load
from csa2glmha.commands.convert import convert
from csa2glmha.core.errors import Csa2GlmhaError
from csa2glmha.distill import DistillResult, StateFolder, TrainingLog, distill
from csa2glmha.distill import engine as engine_module
from csa2glmha.families.restormer.network import Restormer
from tests.command_line import complaint, run
from tests.conftest import MakeRestormer
from tests.distilling import Crops, Pair, assert_same, make_held_out, settings, weights
from tests.waiting import wait_until

resource = pytest.importorskip("resource", reason="runs are interrupted by signals and limits of Unix")

SETTINGS = {"steps": 40, "learning_rate": 3e-4}


@pytest.fixture(scope="module")
def uninterrupted(originals: Pair) -> tuple[dict[str, torch.Tensor], DistillResult]:
    """Final weights of a run that nothing disturbed, and its result."""
    teacher, student = copy.deepcopy(originals)
    result = distill(student, teacher, Crops(bad=range(9, 11)), make_held_out(teacher), settings(**SETTINGS))
    return weights(student), result


def go_on(pair: Pair, folder: Path, **changes: Any) -> tuple[Restormer, DistillResult]:
    """Run from the newest state, or from the beginning, saving a state after every step."""
    teacher, student = copy.deepcopy(pair)
    states = StateFolder(folder / "state", {"run": "this"}, minutes=0.0)
    state, log = states.load(), TrainingLog(folder / "log", append=True)
    data, chosen = Crops(bad=range(9, 11)), settings(**(SETTINGS | changes))
    held_out = make_held_out(teacher)
    result = distill(student, teacher, data, held_out, chosen, states=states, state=state, log=log)
    return student, result


def counted_calls(count: Callable[[], None]) -> None:
    """From here on ``count`` is called before and after every call that Python code makes."""

    def note(frame: FrameType, event: str, argument: Any) -> None:
        count()

    sys.setprofile(note)


def killed_after(calls: int, pair: Pair, folder: Path) -> None:
    """The same in a process that kills itself after so many calls; forked, so that it starts at once."""

    def work() -> None:
        left = itertools.count(calls, -1)
        counted_calls(lambda: os.kill(os.getpid(), signal.SIGKILL) if next(left) <= 0 else None)
        go_on(pair, folder)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def taken(folder: Path) -> int:
    return max(StateFolder(folder / "state", {}).steps(), default=-1)


def assert_as_uninterrupted(
    student: Restormer, result: DistillResult, expected: tuple[dict[str, torch.Tensor], DistillResult]
) -> None:
    assert_same(student, expected[0])

    def figures(of: DistillResult) -> dict[str, Any]:
        values = of.to_json()
        del values["seconds"]
        for entry in values["curve"]:
            del entry["minutes"]
        for entry in values["stages"]:
            del entry["seconds"]
        return values

    assert figures(result) == figures(expected[1])


@pytest.fixture(scope="module")
def calls(originals: Pair, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many calls a whole run makes that saves its states."""
    number = itertools.count()
    counted_calls(lambda: next(number) and None)
    try:
        go_on(originals, tmp_path_factory.mktemp("counted"))
    finally:
        sys.setprofile(None)
    return next(number)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_it_ends_up_with_the_same_bits(
    seed: int, calls: int, originals: Pair, uninterrupted: Any, tmp_path: Path
) -> None:
    """Four times, anywhere within a step or the saving of a state, sometimes before anything is saved."""
    moments = random.Random(seed)
    for _ in range(4):
        killed_after(moments.randrange(calls // 4), originals, tmp_path)  # all together less than a run
    assert 0 <= taken(tmp_path) < 40
    assert_as_uninterrupted(*go_on(originals, tmp_path), uninterrupted)


def test_resumed_after_its_end_it_has_nothing_to_do(
    originals: Pair, uninterrupted: Any, tmp_path: Path
) -> None:
    assert_as_uninterrupted(*go_on(originals, tmp_path), uninterrupted)
    assert_as_uninterrupted(*go_on(originals, tmp_path), uninterrupted)
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert events.count("start") == events.count("resume") == 1


def test_going_on_from_the_state_before_a_damaged_one(
    originals: Pair, uninterrupted: Any, tmp_path: Path
) -> None:
    stop_after(originals, tmp_path, 20)
    (tmp_path / "state" / "step-00000020" / "tensors.safetensors").write_bytes(b"nonsense")
    assert_as_uninterrupted(*go_on(originals, tmp_path), uninterrupted)


def stop_after(pair: Pair, folder: Path, steps: int, **changes: Any) -> None:
    """Begin, and press Ctrl-C during that step."""

    class Stopping(Crops):
        def batch(self, step: int, first: int, count: int) -> Any:
            if step == steps - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return super().batch(step, first, count)

    teacher, student = copy.deepcopy(pair)
    states = StateFolder(folder / "state", {"run": "this"}, minutes=1e6)
    data, held_out = Stopping(bad=range(9, 11)), make_held_out(teacher)
    with pytest.raises(KeyboardInterrupt):
        distill(student, teacher, data, held_out, settings(**(SETTINGS | changes)), states=states)


def test_a_lowered_rate_is_kept(originals: Pair, tmp_path: Path) -> None:
    changes = {"learning_rate": 0.3, "stages": "end"}
    expected = go_on(originals, tmp_path / "whole", **changes)
    stop_after(originals, tmp_path, 25, **changes)
    state = StateFolder(tmp_path / "state", {"run": "this"}).load()
    assert state is not None and state.position.rate < 1
    assert_as_uninterrupted(*go_on(originals, tmp_path, **changes), (weights(expected[0]), expected[1]))


@pytest.mark.parametrize("steps", [1, 12, 13, 40])
def test_interrupt_ends_the_step_and_saves(
    steps: int, originals: Pair, uninterrupted: Any, tmp_path: Path
) -> None:
    """12 is the last step of the first stage, 40 that of the second."""
    handler = signal.getsignal(signal.SIGINT)
    stop_after(originals, tmp_path, steps)
    assert taken(tmp_path) == steps
    assert signal.getsignal(signal.SIGINT) is handler
    assert_as_uninterrupted(*go_on(originals, tmp_path), uninterrupted)


def test_a_second_interrupt_does_not_wait(originals: Pair, tmp_path: Path) -> None:
    class Impatient(Crops):
        def batch(self, step: int, first: int, count: int) -> Any:
            if step == 3:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)  # it raises here and now
                raise AssertionError("went on")
            return super().batch(step, first, count)

    teacher, student = copy.deepcopy(originals)
    with pytest.raises(KeyboardInterrupt):
        distill(student, teacher, Impatient(), make_held_out(teacher), settings(steps=8))


def test_a_second_sigterm_waits_for_the_step_too(originals: Pair, tmp_path: Path) -> None:
    """A cluster's and a launcher's may both arrive."""

    class Impatient(Crops):
        def batch(self, step: int, first: int, count: int) -> Any:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step, first, count)

    teacher, student = copy.deepcopy(originals)
    states = StateFolder(tmp_path / "state", {"run": "this"}, minutes=1e6)
    with pytest.raises(KeyboardInterrupt):
        distill(student, teacher, Impatient(), make_held_out(teacher), settings(steps=8), states=states)
    assert taken(tmp_path) == 4


def test_a_group_of_processes_told_to_stop_saves_the_state(originals: Pair, tmp_path: Path) -> None:
    """As a launcher does it: SIGTERM to the trainer and its workers alike."""

    def work() -> None:
        os.setsid()
        try:
            go_on(originals, tmp_path, steps=4000, workers=1)
        except KeyboardInterrupt:
            os._exit(130)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    wait_until(lambda: taken(tmp_path) >= 5, process.is_alive)
    before = taken(tmp_path)
    assert process.pid is not None and before >= 5
    os.killpg(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 130 and taken(tmp_path) >= before


def test_training_goes_on_when_states_cannot_be_saved(
    originals: Pair, uninterrupted: Any, tmp_path: Path
) -> None:
    """A limit on file sizes stands in for a full disk: writes fail half-way just the same."""
    stop_after(originals, tmp_path, 20)
    before = {path: path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()}
    teacher, student = copy.deepcopy(originals)
    said: list[str] = []
    states = StateFolder(tmp_path / "state", {"run": "this"}, minutes=0.0)
    data, state, held_out = Crops(bad=range(9, 11)), states.load(), make_held_out(teacher)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        result = distill(
            student, teacher, data, held_out, settings(**SETTINGS), said.append, states=states, state=state
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_as_uninterrupted(student, result, uninterrupted)
    assert {path: path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()} == before
    assert any("cannot save a state" in line and "training goes on" in line for line in said)


def test_weights_that_do_not_fit(originals: Pair, make_restormer: MakeRestormer, tmp_path: Path) -> None:
    stop_after(originals, tmp_path, 2)
    other = make_restormer(dim=16, num_refinement_blocks=0)
    with pytest.raises(Csa2GlmhaError, match="do not fit this student"):
        go_on((other, copy.deepcopy(other).requires_grad_(True)), tmp_path)


# --- the minutes


def test_a_plan_made_from_minutes_is_kept(
    originals: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student = copy.deepcopy(originals)
    clock = [0.0]
    monkeypatch.setattr(engine_module.time, "monotonic", lambda: clock[0])

    class Stopping(Crops):
        def batch(self, step: int, first: int, count: int) -> Any:
            clock[0] += 2.0
            if step == 8:
                os.kill(os.getpid(), signal.SIGINT)
            return super().batch(step, first, count)

    states = StateFolder(tmp_path / "state", {"run": "this"}, minutes=1e6)
    with pytest.raises(KeyboardInterrupt):
        chosen = settings(steps=None, minutes=60.0)
        distill(student, teacher, Stopping(), make_held_out(teacher), chosen, states=states)
    state = StateFolder(tmp_path / "state", {"run": "this"}).load()
    assert state is not None
    # A fifth of an hour, at 2 seconds a step.
    assert state.position.planned == 360
    assert state.position.seconds == pytest.approx(18.0)


# --- several processes


def test_two_processes_train_as_one_with_the_doubled_batch(originals: Pair, tmp_path: Path) -> None:
    teacher, student = copy.deepcopy(originals)
    data = Crops(bad=range(3, 4))
    expected = distill(student, teacher, data, make_held_out(teacher), settings(batch=4, steps=12))
    torch.save((originals, settings(batch=2, steps=12)), tmp_path / "job.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.train_in_processes", str(tmp_path)]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    results = [torch.load(tmp_path / f"result{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in student.state_dict().items():
        assert torch.equal(results[0]["weights"][name], results[1]["weights"][name]), name
        torch.testing.assert_close(results[0]["weights"][name], value, rtol=1e-3, atol=2e-4)
    # A bad batch of one process alone is everybody's: see train_in_processes.
    assert results[0]["skipped"] == results[1]["skipped"] == expected.skipped == 1
    assert results[0]["after"] == results[1]["after"] == pytest.approx(expected.after, abs=1e-2)
    start = originals[1].state_dict()
    assert (
        max(float((value - start[name]).abs().max()) for name, value in student.state_dict().items()) > 3e-3
    )
    assert (tmp_path / "log").read_text().count('"end"') > 0


# --- the commands

QUICK = ["--calibration-crops", "2", "--calibration-size", "32", "--input-size", "32", "--no-latency"]
TRAINING = ["--degrade", "noise:25", "--crop", "32", "--batch", "2", "--learning-rate", "3e-4"]


# The command without its export, which takes most of the time and has tests of its own.
COMMAND = """
from csa2glmha.cli import main
from csa2glmha.commands import convert
from csa2glmha.compression.exporting import Export
from csa2glmha.compression.files import replaced
convert.CONVERSION_STAGES = replaced(Export(lambda *_, **__: None), convert.CONVERSION_STAGES)
main()
"""


# And killed at its third step.
KILLED = """
import os, signal
from csa2glmha.distill.state import StateFolder
save = StateFolder.save
def save_and_die(states, state):
    save(states, state)
    if state.position.taken == 3:
        os.kill(os.getpid(), signal.SIGKILL)
StateFolder.save = save_and_die
"""


def start(log: Path, *arguments: Any, before: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", before + COMMAND, *map(str, arguments)]
    with log.open("a") as stream:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=stream, stderr=stream, text=True, env=environment)


def printed(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    """The same in this process, where PyTorch is loaded already; returns what it printed."""
    code, out, err = run(*arguments, capsys=capsys)
    assert code == 0 and "Traceback" not in err, err
    return out


def wait_for_state(process: subprocess.Popen[str], folder: Path, log: Path) -> None:
    """Wait until its training has begun."""
    states = StateFolder(folder, {})
    wait_until(lambda: states.steps() != [], lambda: process.poll() is None, log.read_text)


def test_convert_killed_and_resumed(
    checkpoint: Path, photos: Path, tmp_path: Path, no_export: None, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    common = ["convert", checkpoint, "--rank", "3", "--ffn", "0.5", "--data", photos, *TRAINING, *QUICK]
    common += ["--distill-steps", "20", "--state-minutes", "0"]
    whole, output = tmp_path / "whole", tmp_path / "out"
    killed = start(log, *common, "-o", output, before=KILLED)
    printed(*common, "-o", whole, capsys=capsys)
    assert killed.wait() == -signal.SIGKILL, log.read_text()
    assert not (output / "student.safetensors").exists()
    other = complaint(*common, "--ffn", "0.75", "-o", output, "--resume", capsys=capsys, code=2)
    assert "--ffn was 0.5 and is 0.75" in other
    printed(*common, "-o", output, "--resume", capsys=capsys)
    assert "Traceback" not in log.read_text()
    assert_same(load(output / "student.safetensors"), weights(load(whole / "student.safetensors")))
    names = {entry.name for entry in whole.iterdir()}
    assert {entry.name for entry in output.iterdir()} == names and "state" not in names
    reports = [json.loads((folder / "report.json").read_text()) for folder in (whole, output)]
    assert reports[0]["quality"] == reports[1]["quality"]
    assert reports[0]["layers"] == reports[1]["layers"]
    assert reports[0]["feed_forwards"] == reports[1]["feed_forwards"]
    assert reports[0]["refit"] == reports[1]["refit"] and reports[0]["refit"]["layers"]
    assert reports[0]["analysis"] == reports[1]["analysis"]
    assert reports[0]["distillation"]["curve"][-1]["psnr"] == reports[1]["distillation"]["curve"][-1]["psnr"]


def test_distill_command_and_what_it_refuses(
    checkpoint: Path, photos: Path, tmp_path: Path, no_export: None, capsys: pytest.CaptureFixture[str]
) -> None:
    log, better = tmp_path / "log", tmp_path / "better.safetensors"
    made = ["convert", checkpoint, "--rank", "3", "--no-distill", *QUICK, "-o", tmp_path / "out"]
    printed(*made, capsys=capsys)
    common = ["distill", tmp_path / "out" / "student.safetensors", "--teacher", checkpoint, "--data", photos]
    common += [*TRAINING, "-o", better]
    begun = [*common, "--distill-steps", "100000"]
    process = start(log, *begun)
    wait_for_state(process, tmp_path / "better-state", log)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130, log.read_text()
    assert "repeat the command with --resume to continue" in log.read_text().splitlines()[-1]

    assert "--resume to continue it" in complaint(*begun, capsys=capsys, code=1)
    changed = complaint(*common, "--distill-steps", "6", "--resume", capsys=capsys, code=2)
    assert "--distill-steps was 100000 and is 6" in changed
    assert "--seed was 0 and is 1" in complaint(*begun, "--resume", "--seed", "1", capsys=capsys, code=2)
    assert not better.exists()

    assert "steps: 6" in printed(*common, "--distill-steps", "6", "--overwrite", capsys=capsys)
    assert load(better).hyperparameters == load(checkpoint).hyperparameters
    assert (tmp_path / "better-distill.jsonl").is_file() and not (tmp_path / "better-state").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--distill-steps", "5", "--distill-minutes", "1"], "exclude each other"),
        (["--precision", "fp16", "--device", "cpu"], "--precision fp16: needs a GPU"),
        (["--no-distill", "--resume"], "nothing to resume"),
        (["--loss", "huber"], "'--loss': 'huber' is not one of 'l1', 'charbonnier', 'l2'"),
        (["--distill-stages", "none"], "'--distill-stages': 'none' is not one of 'end', 'layers', 'both'"),
    ],
)
def test_requests_that_make_no_sense(
    arguments: list[str], expected: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert expected in complaint("convert", checkpoint, "-o", output, *arguments, capsys=capsys, code=2)
    assert not output.exists()


def test_a_budget_replaces_that_of_the_recipe(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("distill_minutes: 6")
    arguments = ["convert", checkpoint, "--recipe", recipe, "--distill-steps", "5", "--data", "/no/such"]
    assert "/no/such" in complaint(*arguments, "-o", tmp_path / "out", capsys=capsys, code=1)


def test_a_ground_truth_that_is_not_there_is_missed_before_any_work(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with pytest.raises(Csa2GlmhaError, match="--truth-weight: these images come without a ground truth"):
        convert(checkpoint, data=photos, truth_weight=0.1, output=output, crop=32)
    assert not output.exists()


def test_tensorboard_that_is_not_installed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(Csa2GlmhaError, match=r"pip install csa2glmha\[tensorboard\]"):
        convert(checkpoint, output=tmp_path / "out", tensorboard=tmp_path / "board")
    assert not (tmp_path / "out").exists()


def test_tensorboard_in_a_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Csa2GlmhaError, match=r"notes\.txt: is a file; give a folder"):
        convert(checkpoint, output=tmp_path / "out", tensorboard=tmp_path / "notes.txt")


def test_convert_is_not_for_several_processes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Csa2GlmhaError, match="convert runs in one process"):
        convert(checkpoint, output=tmp_path / "out")
