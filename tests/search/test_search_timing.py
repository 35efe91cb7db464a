"""A budget of time: what layers take is read from profiles, whatever the machine does meanwhile."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from csa2glmha.attention.glmha import GLMHA
from csa2glmha.bench.compare import TEACHER, FileTimings
from csa2glmha.bench.profile import ModuleProfile
from csa2glmha.bench.rounds import Latency, Patience, Ratio
from csa2glmha.core.errors import ExportError
from csa2glmha.export.onnx import ExportReport
from csa2glmha.families.transposed.blocks import GDFN
from csa2glmha.metrics.complexity import count_complexity
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.layers import attention_layers
from csa2glmha.reading.sizes import Sizes
from csa2glmha.search.choices import LOGITS, VALUES, all_choices, sizes_of
from csa2glmha.search.costs import StudentCount, count_costs
from csa2glmha.search.stopwatch import Stopwatch
from csa2glmha.search.timing import disturbed, layer_times
from tests.conftest import MakeRestormer

#: What sets this network apart from the smallest: ranks to choose among, and layers that are alike.
WIDER: dict[str, Any] = {"dim": 16, "num_blocks": [2, 1, 1, 1], "norm_bias": False}
FRAME = (32, 32)


def profile(speeds: list[float], **modules: tuple[float, tuple[str, ...]]) -> ModuleProfile:
    """Runs at these speeds of modules, whose names have "_" for ".", with their times and nodes."""
    named = {name.replace("_", "."): value for name, value in modules.items()}
    return ModuleProfile(
        tuple({name: time * speed for name, (time, _) in named.items()} for speed in speeds),
        {name: nodes for name, (_, nodes) in named.items()},
    )


def test_layers_are_compared_at_the_same_speed() -> None:
    """The norm beside the layer differs between the two networks, the feed-forward part does not."""
    shared: dict[str, tuple[float, tuple[str, ...]]] = {
        "a_0_ffn": (10.0, ("Conv",)),
        "a_0": (1.0, ("Add",)),
        "out": (4.0, ("Conv",)),
    }
    full = profile([1, 1, 9], **shared, a_0_norm=(2.0, ("Mul",)), a_0_attn=(5.0, ("MatMul",)))
    low = profile(
        [3, 1.5, 2], **shared, a_0_norm=(3.0, ("Mul", "Sum")), a_0_attn=(1.0, ()), a_0_attn_part=(1.0, ())
    )
    found = layer_times({"full": full, "low": low}, "full", ["a.0.attn"])
    assert found["full"]["a.0.attn"] == pytest.approx(7.0)
    assert found["low"]["a.0.attn"] == pytest.approx(5.0)
    assert disturbed({"full": full, "low": low}, ["a.0.attn"]) == ["low"]
    same = layer_times({"full": full}, "full", ["a.0.attn"])
    assert same["full"]["a.0.attn"] == pytest.approx(5.0)


class MadeUp:
    """A machine whose speed is another one in every run.

    Attributes:
        shapes: of the inputs that networks must be run on.
        rewritten: networks have a deployment form.
    """

    def __init__(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        self.shapes, self.rewritten = shapes, True
        self._exported: dict[Path, RestorationModel] = {}
        self._speed = random.Random(0)
        self._asked: Counter[str] = Counter()

    def export(
        self,
        model: RestorationModel,
        path: Path,
        *,
        plain: bool = False,
        shape: Sequence[int] | None = None,
        overwrite: bool = False,
    ) -> ExportReport:
        # PyTorch's exporter, of the teacher alone, writes the size that is timed.
        assert shape == (self.shapes[0] if plain else None)
        self._exported[path] = model
        path.touch()
        notes = () if self.rewritten else ("because of this",)
        return ExportReport(path, 18, self.rewritten, False, notes, (), 0)

    def profile(self, path: Path, *shapes: tuple[int, ...], runs: int) -> ModuleProfile:
        assert shapes == self.shapes
        own = layer_milliseconds(self._exported[path])
        self._asked[path.stem] += 1
        made = []
        for _ in range(runs):
            factor = self._speed.uniform(0.5, 3)
            run = {name: factor * time for name, time in {**own, "out": 3.0}.items()}
            if path.stem == "values 2" and self._asked[path.stem] == 1:
                # Something else takes the machine's memory, which attention needs more of than the rest.
                run = {name: (90 if name in own else 9) * time for name, time in run.items()}
            made.append(run)
        return ModuleProfile(tuple(made), dict.fromkeys((*own, "out"), ("Conv",)))

    def compare(self, files: Mapping[str, Path], *shapes: tuple[int, ...], patience: Patience) -> FileTimings:
        assert shapes == self.shapes
        times = {
            name: 50.0 if name == TEACHER else 3.0 + sum(layer_milliseconds(self._exported[path]).values())
            for name, path in files.items()
        }
        return FileTimings(
            {name: Latency.of([time]) for name, time in times.items()},
            {name: Ratio(time / 50.0, 0.0, 1.0) for name, time in times.items()},
            True,
        )


@pytest.fixture
def machine(make_restormer: MakeRestormer) -> MadeUp:
    return MadeUp(make_restormer(**WIDER).input_shapes(*FRAME))


@pytest.fixture
def stopwatch(make_restormer: MakeRestormer, machine: MadeUp, tmp_path: Path) -> Stopwatch:
    return Stopwatch(make_restormer(**WIDER), FRAME, tmp_path, machine=machine)


def layer_milliseconds(model: RestorationModel) -> dict[str, float]:
    """Of a made-up machine: so much for every rank, and something for what both sides need."""
    times = {}
    for name, module in model.named_modules():
        if isinstance(module, GLMHA):
            config = module.config
            width = config.channels / 16
            logits = 0.0 if config.logits == "modes" else config.rank_k + config.rank_q
            times[name] = width * (logits + config.rank_v) / 50 + (0.0 if config.full else 0.2 * width)
        if isinstance(module, GDFN):
            times[name] = module.project_out.in_channels / 100
    return times


def test_times_foretell_students(stopwatch: Stopwatch, make_restormer: MakeRestormer) -> None:
    teacher = make_restormer(**WIDER)
    choices = all_choices(attention_layers(teacher), feed_forwards(teacher), ())

    def shapes(model: RestorationModel) -> tuple[tuple[int, ...], ...]:
        return model.input_shapes(*FRAME)

    before = count_complexity(teacher, *shapes(teacher))
    count = StudentCount(teacher, shapes)
    times = stopwatch.times(choices, count_costs(choices, before, count))
    assert times.teacher == 50.0
    for key, each in choices.items():
        assert len(times.saved[key]) == len(each) and times.saved[key][0] == 0.0
    for index in (1, 2):
        picks = [min(index, len(each) - 1) for each in choices.values()]
        saved = sum(times.saved[key][pick] for key, pick in zip(choices, picks, strict=True))
        share = stopwatch.share(sizes_of(teacher, choices, picks))
        assert times.lossless - saved == pytest.approx(50.0 * share, rel=1e-6)
    # Layers that are alike have the same times, and not those of others.
    first, second = times.saved["encoder_level1.0.attn", VALUES], times.saved["encoder_level1.1.attn", VALUES]
    assert first == pytest.approx(second)
    assert first[1] != pytest.approx(times.saved["latent.0.attn", VALUES][1])
    assert times.saved["latent.0.attn", LOGITS][-1] > times.saved["latent.0.attn", LOGITS][1] > 0


def test_layers_beside_each_other_are_apart() -> None:
    """Of two in one module each has its own time; one at the top has nothing beside it."""
    full = profile([1], a_x=(1.0, ("A",)), a_y=(2.0, ("A",)), z=(4.0, ("A",)), b=(8.0, ("A",)))
    low = profile([1], a_x=(0.5, ("B",)), a_y=(1.0, ("B",)), z=(2.0, ("B",)), b=(8.0, ("B",)))
    found = layer_times({"full": full, "low": low}, "full", ["a.x", "a.y", "z"])
    assert found == {
        "full": {"a.x": 1.0, "a.y": 2.0, "z": 4.0},
        "low": {"a.x": 0.5, "a.y": 1.0, "z": 2.0},
    }


def test_students_without_a_deployment_form_are_not_timed(machine: MadeUp, stopwatch: Stopwatch) -> None:
    machine.rewritten = False
    with pytest.raises(ExportError, match="because of this"):
        stopwatch.share(Sizes())
