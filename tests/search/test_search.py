"""Rank search: its parts, and the command."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csa2glmha.bench.compare import TEACHER, FileTimings
from csa2glmha.bench.rounds import Latency, Ratio
from csa2glmha.checkpoint import read_checkpoint
from csa2glmha.commands import convert as pipeline
from csa2glmha.commands.convert import convert
from csa2glmha.compression.files import TimeFiles, replaced
from csa2glmha.config.budget import Budget, parse_amount
from csa2glmha.config.options import make_options
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import UsageError
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.initialize.configure import layer_config, plan_layers
from csa2glmha.initialize.feedforward import HiddenMoments
from csa2glmha.initialize.residual import skippable
from csa2glmha.metrics.complexity import count_complexity
from csa2glmha.metrics.outputs import IMAGES
from csa2glmha.metrics.outputs import LOGITS as LOGITS_OF_CLASSES
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.layers import attention_layers
from csa2glmha.reading.sizes import Sizes
from csa2glmha.report.schema_search import LayerChoice, Sensitivity
from csa2glmha.search import choices as choices_module
from csa2glmha.search import plan
from csa2glmha.search.choices import (
    HIDDEN,
    LAYER,
    LOGITS,
    VALUES,
    RankChoice,
    all_choices,
    layer_choices,
    sizes_of,
)
from csa2glmha.search.costs import ChoiceCosts, StudentCount, count_costs
from csa2glmha.search.plan import gather_all, sensitivity_cache, student_of
from csa2glmha.search.probes import NoGradientError, errors_of_changes, errors_of_networks
from csa2glmha.search.report import (
    describe_found,
    describe_sensitivity,
    searched_curve,
    sensitivity_report,
    uniform_curve,
)
from csa2glmha.search.search import check_reachable, search_amount
from csa2glmha.search.sensitivity import (
    Known,
    Measured,
    SensitivityCache,
    agreement_of_prediction,
    measure_sensitivity,
)
from csa2glmha.search.space import SearchSpace, least_total
from csa2glmha.search.stopwatch import Times
from csa2glmha.search.trials import search_drop, search_latency
from tests.command_line import run
from tests.conftest import smooth_images

pytestmark = pytest.mark.usefixtures("quick_factors")

FRAME = (32, 32)
HELD_OUT = [(smooth_images(2, 98),), (smooth_images(2, 99),)]


def shapes(model: Any) -> tuple[tuple[int, ...], ...]:
    found: tuple[tuple[int, ...], ...] = model.input_shapes(*FRAME)
    return found


@pytest.fixture(scope="module")
def teacher(wide_restormer: Restormer) -> RestorationModel:
    return wide_restormer


@pytest.fixture(scope="module", autouse=True)
def few_ranks() -> Iterator[None]:
    """Every rank of every layer takes time to measure; some of each kind will do here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(choices_module, "KEY_RANKS", (8, 4))
        patched.setattr(choices_module, "QUERY_AND_KEY_RANKS", ((8, 8),))
        patched.setattr(choices_module, "VALUE_RANKS", (12, 8, 4))
        yield


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, ...]]:
    return [(smooth_images(2, seed),) for seed in range(4)]


@pytest.fixture(scope="module")
def space(teacher: RestorationModel, batches: list[tuple[Tensor, ...]]) -> SearchSpace:
    allowed = skippable(teacher, (smooth_images(1, 97),))
    choices = all_choices(attention_layers(teacher), feed_forwards(teacher), allowed)
    known = gather_all(teacher, batches, widths=True)
    measured = measure_sensitivity(teacher, choices, HELD_OUT, IMAGES, known)
    count = StudentCount(teacher, shapes)
    before = count_complexity(teacher, *shapes(teacher))
    return SearchSpace(choices, count_costs(choices, before, count), measured, count)


def test_choices_of_a_layer(teacher: RestorationModel) -> None:
    for name, layer in attention_layers(teacher).items():
        sides = layer_choices(name, layer.form)
        for side, choices in sides.items():
            assert choices[0].full and not any(choice.full for choice in choices[1:])
            assert len({choice.config for choice in choices}) == len(choices)
            for choice in choices[1:]:
                config = choice.config
                ranks = (config.rank_v,) if side == VALUES else (config.rank_k,)
                assert all(rank * config.heads % 8 == 0 for rank in ranks)
        assert sides[LOGITS][-1].config.logits == "modes"
        assert {choice.config.rank_k for choice in sides[VALUES]} == {layer.form.head_channels}


def test_sizes_of_picked_choices(teacher: RestorationModel) -> None:
    """Both sides of a layer make one configuration; a layer that is left out has neither that nor a width."""
    layers, narrowed = attention_layers(teacher), feed_forwards(teacher)
    (skipped, kept), (gone, thin) = list(layers)[-2:], list(narrowed)[-2:]
    choices = all_choices(layers, narrowed, [skipped, kept, gone, thin])
    wanted = {
        (skipped, LOGITS): 1,
        (skipped, LAYER): 1,
        (kept, LOGITS): -1,
        (kept, VALUES): -1,
        (gone, HIDDEN): -1,
        (thin, HIDDEN): 2,
    }
    sizes = sizes_of(teacher, choices, [wanted.get(key, 0) for key in choices])
    assert set(sizes.skipped) == {skipped, gone}
    assert sizes.widths == {thin: choices[thin, HIDDEN][2].width}
    assert sizes.widths[thin] < narrowed[thin].hidden
    ranks = Ranks(k=0, v=choices[kept, VALUES][-1].ranks.v)
    assert choices[kept, LOGITS][-1].ranks.k == 0 and ranks.v
    configs = plan_layers(layers, Ranks()) | {kept: layer_config(layers[kept].form, ranks)}
    del configs[skipped]
    assert sizes.configs == configs


def test_costs_of_both_sides_add_up(teacher: RestorationModel, space: SearchSpace) -> None:
    layers = attention_layers(teacher)
    widths = {key: len(each) // 2 for key, each in space.choices.items() if key[1] == HIDDEN}
    half = {key[0]: space.choices[key][index].width for key, index in widths.items()}
    both = StudentCount(teacher, shapes)(Sizes(plan_layers(layers, Ranks(k=8, v=8)), half))
    saved = sum(space.costs.saved[key][index][0] for key, index in widths.items())
    for key, choices in space.choices.items():
        index = next((i for i, choice in enumerate(choices) if choice.label in ("q full k 8", "v 8")), 0)
        saved += space.costs.saved[key][index][0]
    assert both.macs == pytest.approx(space.costs.lossless[0] - saved, rel=2e-3)


def test_derivatives_tell_what_small_changes_do(teacher: RestorationModel) -> None:
    """192 random numbers are a thirteenth off: two kinds of layers, for images and for logits of classes."""
    names = ["encoder_level2.0.attn", "decoder_level1.0.ffn"]
    images = [(smooth_images(1, 100 + seed),) for seed in range(24)]
    for model, outputs in ((teacher, IMAGES), (Classifier(teacher).eval(), LOGITS_OF_CLASSES)):
        inside = "body." if model is not teacher else ""
        changes = {inside + name: [Shifted(model.get_submodule(inside + name), 1e-3)] for name in names}
        foretold = errors_of_changes(model, changes, images, outputs)
        run = errors_of_networks(model, changes, images)
        for name in changes:
            assert foretold[name] == pytest.approx(run[name], rel=0.2)


class Shifted(nn.Module):
    """A layer whose output differs by a share of itself, turned about a pixel."""

    def __init__(self, layer: nn.Module, share: float) -> None:
        super().__init__()
        self.layer, self.share = layer, share

    def forward(self, x: Tensor) -> Tensor:
        output = self.layer(x)
        return output + self.share * output.roll((1, 1), (2, 3))


class Classifier(nn.Module):
    """Logits of three classes: means of the channels."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.body(x).mean((2, 3))


def test_networks_without_derivatives_are_run(
    teacher: RestorationModel, batches: list[tuple[Tensor, ...]]
) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = teacher

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    changes = {"body.latent.0.attn": [Shifted(teacher.get_submodule("latent.0.attn"), 1e-3)]}
    with pytest.raises(NoGradientError):
        errors_of_changes(Frozen(), changes, batches[:1], IMAGES)


@pytest.mark.parametrize("side", [LOGITS, VALUES, HIDDEN, LAYER])
def test_derivatives_foretell_errors_of_networks(
    teacher: RestorationModel, space: SearchSpace, batches: list[tuple[Tensor, ...]], side: str
) -> None:
    """To first order: of weights that were not trained, no nearer than to a factor of two."""
    keys = [key for key in space.choices if key[1] == side][:2]
    held_out = [(smooth_images(2, 100 + seed),) for seed in range(8)]
    some = {key: [space.choices[key][0], space.choices[key][-1]] for key in keys}
    known = gather_all(teacher, batches, widths=True)
    foretold = measure_sensitivity(teacher, some, held_out, IMAGES, known)
    for key in keys:
        student = student_of(teacher, sizes_of(teacher, {key: some[key]}, [1]), known)
        with torch.no_grad():
            errors = [float((student(x) - teacher(x)).square().mean()) for (x,) in held_out]
        assert foretold[key][0].error == 0
        ratio = foretold[key][1].error / (sum(errors) / len(errors))
        assert 0.5 < ratio < 2


def test_lower_ranks_cost_more_agreement_and_fewer_macs(space: SearchSpace) -> None:
    for key, choices in space.choices.items():
        if key[1] == VALUES:
            errors = [each.error for each in space.measured[key]]
            assert errors[0] == 0 and errors[-1] == max(errors)
            macs = [saved[0] for saved in space.costs.saved[key]]
            assert macs == sorted(macs) and macs[0] == 0
        assert len(choices) == len(space.measured[key])
    agreement = agreement_of_prediction(space.measured)
    assert agreement[VALUES]["within_layers"] > 0.8


def test_found_ranks_keep_to_the_budget_and_beat_uniform_ones(
    teacher: RestorationModel, space: SearchSpace
) -> None:
    for point in uniform_curve(space):
        budget = Budget("macs", point.macs, absolute=True)
        found = search_amount(teacher, space, budget)
        assert found.report.reached.macs <= point.macs
        assert found.report.predicted.error <= point.error * (1 + 1e-9)
        assert 0 <= found.report.gap < 1
        skipped = found.sizes.skipped
        assert set(found.sizes.configs) == set(attention_layers(teacher)) - set(skipped)
        assert StudentCount(teacher, shapes)(found.sizes).macs == found.report.reached.macs


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_searched_ranks_beside_uniform_ones(space: SearchSpace, kind: str) -> None:
    uniform, searched = uniform_curve(space), searched_curve(space, uniform_curve(space), kind)
    assert [point.rank for point in searched] == [point.rank for point in uniform]
    for one, each in zip(uniform, searched, strict=True):
        assert getattr(each, kind) <= getattr(one, kind) and each.error <= one.error * (1 + 1e-9)
        assert each.psnr_to_teacher == pytest.approx(-10 * math.log10(each.error))


def test_reports_describe_choices(teacher: RestorationModel, space: SearchSpace) -> None:
    """Searches and analyses alike: ranks as numbers, None where they are full; no decibels of no error."""
    found = search_amount(teacher, space, Budget("macs", 0.9)).report.choices
    sensitivity = sensitivity_report(space.choices, space.measured, 8).choices
    shared = [
        LayerChoice(**{name: getattr(each, name) for name in LayerChoice.model_fields}) for each in found
    ]
    assert [each for each in shared if each.error or each.psnr_to_teacher] == list(sensitivity)
    for each in found:
        full = each.macs_saved == 0 and each.error == 0
        assert (each.psnr_to_teacher is None) == full
        told = (each.rank_q, each.rank_k, each.rank_v, each.width)
        assert told != (None,) * 4 or full or each.ranks == "skipped"
        if each.side == VALUES and not full:
            assert each.ranks == f"v {each.rank_v}"
    assert sum(each.picked for each in found) == len(space.choices)


def test_a_skipped_layer_has_no_sides(teacher: RestorationModel, space: SearchSpace) -> None:
    """At the least budget everything is skipped that can be; nothing is counted twice."""
    amounts = space.amounts("macs")
    cheapest = space.allocate(amounts, amounts, space.least(amounts))
    sizes = sizes_of(teacher, space.choices, cheapest.picks)
    assert set(sizes.skipped) == set(skippable(teacher, (smooth_images(1, 97),)))
    assert not sizes.configs and not sizes.widths
    counted = StudentCount(teacher, shapes)(sizes).macs
    assert counted == space.costs.lossless[0] + cheapest.cost
    for number, key in enumerate(space.choices):
        assert (
            cheapest.picks[number]
            == {LOGITS: 0, VALUES: 0, LAYER: 1, HIDDEN: len(space.choices[key]) - 1}[key[1]]
        )


def test_widths_and_depth_reach_what_ranks_cannot(teacher: RestorationModel, space: SearchSpace) -> None:
    ranks = {key: each for key, each in space.choices.items() if isinstance(each[0], RankChoice)}
    with pytest.raises(UsageError, match="the smallest is"):
        check_reachable(teacher, ranks, space.costs, Budget("macs", 0.4), space.count)
    found = search_amount(teacher, space, Budget("macs", 0.4))
    assert 0.3 < found.report.reached.macs / space.costs.teacher[0] <= 0.4
    assert found.sizes.widths


def test_correlations_of_constant_curves_are_unknown() -> None:
    def curve(*pairs: tuple[float, float]) -> list[Measured]:
        return [Measured(error, predicted) for predicted, error in pairs]

    rising = curve((1, 1), (2, 2), (3, 3))
    constant = curve((1, 2), (2, 2), (3, 2))
    found = agreement_of_prediction({("a", VALUES): constant, ("a", LOGITS): rising, ("b", LOGITS): constant})
    assert (found[VALUES]["within_layers"], found[VALUES]["overall"]) == (None, None)
    assert found[LOGITS]["within_layers"] == pytest.approx(1.0)
    shown = describe_sensitivity(Sensitivity.model_validate({"crops": 8, "choices": [], "agreement": found}))
    assert "not known within a layer" in shown and "nan" not in shown


def test_measurements_are_kept_and_not_made_again(
    teacher: RestorationModel, space: SearchSpace, batches: list[tuple[Tensor, ...]], tmp_path: Path
) -> None:
    path = tmp_path / "sensitivity.jsonl"
    known = Known(batches, gather_all(teacher, batches).statistics, HiddenMoments({}, {}))
    some = {key: choices[:2] for key, choices in list(space.choices.items())[:3]}

    def measure(identity: str) -> SensitivityCache:
        cache = SensitivityCache(path, {"teacher": identity})
        cache.open()
        measure_sensitivity(teacher, some, HELD_OUT, IMAGES, known, cache)
        return cache

    measure("a")
    with path.open("a") as file:
        file.write('{"x": 1}\n{"choice": "cut o')  # a line of something else, and the end of a process
    lines = path.read_text().splitlines()
    kept = json.loads(lines[0])
    lines[0] = json.dumps(kept | {"error": 123.0})
    path.write_text("\n".join(lines))
    cache = measure("a")
    assert cache.known[kept["choice"]].error == 123.0 and len(cache.known) == 3
    assert measure("b").known[kept["choice"]].error != 123.0
    # Nothing of the first is lost by the second, nor by one that goes on beside it.
    cache.add(next(choice for choice in space.choices[next(iter(some))] if choice.full), Measured(7.0, 0.0))
    again = measure("a")
    assert again.known[kept["choice"]].error == 123.0 and len(again.known) == 4
    assert len(measure("b").known) == 3


def test_measurements_are_not_written_through_a_link(
    space: SearchSpace, wide_checkpoint: Path, tmp_path: Path
) -> None:
    precious, path = tmp_path / "precious", tmp_path / f"{wide_checkpoint.stem}-sensitivity.jsonl"
    precious.write_text("precious")
    path.symlink_to(precious)
    choice = next(iter(space.choices.values()))[0]
    teacher = read_checkpoint(wide_checkpoint)
    for known in (0, 1):
        cache = sensitivity_cache(tmp_path / "out", teacher, make_options(**QUICK, macs=0.8))
        assert cache.path == path
        cache.open()
        assert len(cache.known) == known
        cache.add(choice, Measured(1.0, 2.0))
    assert precious.read_text() == "precious" and not path.is_symlink()
    assert len(path.read_text().splitlines()) == 2


def test_measurements_of_other_data_are_others(wide_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"1")

    def key(**changes: Any) -> Any:
        options = make_options(data=folder, **(QUICK | {"macs": 0.8} | changes))
        return sensitivity_cache(tmp_path / "out", read_checkpoint(wide_checkpoint), options).identity

    first = key()
    assert key() == first and key(macs=0.7) == first
    assert key(degrade="noise:50") != first and key(seed=1) != first
    (folder / "a.png").write_bytes(b"12")
    assert key() != first


def errors_of(teacher: RestorationModel, space: SearchSpace, sizes: Sizes) -> Iterator[float]:
    """What was measured of each part of a student."""
    for key, choices in space.choices.items():
        name, side = key
        for choice, measured in zip(choices, space.measured[key], strict=True):
            if side in (LOGITS, VALUES):
                config = sizes.configs.get(name, choices[0].config)
                parts = ("rank_v",) if side == VALUES else ("rank_q", "rank_k", "logits")
                chosen = all(getattr(choice.config, part) == getattr(config, part) for part in parts)
            elif side == HIDDEN:
                width = 0 if name in sizes.skipped else sizes.widths.get(name, choice.hidden)
                chosen = choice.width == width
            else:
                chosen = choice.skipped == (name in sizes.skipped)
            if chosen:
                yield measured.error


def test_drop_stays_within_what_was_asked_and_comes_close(
    teacher: RestorationModel, space: SearchSpace
) -> None:
    """The PSNR here is what a real one is close to: errors that add up, on top of the teacher's own."""
    own = 30.0
    room = 10 ** (-own / 10)

    def psnr_of(sizes: Sizes) -> float:
        return -10 * math.log10(room + sum(errors_of(teacher, space, sizes)))

    for target in (0.01, 0.1, 0.3):
        found = search_drop(teacher, space, Budget("max_drop", target), own, psnr_of).report.reached
        assert 0.5 * target < found.drop <= target
    # Room for everything: the cheapest there is.
    found = search_drop(teacher, space, Budget("max_drop", 60.0), own, psnr_of).report.reached
    assert found.macs <= space.costs.lossless[0] + space.least(space.amounts("macs"))
    # No room for even the smallest loss: nothing is approximated.
    found = search_drop(teacher, space, Budget("max_drop", 1e-9), own, psnr_of).report.reached
    assert found.drop == 0.0 and found.macs == space.costs.lossless[0]


def test_a_budget_of_parameters_is_counted_on_whole_students(
    teacher: RestorationModel, space: SearchSpace
) -> None:
    """Sides of a layer share a little; what only a count shows to be within reach is reached."""
    kept = {key: each for key, each in space.choices.items() if key[1] in (LOGITS, VALUES)}
    space = replace(
        space, choices=kept, costs=replace(space.costs, saved={k: space.costs.saved[k] for k in kept})
    )
    cheapest = [max(range(len(s)), key=lambda i: s[i][1]) for s in space.costs.saved.values()]
    added = space.costs.lossless[1] - sum(
        saved[pick][1] for saved, pick in zip(space.costs.saved.values(), cheapest, strict=True)
    )
    sizes = sizes_of(teacher, space.choices, cheapest)
    least = StudentCount(teacher, shapes)(sizes).params
    assert least < added
    budget = Budget("params", (least + added) / 2, absolute=True)
    check_reachable(teacher, space.choices, space.costs, budget, space.count)
    reached = search_amount(teacher, space, budget).report.reached.params
    assert least <= reached <= budget.target
    with pytest.raises(UsageError, match="the smallest is"):
        check_reachable(teacher, space.choices, space.costs, Budget("params", least - 1, True), space.count)
    # And what is left over is spent.
    roomy = Budget("params", 0.99)
    report = search_amount(teacher, space, roomy).report
    assert 0.985 * space.costs.teacher[1] < report.reached.params <= 0.99 * space.costs.teacher[1]


def counted_times(space: SearchSpace) -> Times:
    """A millisecond for every 100 000 MACs."""
    saved = {key: [each[0] / 1e5 for each in saved] for key, saved in space.costs.saved.items()}
    return Times(space.costs.teacher[0] / 1e5, space.costs.lossless[0] / 1e5, saved)


@pytest.mark.parametrize("slower", [1.1, 0.95])
def test_time_is_checked_on_the_student_that_was_found(
    teacher: RestorationModel, space: SearchSpace, slower: float
) -> None:
    """Students turn out slower, or faster, than the model of their time says."""

    def share(sizes: Sizes) -> float:
        return slower * StudentCount(teacher, shapes)(sizes).macs / space.costs.teacher[0]

    found = search_latency(teacher, space, Budget("latency", 0.9), counted_times(space), share).report
    tried = found.reached.tried
    assert abs(tried[0].measured / 0.9 - 1) > 0.02 and len(tried) >= 2
    assert 0.88 <= found.reached.time_share <= 0.9 * 1.01
    assert found.reached.time_share in [each.measured for each in tried]


def test_time_that_no_student_takes(teacher: RestorationModel, space: SearchSpace) -> None:
    """Measurements deny what the model of the time promised."""
    shares = []

    def share(sizes: Sizes) -> float:
        shares.append(1.0 + 0.1 * StudentCount(teacher, shapes)(sizes).macs / space.costs.teacher[0])
        return shares[-1]

    with pytest.raises(
        UsageError, match=r"--latency 0\.9: cannot be reached.* the smallest is ([\d.]+)"
    ) as caught:
        search_latency(teacher, space, Budget("latency", 0.9), counted_times(space), share)
    assert f"the smallest is {math.ceil(1000 * min(shares)) / 1000:g} " in str(caught.value)
    times = counted_times(space)
    least = -least_total({key: [-each for each in saved] for key, saved in times.saved.items()})
    assert len(shares) <= 5 and min(shares) < 1.0 + 0.1 * (times.lossless - least) / times.teacher * 1.01


@pytest.mark.parametrize(("target", "expected"), [(0.48, [0.49, 0.44]), (0.43, [0.40])])
def test_few_choices_leave_room(
    teacher: RestorationModel, space: SearchSpace, target: float, expected: list[float]
) -> None:
    """One layer has three choices, and students take longer than the model of their time says, or do not."""
    key = next(key for key in space.choices if key[1] == LOGITS)
    full, some, *_, none = space.choices[key]
    choices = {key: [full, some, none], (key[0], VALUES): space.choices[key[0], VALUES][:1]}
    measured = {key: [Measured(0, 0), Measured(1, 1), Measured(2, 2)], (key[0], VALUES): [Measured(0, 0)]}
    saved = {key: [0.0, 10.0, 20.0], (key[0], VALUES): [0.0]}
    costs = ChoiceCosts((10, 10), (10, 10), {key: [(0, 0), (1, 1), (2, 2)], (key[0], VALUES): [(0, 0)]})
    few = SearchSpace(choices, costs, measured, space.count)
    slower = 8.0 if len(expected) == 2 else 0.0

    def share(sizes: Sizes) -> float:
        index = [full.config, some.config, none.config].index(sizes.configs[key[0]])
        return (100.0 - 10 * index + slower) / 200

    found = search_latency(teacher, few, Budget("latency", target), Times(200.0, 100.0, saved), share)
    assert [each.measured for each in found.report.reached.tried] == pytest.approx(expected)


def test_time_to_spare_is_not_spent(teacher: RestorationModel, space: SearchSpace) -> None:
    """The student at full rank keeps to the budget already."""
    found = search_latency(teacher, space, Budget("latency", 0.999), counted_times(space), lambda _: 0.5)
    assert len(found.report.reached.tried) == 1 and found.report.predicted.error == 0.0
    assert describe_found(found.report).endswith("nothing is approximated")


@pytest.mark.parametrize(
    ("text", "target", "absolute"),
    [
        ("0.75", 0.75, False),
        (0.5, 0.5, False),
        ("1", 1.0, False),
        ("110G", 110e9, True),
        ("2.5m", 2.5e6, True),
    ],
)
def test_amounts(text: str | float, target: float, absolute: bool) -> None:
    assert parse_amount(text, "macs") == Budget("macs", target, absolute)


@pytest.mark.parametrize("text", ["", "0", "-1", "110X", "three", "75", "nan", "1.5"])
def test_amounts_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"--macs .*0\.75"):
        parse_amount(text, "macs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": "auto"}, "takes one of"),
        ({"rank": "auto", "macs": 0.8, "max_drop": 0.1}, "takes one of"),
        ({"rank": 8, "macs": "0.8"}, "is a budget of --rank auto"),
        ({"rank": 8, "latency": 0.7}, "is a budget of --rank auto"),
        ({"rank": "auto", "macs": 0.8, "rank_q": 8}, "chooses all ranks"),
        ({"rank": "auto", "macs": 0.8, "attention": "compact"}, "expanded"),
        ({"rank": 0.9, "attention": "compact"}, "expanded"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_options(**options)


QUICK: dict[str, Any] = {
    "rank": "auto",
    "calibration_crops": 4,
    "calibration_size": 32,
    "input_size": 32,
    "distill_steps": 2,
    "crop": 32,
    "degrade": "noise:25",
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results whose conversions share their measurements, as those of a user do."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.usefixtures("no_export")
def test_convert_within_macs(
    wide_checkpoint: Path, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = convert(wide_checkpoint, macs="0.85", output=measured / "macs", latency=False, **QUICK)
    search, after = found.report["search"], found.report["complexity"]["after"]
    assert after["macs"] <= 0.85 * found.report["complexity"]["before"]["macs"]
    assert (search["reached"]["macs"], search["reached"]["params"]) == (after["macs"], after["params"])
    assert search["budget"] == {"kind": "macs", "target": 0.85, "absolute": False}
    picked = {(each["layer"], each["side"]) for each in search["choices"] if each["picked"]}
    assert picked == {(each["layer"], each["side"]) for each in search["choices"]}
    uniform, searched = search["predicted"]["uniform"], search["predicted"]["searched"]
    assert [point["rank"] for point in searched] == [point["rank"] for point in uniform]
    for one, each in zip(uniform, searched, strict=True):
        assert each["macs"] <= one["macs"] and each["error"] <= one["error"] * (1 + 1e-9)
    assert any(each["error"] < 0.9 * one["error"] for one, each in zip(uniform, searched, strict=True))
    assert "sizes found" in capsys.readouterr().err
    assert (measured / "tiny-sensitivity.jsonl").exists()
    convert(wide_checkpoint, params="0.97", output=measured / "params", latency=False, **QUICK)
    assert "measurements are there already" in capsys.readouterr().err


@pytest.mark.usefixtures("no_export")
def test_convert_within_decibels(wide_checkpoint: Path, measured: Path) -> None:
    found = convert(wide_checkpoint, max_drop=0.05, output=measured / "drop", latency=False, **QUICK)
    # The loss that was evaluated is the one that the report shows.
    quality, drop = found.report["quality"], found.report["search"]["reached"]["drop"]
    shown = quality["teacher"]["ground_truth"]["psnr"] - quality["initialisation"]["ground_truth"]["psnr"]
    assert drop == pytest.approx(shown, abs=1e-6) and drop <= 0.05
    after = found.report["complexity"]
    assert after["after"]["macs"] < after["before"]["macs"]


@pytest.mark.usefixtures("no_export")
def test_convert_within_time(wide_checkpoint: Path, measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are the machine's; here they are made up: a millisecond for every 100 000 MACs."""

    class MadeUp:
        def __init__(self, teacher: Any, frame: Any, folder: Path, finish: Any) -> None:
            self.teacher, self.frame = teacher, frame

        def times(self, choices: Any, costs: Any) -> Times:
            saved = {key: [each[0] / 1e5 for each in costs.saved[key]] for key in choices}
            return Times(costs.teacher[0] / 1e5, costs.lossless[0] / 1e5, saved)

        def share(self, sizes: Any) -> float:
            def shapes(model: Any) -> Any:
                return model.input_shapes(*self.frame)

            whole = count_complexity(self.teacher, *shapes(self.teacher)).macs
            return StudentCount(self.teacher, shapes)(sizes).macs / whole

    monkeypatch.setattr(plan, "Stopwatch", MadeUp)
    shares = {TEACHER: 1.0, "student": 0.5}
    compared = FileTimings(
        {name: Latency.of([share]) for name, share in shares.items()},
        {name: Ratio(share, 0.0, 1.0) for name, share in shares.items()},
        True,
    )
    stages = replaced(TimeFiles(lambda *_, **__: compared), pipeline.CONVERSION_STAGES)
    monkeypatch.setattr(pipeline, "CONVERSION_STAGES", stages)
    found = convert(wide_checkpoint, latency=0.8, output=measured / "time", **QUICK)
    before, after = (found.report["complexity"][when]["macs"] for when in ("before", "after"))
    assert after <= 0.8 * before * 1.002
    reached = found.report["search"]["reached"]
    assert reached["time_share"] <= 0.8 * 1.01 and reached["milliseconds"] <= 0.8 * 1.01 * before / 1e5
    assert found.report["latency_ms"]["student"]["ratio"] == 0.5
    with pytest.raises(UsageError, match=r"--latency 0\.1: cannot be reached.*ms of"):
        convert(wide_checkpoint, latency=0.1, output=measured / "none", **QUICK)


@pytest.mark.usefixtures("no_export")
def test_what_cannot_be_reached_names_what_can(wide_checkpoint: Path, measured: Path) -> None:
    with pytest.raises(UsageError, match="the smallest is") as caught:
        convert(wide_checkpoint, macs="0.1", output=measured / "least", **QUICK)
    assert not (measured / "least").exists()
    share = str(caught.value).split("the smallest is ")[1].split(" ")[0]
    found = convert(
        wide_checkpoint, macs=share, output=measured / "least", latency=False, **(QUICK | {"distill": False})
    )
    after = found.report["complexity"]
    assert after["after"]["macs"] <= float(share) * after["before"]["macs"]


@pytest.mark.usefixtures("no_export")
def test_a_share_of_energy_gives_every_layer_its_rank(wide_checkpoint: Path, tmp_path: Path) -> None:
    quick = QUICK | {"latency": False, "distill": False}
    some = convert(wide_checkpoint, **(quick | {"rank": 0.9, "output": tmp_path / "some"})).report
    most = convert(wide_checkpoint, **(quick | {"rank": "0.999", "output": tmp_path / "most"})).report
    assert (
        len({layer["rank_v"] for layer in most["layers"]} | {layer["rank_k"] for layer in most["layers"]}) > 1
    )
    for low, high in zip(some["layers"], most["layers"], strict=True):
        assert low["rank_k"] <= high["rank_k"] and low["rank_v"] <= high["rank_v"]
        for rank, error in ((high["rank_k"], high["key_error"]), (high["rank_v"], high["value_error"])):
            assert rank == high["head_channels"] or rank * high["heads"] % 8 == 0
            assert not error or min(error) < 1
    assert some["complexity"]["after"]["macs"] < most["complexity"]["after"]["macs"]


@pytest.mark.parametrize(
    ("values", "shares", "ranks"),
    [
        ({"rank": 0.99}, (0.99, 0.99), Ranks()),
        ({"rank": "0.99", "rank_k": 0}, (None, 0.99), Ranks(k=0)),
        ({"rank": 8, "rank_v": "0.9"}, (None, 0.9), Ranks(k=8)),
        ({"rank": 8}, (None, None), Ranks(k=8, v=8)),
    ],
)
def test_shares_and_ranks(
    values: dict[str, Any], shares: tuple[float | None, float | None], ranks: Ranks
) -> None:
    options = make_options(**values)
    assert (options.shares, options.ranks) == (shares, ranks)


@pytest.mark.parametrize("rank", [1.5, "-0.2", "8.5", 0.0, "nan"])
def test_numbers_that_are_neither_rank_nor_share(rank: float | str) -> None:
    with pytest.raises(UsageError, match=f"--rank {rank}: "):
        make_options(rank=rank)


@pytest.mark.parametrize("rank", ["auto", "0.9"])
def test_inspect_takes_no_ranks_that_need_the_model_run(
    rank: str, wide_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run("inspect", wide_checkpoint, "--rank", rank, capsys=capsys)
    assert code == 2 and not out and len(err.strip().splitlines()) == 1
