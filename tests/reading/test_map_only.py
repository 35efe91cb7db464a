"""Layers of which the map alone is made anew: the rest of the module is in the student as it is."""

from __future__ import annotations

import copy
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import csa2glmha
from csa2glmha.analysis.measure import measure
from csa2glmha.analysis.plots import plot_heads, plot_layers
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import UsageError
from csa2glmha.inference.grid import divide
from csa2glmha.inference.tiles import restore_globally
from csa2glmha.initialize.configure import layer_config, plan_layers
from csa2glmha.initialize.student import initialise_student
from csa2glmha.networks.builder import Origin
from csa2glmha.networks.foreign import ForeignNetwork, Interface
from csa2glmha.reading.check import difference
from csa2glmha.reading.layers import attention_layers, glmha_layers
from csa2glmha.reading.network import Readings, read_network
from csa2glmha.reading.wired import MapOnlyGLMHA
from tests.networks import Block, Network, beside, forms, image

CHANNELS = 16
FORMS: dict[str, tuple[Block, str]] = {
    "sum": (beside.SummedAttention, "a sum with another map between the attention and its output projection"),
    "gate": (beside.GatedAttention, "a product with another map between the attention and its output"),
    "factor made inside": (beside.LastBlock, "V is multiplied by the result of a sigmoid"),
    "convolution of V": (
        lambda c: forms.TokenBlock(beside.InteractingAttention(c)),
        "a sum with another map between the attention and its output projection",
    ),
    "fused": (
        beside.FusedAttention,
        "a sum with another map between the attention and its output projection",
    ),
    "turned": (beside.TurnedAttention, "a product with another map between the attention and its output"),
    "cross, called twice": (beside.CrossGatedBlock, "a product with another map between the attention"),
    "shortcut": (beside.ShortcutAttention, "something that is not one module's result of V is added"),
    "mixed branch": (beside.MixedBranchAttention, "something that is not one module's result of V is added"),
}
#: What differs in how the rest of the module is made or called.
FEW = ("sum", "factor made inside", "convolution of V", "cross, called twice")
BATCHES = [torch.cat([image(16, 24, seed) for seed in (1, 2)]), image(16, 24, 3)]


def network(name: str) -> Network:
    return Network(FORMS[name][0], CHANNELS).eval()


def read(model: nn.Module) -> Readings:
    readings = read_network(model, (image(),))
    readings.carried_by(model)
    return readings


def student_of(model: Network, rank: int | None) -> Network:
    read(model)
    configs = {name: layer_config(each.form, Ranks(k=rank)) for name, each in attention_layers(model).items()}
    student, _ = initialise_student(model, configs, [(batch,) for batch in BATCHES])
    return student


@pytest.mark.parametrize("name", FORMS)
def test_the_map_is_read_and_what_lies_beside_it_is_told(name: str) -> None:
    model = network(name)
    before = copy.deepcopy(model.state_dict())
    readings = read(model)
    assert len(readings.layers) == 2 and not readings.refused and not readings.operators
    for layer in readings.layers.values():
        assert layer.form.map_only and layer.form.beside.startswith(FORMS[name][1])
        assert layer.error < 1e-5
    assert readings.difference is not None and readings.difference < 1e-5
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", FORMS)
def test_at_full_rank_a_layer_is_the_module(name: str) -> None:
    model = network(name)
    student = copy.deepcopy(student_of(model, None))
    layers = glmha_layers(student)
    assert len(layers) == 2 and all(isinstance(layer, MapOnlyGLMHA) for layer in layers.values())
    x = torch.cat((image(16, 8, 1), image(16, 8, 2)))
    with torch.no_grad():
        assert difference(student(x), model(x)) < 1e-5


@pytest.mark.parametrize("name", FEW)
def test_low_rank_costs_less_and_its_error_falls(name: str) -> None:
    model, errors = network(name), []
    maps = model.first(image(20, 12))
    for rank in (1, 3, 5):
        result = csa2glmha.compress(model, BATCHES, rank=rank, progress=False)
        counted = result.record.complexity
        assert counted is not None and counted.after.macs < counted.before.macs
        assert all("the rest as it was" in layer.route for layer in result.record.layers)
        with torch.no_grad():
            errors.append(difference(result.student.blocks[0](maps), model.blocks[0](maps)))
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("name", FEW)
def test_what_is_left_out_is_gone_and_what_stays_is_trained(name: str) -> None:
    model = network(name)
    student = student_of(model, 2)
    loss = (student(BATCHES[0]) - model(BATCHES[0])).square().mean()
    loss.backward()
    without = [key for key, each in student.named_parameters() if each.grad is None and each.numel()]
    assert not without
    optimiser = torch.optim.Adam(student.parameters(), 2e-5)
    for _ in range(10):
        optimiser.step()
        optimiser.zero_grad()
        last = (student(BATCHES[0]) - model(BATCHES[0])).square().mean()
        last.backward()
    assert last.item() < loss.item()


def framed(model: nn.Module) -> ForeignNetwork:
    return ForeignNetwork(model, Interface(((1, 3, 12, 20),), 3, scale=Fraction(1)), Origin("it", {}, {}))


@pytest.mark.parametrize("name", FEW)
def test_tiles_are_the_whole_image(name: str) -> None:
    model = network(name)
    x, tiles = image(44, 76), divide(44, 76, 40, 12, 4)
    assert len(tiles) > 4
    for each in (framed(model), framed(student_of(model, 2))):
        if each.network is model:
            read(model)
        with torch.no_grad():
            whole = each.eval()(x)
            tiled = restore_globally(each, (x,), tiles, tiles)
        assert difference(tiled, whole) < 1e-4


@pytest.mark.parametrize("name", ["factor made inside", "convolution of V"])
def test_the_onnx_file_agrees(name: str, tmp_path: Path) -> None:
    result = csa2glmha.compress(network(name), BATCHES, rank=2, progress=False)
    exported = result.export(tmp_path / "student.onnx")
    assert max(each.relative for each in exported.parity) < 1e-4


@pytest.mark.parametrize("name", FEW)
def test_a_student_is_loaded_into_the_network(name: str, tmp_path: Path) -> None:
    result = csa2glmha.compress(network(name), BATCHES, rank=2, progress=False)
    result.save(tmp_path / "student.safetensors")
    other = Network(FORMS[name][0], CHANNELS, seed=7)
    loaded = csa2glmha.load(tmp_path / "student.safetensors", network=other)
    with torch.no_grad():
        assert torch.equal(loaded(BATCHES[0]), result.student(BATCHES[0]))
    assert loaded.state_dict().keys() == result.student.state_dict().keys()


def test_what_would_not_pay_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    class Two(nn.Module):
        """One attention that is read whole, and one whose map alone is."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.whole, self.gated = forms.MapAttention(channels), beside.GatedAttention(channels)

        def forward(self, x: Tensor) -> Tensor:
            return self.gated(x + self.whole(x))

    model = Network(Two, CHANNELS).eval()
    read(model)
    assert set(plan_layers(attention_layers(model), Ranks())) == {"blocks.0.whole", "blocks.1.whole"}
    assert len(plan_layers(attention_layers(model), Ranks(k=4, v=4))) == 4
    csa2glmha.compress(model, BATCHES, rank="full")
    told = capsys.readouterr().err
    assert (
        "not converted: 'blocks.0.gated', 'blocks.1.gated': at these ranks they would be no cheaper" in told
    )
    with pytest.raises(UsageError, match="no layer of this model gets cheaper"):
        csa2glmha.compress(network("gate"), BATCHES, rank="full", progress=False)


def test_what_else_sees_all_pixels_in_the_module_is_told() -> None:
    readings = read_network(Network(beside.PooledAttention, CHANNELS), (image(),))
    assert len(readings.layers) == 2
    assert [(each.module, each.kind) for each in readings.operators] == [
        (f"blocks.{index}.pool", "mean over all pixels") for index in range(2)
    ]


def test_modes_alone_may_make_the_map_and_analysis_tells_nothing_of_values() -> None:
    model = network("gate")
    read(model)
    layers = attention_layers(model)
    configs = {name: layer_config(each.form, Ranks(k=0)) for name, each in layers.items()}
    student, _ = initialise_student(model, configs, [(batch,) for batch in BATCHES])
    with torch.no_grad():
        assert difference(student(BATCHES[0]), model(BATCHES[0])) < 0.5
    found = measure(model, layers, [(batch,) for batch in BATCHES])["layers"]
    assert all(layer["key_error"] and not layer["value_error"] for layer in found)
    assert plot_layers({"layers": found}) and plot_heads({"layers": found})
