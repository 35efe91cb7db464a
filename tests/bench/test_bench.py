"""`bench`: ratios that noise does not move, memory by itself, every kind of file."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from csa2glmha.bench import compare, memory
from csa2glmha.bench.candidates import (
    Settings,
    check_compiled,
    open_candidates,
    warm,
    with_compiled,
    without_failed,
)
from csa2glmha.bench.compare import compare_files
from csa2glmha.bench.profile import profile_modules, read_profile
from csa2glmha.bench.rounds import Latency, Patience, Ratio, time_in_turns
from csa2glmha.checkpoint.student import save_student, student_metadata
from csa2glmha.config.network import NetworkOptions
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import CheckpointError, UsageError
from csa2glmha.core.strict_json import dumps
from csa2glmha.data.inputs.cassi import shifted_mask
from csa2glmha.export.onnx import export_onnx
from csa2glmha.export.openvino import OpenVinoSession
from csa2glmha.export.runtime import provider_name
from csa2glmha.families.mst.network import bake_mask
from csa2glmha.families.registry import build
from csa2glmha.reading.layers import attention_layers
from tests.command_line import run
from tests.conftest import TINY_RESTORMER


class NoisyMachine:
    """A clock and jobs on a machine whose speed wanders, and stalls now and then."""

    def __init__(self, seed: int) -> None:
        self.now, self._speed, self._random = 0.0, 1.0, random.Random(seed)
        self.played: list[float] = []

    def clock(self) -> float:
        return self.now

    def job(self, seconds: float) -> None:
        self.played.append(seconds)
        self._speed = min(max(self._speed * math.exp(self._random.gauss(0, 0.1)), 0.2), 5.0)
        stall = 5.0 if self._random.random() < 0.05 else 0.0
        self.now += seconds * self._speed * self._random.uniform(0.97, 1.03) + stall


@pytest.mark.parametrize("seed", range(6))
def test_ratios_hold_on_a_machine_that_changes_its_speed(seed: int) -> None:
    machine = NoisyMachine(seed)
    runs = [lambda: machine.job(1.0), lambda: machine.job(0.8), lambda: machine.job(1.5)]
    timings = time_in_turns(runs, Patience(seconds=1e9), clock=machine.clock)
    assert timings.converged
    assert [ratio.median for ratio in timings.ratios] == pytest.approx([1, 0.8, 1.5], rel=0.03)
    assert timings.ratios[1].low <= timings.ratios[1].median <= timings.ratios[1].high
    # The times themselves say nothing of the sort: the machine wandered by far more than that.
    first = timings.latencies[0].samples_ms
    assert statistics.quantiles(first, n=4)[2] > 1.2 * statistics.quantiles(first, n=4)[0]


def test_rounds_are_complete_shuffled_and_warm() -> None:
    machine = NoisyMachine(0)
    bars = []
    patience = Patience(tolerance=0.0, fewest=6, seconds=0.0, warmup=2)
    runs = [lambda: machine.job(1.0), lambda: machine.job(2.0)]
    timings = time_in_turns(runs, patience, lambda: bars.append(1), machine.clock)
    assert not timings.converged
    assert len(machine.played) == 2 * (6 + 1) and len(bars) == 6 + 1
    assert timings.latencies[0].runs == 6
    rounds = [tuple(machine.played[at : at + 2]) for at in range(0, 14, 2)]
    assert set(rounds) == {(1.0, 2.0), (2.0, 1.0)}


def test_the_interval_of_a_median() -> None:
    # Of 100 values, the 95 % interval of the median goes from the 41st to the 60th (binomial table).
    ratio = Ratio.of([float(value) for value in range(1, 101)])
    assert (ratio.median, ratio.low, ratio.high) == (50.5, 41.0, 60.0)
    assert ratio.uncertainty == pytest.approx(9.5 / 50.5)
    assert Ratio.of([2.0]) == Ratio(2.0, 2.0, 2.0)


def test_one_model_stops_at_once() -> None:
    machine = NoisyMachine(0)
    timings = time_in_turns([lambda: machine.job(1.0)], Patience(), clock=machine.clock)
    assert timings.converged and timings.latencies[0].runs == Patience().enough
    timings = time_in_turns([lambda: machine.job(20.0)], Patience(), clock=machine.clock)
    assert timings.converged and timings.latencies[0].runs == Patience().fewest


@pytest.mark.parametrize(("job", "rounds", "warm"), [(20.0, 5, 1), (5.0, 9, 1), (4.0, 9, 3), (1.0, 45, 3)])
def test_time_ends_rounds_and_warm_up(job: float, rounds: int, warm: int) -> None:
    now, played = [0.0], []

    def work(seconds: float) -> None:
        played.append(seconds)
        now[0] += seconds

    runs = [lambda: work(job), lambda: work(job / 4)]
    # No number of rounds will do.
    timings = time_in_turns(runs, Patience(tolerance=-1.0), clock=lambda: now[0])
    assert not timings.converged
    counted = timings.latencies[0].runs
    assert (counted, len(played) // 2 - counted) == (rounds, warm)


def identity_onnx(path: Path, height: int | str, width: int | str, channels: int = 3) -> Path:
    """An ONNX file that makes so many copies of its input that its memory can be told."""
    shape = ["batch", channels, height, width]
    value = numpy_helper.from_array(np.ones(1, np.float32), "one")
    names = ["input", "a", "output"]
    nodes = [helper.make_node("Add", [a, "one"], [b]) for a, b in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output")]
    graph = helper.make_graph(nodes, "copies", ends[:1], ends[1:], [value])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_files_of_every_kind_in_json(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = identity_onnx(tmp_path / "copies.onnx", "height", "width")
    arguments = ["bench", checkpoint, other, "--size", 40, "--threads", 1, "--seconds", 0, "--json"]
    code, out, err = run(*arguments, capsys=capsys)
    assert code == 0, err
    found = json.loads(out)
    assert [model["runtime"] for model in found["models"]] == ["PyTorch", "ONNX Runtime"]
    assert [model["input_shapes"] for model in found["models"]] == [[[1, 3, 40, 40]]] * 2
    assert found["models"][0]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert found["threads"] == 1 and found["rounds"] == Patience().fewest
    assert not found["converged"]
    for model in found["models"]:
        assert model["ms"]["low"] <= model["ms"]["median"] <= model["ms"]["high"]
        assert 0 < model["memory"]["model"] < model["memory"]["peak"]


def test_models_of_one_size_decide_for_the_others(checkpoint: Path, tmp_path: Path) -> None:
    fixed = identity_onnx(tmp_path / "fixed.onnx", 24, 40)
    shapes = [each.shapes for each in open_candidates([checkpoint, fixed], Settings())]
    assert shapes == [((1, 3, 24, 40),)] * 2
    shapes = [each.shapes for each in open_candidates([checkpoint, fixed], Settings((32, 32)))]
    assert shapes == [((1, 3, 32, 32),), ((1, 3, 24, 40),)]
    assert open_candidates([checkpoint], Settings())[0].shapes == ((1, 3, 256, 256),)


def test_networks_with_a_mask_get_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build("mst", {"dim": 4, "num_blocks": [1, 1, 1]})
    torch.save(model.state_dict(), tmp_path / "mst.pth")
    baked = bake_mask(model, shifted_mask(torch.ones(16, 24), 4))
    save_student(tmp_path / "baked.safetensors", baked, student_metadata(baked, "0" * 64, 0, {}))
    both = open_candidates([tmp_path / "mst.pth", tmp_path / "baked.safetensors"], Settings())
    assert [each.shapes for each in both] == [((1, 4, 16, 24), (1, 4, 16, 30)), ((1, 4, 16, 24),)]
    for each in both:
        each.run()


def test_memory_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = identity_onnx(tmp_path / "copies.onnx", "height", "width")
    small, large = (memory.measure_apart(path, Settings(size)) for size in ((16, 16), (1024, 2048)))
    assert isinstance(small, memory.Memory) and isinstance(large, memory.Memory)
    # Three channels of 4 bytes: input, intermediate result and output at least.
    assert large.model - small.model > 2 * 3 * 4 * 1024 * 2048
    assert large.peak > large.model
    missing = memory.measure_apart(tmp_path / "missing.onnx", Settings((16, 16)))
    assert isinstance(missing, str) and "missing.onnx" in missing and "no such file" in missing


def test_providers(checkpoint: Path, tmp_path: Path) -> None:
    assert provider_name("CPU", "--provider") == "CPUExecutionProvider"
    with pytest.raises(UsageError, match="--provider abacus: this ONNX Runtime has"):
        open_candidates([identity_onnx(tmp_path / "a.onnx", 8, 8)], Settings(provider="abacus"))
    with pytest.raises(UsageError, match="PyTorch, which takes cpu or cuda"):
        open_candidates([checkpoint], Settings(provider="openvino"))
    if not torch.cuda.is_available():
        with pytest.raises(
            UsageError, match=r"^--provider cuda: .*my model\.pth runs in PyTorch.*--provider cpu"
        ):
            open_candidates([checkpoint], Settings(provider="cuda"))
    with pytest.raises(CheckpointError):
        open_candidates([tmp_path / "none.onnx"], Settings())


def test_latency_summary() -> None:
    latency = Latency.of([4.0, 1.0, 3.0, 2.0, 100.0])
    assert (latency.low_ms, latency.median_ms, latency.high_ms) == (2.0, 3.0, 4.0)
    assert latency.runs == 5
    assert latency.samples_ms == (4.0, 1.0, 3.0, 2.0, 100.0)


def test_files_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Fake:
        input_names = ("input",)

        def __init__(self, path: Path, threads: int | None) -> None:
            self.name = path.name
            assert threads == 1

        def __call__(self, image: torch.Tensor) -> None:
            assert image.shape == (1, 3, 8, 8)
            calls.append(self.name)

    monkeypatch.setattr(compare, "OnnxModel", Fake)
    files = {"teacher": Path("a"), "student": Path("b")}
    patience = Patience(tolerance=1e9, enough=20, warmup=1)
    found = compare_files(files, (1, 3, 8, 8), (1, 1, 8, 8), patience=patience, threads=1)
    assert list(found.latencies) == list(found.ratios) == ["teacher", "student"]
    assert found.ratios["teacher"] == Ratio(1.0, 1.0, 1.0) and found.converged
    assert found.latencies["student"].runs == 20 and len(calls) == 42
    turns = {tuple(calls[at : at + 2]) for at in range(0, len(calls), 2)}
    assert turns == {("a", "b"), ("b", "a")}


def event(name: str, index: int, milliseconds: float) -> dict[str, object]:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "dur": 1000 * milliseconds,
        "args": {"node_index": str(index)},
    }


def test_profiles_are_read_by_module() -> None:
    """What the runtime adds has no module in its name, and two such nodes may have the same name."""
    nodes = ("a.b/Conv", "Reorder", "c/Add", "Reorder", "a.b/Mul")
    warmup, second = (
        [event(name, index, time) for index, (name, time) in enumerate(zip(nodes, times, strict=True))]
        for times in ((50, 50, 50, 50, 50), (1, 2, 4, 8, 16))
    )
    others = [{"cat": "Session", "name": "model_run", "dur": 9}, {"cat": "Node", "name": "a.b/Conv_fence"}]
    profile = read_profile([*warmup, *others, *second], warmup=1)
    assert profile.runs == ({"a.b": 19.0, "c": 12.0},)
    assert profile.nodes == {"a.b": ("a.b/Conv", "a.b/Mul"), "c": ("c/Add",)}


@pytest.mark.parametrize(
    ("name", "settings", "baked"),
    [
        ("restormer", TINY_RESTORMER, False),
        ("mst", {"dim": 8, "num_blocks": [1, 1]}, False),
        ("mst", {"dim": 8, "num_blocks": [1, 1]}, True),
        ("mst_plus_plus", {"n_feat": 8, "stage": 1, "num_blocks": [1, 1, 1]}, False),
    ],
)
def test_profile_of_a_network_has_its_layers(
    tmp_path: Path, name: str, settings: dict[str, object], baked: bool
) -> None:
    model = build(name, settings).eval()
    layers = attention_layers(model)
    assert layers
    shapes = model.input_shapes(16, 16)
    if baked:
        model = bake_mask(model, shifted_mask(torch.rand(16, 16), 8))
    export_onnx(model, tmp_path / "tiny.onnx")
    profile = profile_modules(tmp_path / "tiny.onnx", *shapes, runs=2)
    assert len(profile.runs) == 2
    for layer in layers:
        mine = [part for part in profile.nodes if f"{part}.".startswith(f"{layer}.")]
        assert mine and all(sum(run.get(part, 0.0) for part in mine) > 0 for run in profile.runs)


def test_settings_reach_the_process_that_measures_memory() -> None:
    network = NetworkOptions(network="own.py:build", network_arg=("dim=8",), example=("1x3x16x24",))
    for settings in (Settings(), Settings((8, 24), 1, "cpu", "params", network)):
        sent = json.loads(dumps(memory._settings_to_json(settings)))
        assert memory._settings_from_json(sent) == settings
    options = make_options(network="own.py:build")
    sent = json.loads(dumps(memory._settings_to_json(Settings(network=options))))
    assert memory._settings_from_json(sent).network == NetworkOptions(network="own.py:build")


def test_every_file_runs_in_the_runtimes_that_take_it(checkpoint: Path, tmp_path: Path) -> None:
    file = identity_onnx(tmp_path / "a.onnx", 8, 8)
    found = open_candidates([file, checkpoint], Settings((8, 8), runtimes=("torch", "onnxruntime")))
    assert [(each.path, each.runtime) for each in found] == [(file, "ONNX Runtime"), (checkpoint, "PyTorch")]
    with pytest.raises(UsageError, match="--runtime abacus: unknown; give onnxruntime, openvino"):
        open_candidates([file], Settings(runtimes=("abacus",)))
    with pytest.raises(UsageError, match=r"--runtime torch: none of them runs .*a\.onnx"):
        open_candidates([file], Settings(runtimes=("torch",)))


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_is_compiled_before_it_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = identity_onnx(tmp_path / "a.onnx", 8, 8)
    with pytest.raises(UsageError, match=r"^--provider azure: is ONNX Runtime's, OpenVINO runs on the CPU"):
        monkeypatch.setattr(
            "csa2glmha.export.runtime.ort.get_available_providers",
            lambda: ["AzureExecutionProvider", "CPUExecutionProvider"],
        )
        open_candidates([file], Settings((8, 8), provider="azure", runtimes=("openvino",)))
    (candidate,) = open_candidates([file], Settings((8, 8), runtimes=("openvino",)))
    compiled: list[object] = []
    right = OpenVinoSession._compile

    def counted(self: OpenVinoSession, shapes: Any) -> Any:
        compiled.append(shapes)
        return right(self, shapes)

    monkeypatch.setattr(OpenVinoSession, "_compile", counted)
    warm([candidate])
    assert compiled == [((1, 3, 8, 8),)]
    candidate.run()
    assert len(compiled) == 1


def test_compiling_needs_a_compiler(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csa2glmha.bench.candidates.shutil.which", lambda name: None)
    with pytest.raises(UsageError, match="torch-compile: no C\\+\\+ compiler"):
        open_candidates([checkpoint], Settings((16, 16), runtimes=("torch-compile",)))


@pytest.mark.parametrize("fails", [False, True])
def test_pytorch_by_name_is_compiled_too(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    def compiled(model: Any) -> Any:
        def call(*inputs: Any) -> Any:
            if fails:
                raise RuntimeError("no such operator\nat some place")
            return model(*inputs)

        return call

    monkeypatch.setattr("csa2glmha.bench.candidates.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("csa2glmha.bench.candidates.torch.compile", compiled)
    wanted = with_compiled(Settings((16, 16), runtimes=("torch",)))
    assert wanted.runtimes == ("torch", "torch-compile")
    found = without_failed(open_candidates([checkpoint], wanted))
    assert [each.runtime for each in found] == ["PyTorch", *([] if fails else ["PyTorch, compiled"])]
    assert ("does not compile it, left out: no such operator" in capsys.readouterr().err) == fails
    named = open_candidates([checkpoint], Settings((16, 16), runtimes=("torch-compile",)))
    if fails:
        with pytest.raises(UsageError, match=r"^--runtime torch-compile: PyTorch does not compile .*no such"):
            check_compiled(named)
    else:
        check_compiled(named)
    # Nobody asked for minutes of compiling.
    assert with_compiled(Settings()) == Settings()
    monkeypatch.setattr("csa2glmha.bench.candidates.shutil.which", lambda name: None)
    assert with_compiled(Settings(runtimes=("torch",))).runtimes == ("torch",)
