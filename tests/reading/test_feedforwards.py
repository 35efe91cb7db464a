"""Feed-forward networks by recording: what can be narrowed is found, whatever its code; the rest is left."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import csa2glmha
from csa2glmha.checkpoint import read_checkpoint
from csa2glmha.checkpoint.student import save_student, student_metadata
from csa2glmha.core.errors import CheckpointError
from csa2glmha.initialize.configure import plan_widths
from csa2glmha.initialize.feedforward import HiddenMoments, narrow_feed_forwards
from csa2glmha.initialize.outputs import outputs_of
from csa2glmha.initialize.refit import refit
from csa2glmha.initialize.residual import skippable
from csa2glmha.networks.skipped import skip
from csa2glmha.reading.check import difference
from csa2glmha.reading.feedforwards import feed_forwards, narrow_to, narrowed_widths
from csa2glmha.reading.network import read_network
from csa2glmha.reading.own import read_own
from tests.networks import Block, Network, feedforwards, image
from tests.networks.feedforwards import HIDDEN

#: Blocks by what they are; names in a block, how the output lies, and whether a module is all of it.
FORMS: dict[str, tuple[Block, dict[str, tuple[str, bool]]]] = {
    "gated": (feedforwards.Gated, {"": ("maps", True)}),
    "no biases": (lambda c: feedforwards.Gated(c, bias=False), {"": ("maps", True)}),
    "interleaved": (feedforwards.InterleavedGate, {"": ("maps", True)}),
    "separate": (feedforwards.SeparateGate, {"": ("maps", True)}),
    "tokens": (lambda c: feedforwards.OnTokens(feedforwards.Mlp(c)), {"mlp": ("tokens", True)}),
    "tokens, maps inside": (
        lambda c: feedforwards.OnTokens(feedforwards.SpreadMlp(c), sized=True),
        {"mlp": ("tokens", True)},
    ),
    "spectral": (feedforwards.Spectral, {"ffn.fn": ("channels last", True)}),
    "normed": (feedforwards.Normed, {"body": ("maps", True)}),
    "beside": (feedforwards.Beside, {"back1": ("maps", False), "back2": ("maps", False)}),
    "twice": (feedforwards.Twice, {"ffn": ("maps", True)}),
    "behind attention": (lambda c: feedforwards.Attended(c, feedforwards.Gated), {"ffn": ("maps", True)}),
}

#: What cannot be narrowed: the contraction in the block, and the reason.
REFUSED: dict[str, tuple[Block, str, str]] = {
    "squeezed": (feedforwards.SqueezedGate, "project_out", "its hidden channels also go into a mean"),
    "normed": (
        lambda c: feedforwards.OnTokens(feedforwards.NormedMlp(c)),
        "mlp.fc2",
        "a layer norm of its hidden channels",
    ),
    "stored width": (feedforwards.Stored, "", "it cannot have fewer hidden channels: ValueError"),
    "rolled": (feedforwards.Rolled, "project_out", "in an order that is not known"),
    "tied": (feedforwards.TiedWeights, "ffn.project_out", "'{}ffn.project_out.weight' is used elsewhere"),
    "leaking": (feedforwards.Leaking, "project_out", "its hidden channels also go into a mean"),
    "neighbours": (feedforwards.Neighbours, "project_out", "one channel of it is made into several hidden"),
    "fused": (feedforwards.Fused, "project_out", "only a part of '{}project_in."),
    "weight norm": (feedforwards.WeightNormed, "project_out", "are made of other tensors"),
    "spatial": (feedforwards.Spatial, "", ""),
}


def names_of(found: dict[str, object]) -> list[str]:
    return [f"blocks.{index}{name and '.' + name}" for index in range(2) for name in found]


def recorded(block: Block, seed: int = 0) -> nn.Module:
    network = Network(block, seed=seed).eval()
    read_own(network, (image(),))
    return network


@torch.no_grad()
def output(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def squared(student: nn.Module, teacher: nn.Module, batches: list[tuple[Tensor]]) -> float:
    """The mean squared difference of their outputs."""
    errors = [(output(student, x) - output(teacher, x)).square().mean() for (x,) in batches]
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_found(name: str) -> None:
    block, expected = FORMS[name]
    network = Network(block)
    before = copy.deepcopy(network.state_dict())
    readings = read_network(network, (image(),))
    assert not readings.refused_feed_forwards
    assert list(readings.feed_forwards) == names_of(expected)
    for path, layer in readings.feed_forwards.items():
        inner = path.removeprefix("blocks.0").removeprefix("blocks.1").removeprefix(".")
        assert (layer.parts.output, layer.parts.whole) == expected[inner]
        assert layer.hidden == HIDDEN
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", FORMS)
def test_all_channels_are_exact_and_some_are_those_of_the_original(name: str) -> None:
    network = recorded(FORMS[name][0])
    full, some, zeroed = (copy.deepcopy(network) for _ in range(3))
    x = image(16, 24)
    for layer in feed_forwards(full).values():
        layer.keep(range(HIDDEN))
    assert torch.equal(output(full, x), output(network, x))
    kept = [index for index in range(HIDDEN) if index % 5 < 3]
    for layer in feed_forwards(zeroed).values():
        weight = torch.zeros_like(layer.weight)
        weight[:, kept] = layer.weight[:, kept]
        layer.set_weight(weight)
    for layer in feed_forwards(some).values():
        layer.keep(kept)
    assert set(narrowed_widths(some).values()) == {len(kept)}
    assert difference(output(some, x), output(zeroed, x)) < 1e-5
    assert difference(output(some, x), output(network, x)) > 1e-3
    fewer = sum(each.numel() for each in some.parameters())
    assert fewer < sum(each.numel() for each in network.parameters())


@pytest.mark.parametrize("name", FORMS)
def test_narrower_ones_are_refitted_and_stored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, expected = FORMS[name]
    teacher = recorded(block)
    student = copy.deepcopy(teacher)
    batches = [(torch.cat([image(16, 24, seed), image(16, 24, seed + 10)]),) for seed in (1, 2)]
    widths = plan_widths(feed_forwards(teacher), 2 / 3)
    assert widths == dict.fromkeys(names_of(expected), 16)
    errors = narrow_feed_forwards(teacher, student, widths, batches)
    assert errors.keys() == widths.keys() and all(0 < error < 1 for error in errors.values())
    before = squared(student, teacher, batches)
    fits = refit(teacher, student, outputs_of(student, teacher), batches)
    if name == "twice":  # a network that runs twice is not refitted
        assert not fits
    else:
        assert fits.keys() >= widths.keys() and squared(student, teacher, batches) < before
    path = tmp_path / "student.safetensors"
    save_student(path, student, student_metadata(student, "0" * 64, 0, {}))
    runs: list[int] = []
    monkeypatch.setattr(Network, "forward", lambda *_: runs.append(1))
    loaded = csa2glmha.load(path, network=Network(block, seed=7))
    assert not runs
    monkeypatch.undo()
    assert torch.equal(output(loaded, image(20, 16)), output(student, image(20, 16)))
    assert narrowed_widths(loaded) == widths
    # Saved again, it is the same file.
    assert student_metadata(loaded, "0" * 64, 0, {}) == dict(read_checkpoint(path).metadata)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_narrowed_is_left_with_its_reason(name: str) -> None:
    block, contraction, reason = REFUSED[name]
    readings = read_network(Network(block), (image(),))
    assert not readings.feed_forwards
    told = {each.name: each.reason for each in readings.refused_feed_forwards}
    if not reason:  # no pointwise layer is before the contraction: nobody would look for one there
        assert not told
        return
    assert list(told) == [f"blocks.{index}{contraction and '.' + contraction}" for index in range(2)]
    for index, said in enumerate(told.values()):
        assert reason.format(f"blocks.{index}.") in said


def test_an_expansion_that_two_have_in_common_is_not_narrowed() -> None:
    readings = read_network(Network(feedforwards.SharedWeights), (image(),))
    assert not readings.feed_forwards
    told = {each.name: each.reason for each in readings.refused_feed_forwards}
    said = told["blocks.0.first.fc2"]
    assert said.startswith("'blocks.0.first.fc1.") and said.endswith("is used elsewhere, too")
    assert told["blocks.0.second.fc2"] == "a layer norm of its hidden channels"


def test_one_that_cannot_be_narrowed_leaves_the_others() -> None:
    made = iter((feedforwards.Stored, feedforwards.Gated))
    readings = read_network(Network(lambda channels: next(made)(channels)), (image(),))
    assert list(readings.feed_forwards) == ["blocks.1"]
    assert [each.name for each in readings.refused_feed_forwards] == ["blocks.0"]


def test_random_numbers_are_no_reason() -> None:
    class Noisy(feedforwards.Gated):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.1 * torch.randn_like(x))

    state = torch.get_rng_state()
    readings = read_network(Network(Noisy), (image(),))
    assert len(readings.feed_forwards) == 2 and not readings.refused_feed_forwards
    torch.set_rng_state(state)


def test_the_projection_behind_an_attention_is_none() -> None:
    from tests.networks import forms

    readings = read_network(Network(forms.MapAttention), (image(),))
    assert not readings.feed_forwards and not readings.refused_feed_forwards


def test_a_recording_of_restormer_gives_what_its_family_gives(tiny_restormer: nn.Module) -> None:
    """The same networks, the same channels first, the same narrow network."""
    own = copy.deepcopy(tiny_restormer)
    batches = [(torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(seed)),) for seed in (1, 2)]
    read_own(own, (image(24, 40),))
    layers, found = feed_forwards(tiny_restormer), feed_forwards(own)
    assert found.keys() == layers.keys() and len(found) > 3
    for name, layer in layers.items():
        assert set(found[name].parts.cuts) == set(layer.parts.cuts)
        assert found[name].modules == layer.modules
    pairs = ((tiny_restormer, layers), (own, found))
    orders = [HiddenMoments.of(model, each, batches).orders for model, each in pairs]
    assert all(torch.equal(orders[0][name].order, orders[1][name].order) for name in layers)
    students = [copy.deepcopy(each) for each in (tiny_restormer, own)]
    widths = plan_widths(layers, 0.5)
    assert widths == plan_widths(found, 0.5) and widths
    for teacher, student in zip((tiny_restormer, own), students, strict=True):
        narrow_feed_forwards(teacher, student, widths, batches)
        refit(teacher, student, outputs_of(student, teacher), batches)
    one, other = (student.state_dict() for student in students)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_one_that_a_student_goes_without_is_none_any_more(tmp_path: Path) -> None:
    def block(channels: int) -> nn.Module:
        return feedforwards.Attended(channels, feedforwards.Gated)

    student = recorded(block)
    assert skippable(student, (image(),)) == [
        "blocks.0.attn",
        "blocks.0.ffn",
        "blocks.1.attn",
        "blocks.1.ffn",
    ]
    skip(student, ["blocks.0.ffn"])
    narrow_to(student, {"blocks.1.ffn": 8})
    assert list(feed_forwards(student)) == ["blocks.1.ffn"]
    path = tmp_path / "student.safetensors"
    save_student(path, student, student_metadata(student, "0" * 64, 0, {}))
    loaded = csa2glmha.load(path, network=Network(block, seed=7))
    assert narrowed_widths(loaded) == {"blocks.1.ffn": 8}
    assert torch.equal(output(loaded, image()), output(student, image()))
    assert skippable(recorded(feedforwards.Beside), (image(),)) == []


def test_nonsense_in_a_file_is_one_line(tmp_path: Path) -> None:
    network = recorded(feedforwards.Gated)
    narrow_to(network, {"blocks.0": 16})
    metadata = student_metadata(network, "0" * 64, 0, {})
    told = json.loads(metadata["network"])
    assert told["feed_forwards"].keys() == {"blocks.0", "blocks.1"}
    changes = {
        "module": ("blocks.9", "the network has no module 'blocks.9'"),
        "contraction": ("dwconv.groups", "no such layer 'dwconv.groups'"),
        "output": ("columns", "output: Input should be"),
        "cuts": ([], "cuts: not of the contraction"),
        "whole": (None, "whole: Input should be a valid boolean"),
    }
    weight = {"tensor": "project_out.weight", "axis": 1}
    entries: list[tuple[dict[str, object], str]] = []
    entries += [({key: value}, said) for key, (value, said) in changes.items()]
    for tensor, axis, said in (
        ("forward", 0, "there is no parameter 'forward'"),
        ("project_in.weight", 1, "has not the 24 hidden channels"),
        ("project_in.weight", 9, "has not the 24 hidden channels"),
    ):
        entries.append(({"cuts": [weight, {"tensor": tensor, "axis": axis}]}, said))
    for change, said in entries:
        changed = copy.deepcopy(told)
        changed["feed_forwards"]["blocks.0"].update(change)
        path = tmp_path / "changed.safetensors"
        save_student(path, network, {**metadata, "network": json.dumps(changed)})
        with pytest.raises(CheckpointError) as caught:
            csa2glmha.load(path, network=Network(feedforwards.Gated))
        assert "\n" not in str(caught.value) and "feed-forward network 'blocks.0': " in str(caught.value)
        assert said in str(caught.value), change
        path.unlink()
