"""Every form of channel attention that is read: exact at full rank, against each form written out plainly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from csa2glmha import families
from csa2glmha.attention import GLMHA, ChannelAttention, GLMHAConfig, Projection
from csa2glmha.attention.core import Activation, in_order
from csa2glmha.attention.layout import Layout, from_maps, to_maps
from csa2glmha.attention.stored import read_config
from csa2glmha.checkpoint.student import load, save_student, student_metadata
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import Csa2GlmhaError, UsageError
from csa2glmha.data.batches import Batch
from csa2glmha.distill import DistillSettings
from csa2glmha.distill.processes import Processes
from csa2glmha.distill.stages import LayerStage
from csa2glmha.export.lowering.attention import DeployedGLMHA
from csa2glmha.families.family import Family
from csa2glmha.families.hyperparameters import Hyperparameters
from csa2glmha.inference.grid import divide
from csa2glmha.inference.tiles import restore_globally
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import layer_config, plan_layers
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers, glmha_layers
from csa2glmha.reading.reader import PlainReader

pytestmark = pytest.mark.usefixtures("quick_factors")


@dataclass(frozen=True)
class Shape:
    """What a layer has. ``kernels`` are those of queries, keys and values.

    With ``query_channels`` queries are made from a second input. With ``beside``, V is multiplied by a map
    made of the input, and a convolution of V is added to the output. ``layout`` is that of the module's
    inputs and output; ``sized`` tokens come with height and width.
    """

    heads: int = 2
    c: int = 3
    channels: int = 5
    kernels: tuple[int, int, int] = (3, 3, 3)
    dilations: tuple[int, int, int] = (1, 1, 1)
    biases: tuple[bool, bool, bool] = (False, False, False)
    query_channels: int | None = None
    activation: Activation = "softmax"
    beside: bool = False
    layout: Layout = "maps"
    sized: bool = False

    @property
    def all_channels(self) -> int:
        """Of both inputs."""
        return self.channels + (self.query_channels or 0)


class PlainAttention(nn.Module):
    """Channel attention, written out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.heads * shape.c
        self.pointwise, self.depthwise = nn.ModuleList(), nn.ModuleList()
        sources = (shape.query_channels or shape.channels, shape.channels, shape.channels)
        for k, dilation, bias, channels in zip(
            shape.kernels, shape.dilations, shape.biases, sources, strict=True
        ):
            self.pointwise.append(nn.Conv2d(channels, width, 1, bias=bias))
            padding = dilation * (k // 2)
            self.depthwise.append(
                nn.Conv2d(width, width, k, 1, padding, dilation, groups=width, bias=bias)
                if k > 1
                else nn.Identity()
            )
        self.temperature = nn.Parameter(torch.full((shape.heads, 1, 1), 3.0))
        self.output = nn.Conv2d(width, shape.channels, 1, bias=any(shape.biases))
        if shape.beside:
            self.branch = nn.Conv2d(width, shape.channels, 3, padding=1)

    def forward(
        self, x: Tensor, query_input: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        layout = self.shape.layout
        x = to_maps(x, layout, size)
        query_input = None if query_input is None else to_maps(query_input, layout, size)
        inputs = (x if query_input is None else query_input, x, x)
        maps = [
            spread(mix(each))
            for mix, spread, each in zip(self.pointwise, self.depthwise, inputs, strict=True)
        ]
        branch = self.branch(maps[2]) if self.shape.beside else 0.0
        if self.shape.beside:
            maps[2] = maps[2] * factors(x)
        q, k, v = (each.flatten(2).unflatten(1, (self.shape.heads, -1)) for each in maps)
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature
        attention = logits.softmax(-1) if self.shape.activation == "softmax" else logits.relu()
        y: Tensor = self.output((attention @ v).view(len(x), -1, *x.shape[2:])) + branch
        return from_maps(y, layout)


def factors(x: Tensor) -> Tensor:
    """What V is multiplied by, of an input (B, C, H, W)."""
    return x.mean(1, keepdim=True).sigmoid()


class PlainGLMHA(GLMHA):
    """GLMHA called as the module was, with what lies beside the attention."""

    def __init__(self, config: GLMHAConfig, layout: Layout, branch: nn.Module | None) -> None:
        super().__init__(config)
        self.layout, self.branch = layout, branch

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        return in_order(partial(PlainAttention.forward, None), args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.attend(self.bind(args, kwargs))

    def inputs_of(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        return inputs_of(args, self.layout)

    def module_output(self, args: tuple[Any, ...], maps: Tensor) -> Tensor:
        return from_maps(maps, self.layout)

    def value_factors(self, args: tuple[Any, ...]) -> Tensor | None:
        return None if self.branch is None else factors(self.inputs_of(args)[0])

    def value_branch(self, values: Tensor) -> Tensor | None:
        return None if self.branch is None else self.branch(values)


def inputs_of(args: tuple[Any, ...], layout: Layout) -> tuple[Tensor, ...]:
    *inputs, size = args if len(args) == 3 else (*args, None)
    return tuple(to_maps(x, layout, size) for x in inputs if x is not None)


class PlainAttentionReader(PlainReader):
    module_type = PlainAttention

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        return in_order(partial(PlainAttention.forward, None), args, kwargs)

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def attention_inputs(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        return inputs_of(args, self.layout)

    def module_output(self, args: tuple[Any, ...], maps: Tensor) -> Tensor:
        return from_maps(maps, self.layout)

    def value_factors(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        assert isinstance(module, PlainAttention)
        return factors(self.attention_inputs(args)[0]) if module.shape.beside else None

    def value_branch(self, module: nn.Module) -> Callable[[Tensor], Tensor] | None:
        assert isinstance(module, PlainAttention)
        return module.branch if module.shape.beside else None

    def read(self, module: nn.Module) -> ChannelAttention:
        assert isinstance(module, PlainAttention)
        parts = []
        for mix, spread, dilation in zip(
            module.pointwise, module.depthwise, module.shape.dilations, strict=True
        ):
            kernel = spread.weight.detach()[:, 0] if isinstance(spread, nn.Conv2d) else None
            offset = None if kernel is None else _detached(spread.bias)
            weight = mix.weight.detach()[:, :, 0, 0]
            parts.append(Projection(weight, _detached(mix.bias), kernel, offset, dilation))
        queries, keys, values = parts
        output = module.output
        return ChannelAttention(
            module.shape.heads,
            queries,
            keys,
            values,
            module.temperature.detach().flatten(),
            output.weight.detach()[:, :, 0, 0],
            _detached(output.bias),
            value_branch=module.shape.beside,
            query_channels=module.shape.query_channels,
            activation=module.shape.activation,
        )

    def build(self, module: nn.Module, config: GLMHAConfig) -> nn.Module:
        assert isinstance(module, PlainAttention)
        if self.layout == "maps" and not module.shape.beside:
            return GLMHA(config)
        return PlainGLMHA(config, self.layout, module.branch if module.shape.beside else None)


class PositionalReader(PlainAttentionReader):
    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        return PlainReader.bind(self, args, kwargs)


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


class OneLayer(RestorationModel):
    """A network of one such layer, which it calls by keyword; it says itself how that is read."""

    size_multiple = 1
    architecture = "one layer"

    def __init__(self, layer: PlainAttention) -> None:
        super().__init__()
        self.layer = layer
        self.split = [layer.shape.channels, layer.shape.query_channels or 0]
        self.layout, self.sized = layer.shape.layout, layer.shape.sized
        self.recorded_readers = {"layer": PlainAttentionReader(self.layout)}

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x, query_input = (from_maps(each, self.layout) for each in x.split(self.split, 1))
        given: dict[str, Any] = {"query_input": query_input} if self.split[1] else {}
        if self.sized:
            given["size"] = (height, width)
        y: Tensor = self.layer(x, **given)
        return to_maps(y, self.layout, (height, width))


def network(shape: Shape, seed: int = 0) -> OneLayer:
    """With weights that matter."""
    torch.manual_seed(seed)
    layer = PlainAttention(shape)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) + (3.0 if parameter.ndim == 3 else 0.0))
    return OneLayer(layer).eval().requires_grad_(False)


def smooth(shape: Shape, count: int, side: tuple[int, int], seed: int = 0) -> Tensor:
    """Blurred noise, a little like features."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, shape.all_channels, 3, 3, generator=generator)
    fine = F.interpolate(coarse, size=side, mode="bilinear")
    return fine + 0.1 * torch.randn(fine.shape, generator=generator)


def student_of(model: OneLayer, ranks: Ranks, images: Tensor | None = None) -> OneLayer:
    configs = {name: layer_config(layer.form, ranks) for name, layer in attention_layers(model).items()}
    batches = None if images is None else [(image[None],) for image in images]
    return initialise_student(model, configs, batches)[0]


FORMS = {
    "1x1": Shape(kernels=(1, 1, 1)),
    "1x1 with biases": Shape(kernels=(1, 1, 1), biases=(True, True, True)),
    "3x3": Shape(),
    "3x3 with biases": Shape(biases=(True, True, True)),
    "biases of some": Shape(biases=(False, True, False)),
    "5x5": Shape(kernels=(5, 5, 5)),
    "dilation 2": Shape(dilations=(2, 2, 2)),
    "5x5, dilation 3, biases": Shape(kernels=(5, 5, 5), dilations=(3, 3, 3), biases=(True, True, True)),
    "values 3x3": Shape(kernels=(1, 1, 3), biases=(True, False, True)),
    "keys 3x3, values 7x7": Shape(kernels=(1, 3, 7)),
    "dilations 1 and 2": Shape(dilations=(1, 2, 2)),
    "1x1 and dilation 2": Shape(kernels=(1, 3, 3), dilations=(1, 2, 2)),
    "one head": Shape(heads=1, c=6),
    "queries from a second input": Shape(query_channels=4),
    "the same, 1x1 with biases": Shape(query_channels=7, kernels=(1, 1, 1), biases=(True, True, True)),
    "the same, queries 1x1, dilation 2": Shape(query_channels=5, kernels=(1, 3, 3), dilations=(1, 2, 2)),
    "relu": Shape(activation="relu"),
    "relu, 1x1 with biases, second input": Shape(
        kernels=(1, 1, 1), biases=(True, True, True), query_channels=4, activation="relu"
    ),
    "tokens": Shape(kernels=(1, 1, 1), biases=(True, True, True), layout="tokens"),
    "channel rows": Shape(kernels=(1, 1, 1), layout="channel rows", query_channels=4),
    "tokens with their size": Shape(layout="tokens", sized=True, query_channels=6),
    "channels last": Shape(layout="channels last", kernels=(5, 5, 5), dilations=(2, 2, 2)),
    "a branch of V with biases": Shape(kernels=(1, 1, 1), biases=(True, True, True), beside=True),
    "a branch of V, 3x3, second input, channels last": Shape(
        query_channels=4, layout="channels last", beside=True, activation="relu"
    ),
}
forms = pytest.mark.parametrize("shape", FORMS.values(), ids=FORMS)


def assert_same(output: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(output, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@forms
def test_full_rank_is_the_layer(shape: Shape) -> None:
    model, x = network(shape), smooth(shape, 2, (7, 9))
    assert_same(student_of(model, Ranks())(x), model(x))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.tuples(*[st.sampled_from((1, 3, 5))] * 3),
    st.integers(1, 3),
    st.tuples(*[st.booleans()] * 3),
    st.sampled_from((None, 3, 4)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_any_full_rank_is_the_layer(
    heads: int,
    c: int,
    kernels: tuple[int, int, int],
    dilation: int,
    biases: tuple[bool, bool, bool],
    query_channels: int | None,
    size: tuple[int, int],
) -> None:
    shape = Shape(heads, c, 4, kernels, (dilation,) * 3, biases, query_channels)
    model, x = network(shape), smooth(shape, 2, size)
    assert_same(student_of(model, Ranks())(x), model(x))


@forms
def test_error_falls_with_rank(shape: Shape) -> None:
    model, images, held_out = network(shape), smooth(shape, 12, (12, 10)), smooth(shape, 4, (12, 10), seed=1)
    expected = model(held_out)
    students = [student_of(model, Ranks(rank, rank, rank), images) for rank in range(1, shape.c + 1)]
    with torch.no_grad():
        errors = [float((student(held_out) - expected).square().mean()) for student in students]
    assert errors[0] < 1.5 * float(expected.var())
    assert errors[-1] < 1e-9 * float(expected.var())
    assert errors == sorted(errors, reverse=True)


@forms
@pytest.mark.parametrize("ranks", [Ranks(), Ranks(2, 2, 2), Ranks(k=0, v=2)], ids=str)
def test_deployed_is_the_layer(shape: Shape, ranks: Ranks) -> None:
    model, images = network(shape), smooth(shape, 6, (8, 8))
    student = student_of(model, ranks, images).requires_grad_(False)
    x = smooth(shape, 2, (7, 9), seed=1)
    expected = student(x)
    for name, layer in glmha_layers(student).items():
        if type(layer) is not GLMHA:
            pytest.skip("GLMHA of its own kind is deployed by its family")
        student.set_submodule(name, DeployedGLMHA(layer))
    assert_same(student(x), expected)


@forms
@pytest.mark.parametrize("ranks", [None, Ranks(), Ranks(2, 2, 2), Ranks(k=0, v=2)], ids=str)
def test_moments_of_parts_are_those_of_the_whole(shape: Shape, ranks: Ranks | None) -> None:
    """Tiles that share their maps make what the whole image gives."""
    model, x = network(shape), smooth(shape, 1, (40, 36), seed=1)
    if ranks is not None:
        model = student_of(model, ranks, smooth(shape, 6, (8, 8)))
    tiles = divide(40, 36, size=30, overlap=8, multiple=1)
    assert len(tiles) == 4
    with torch.inference_mode():
        assert_same(restore_globally(model, (x,), tiles, tiles), model(x))


@forms
def test_configurations_survive_their_file(shape: Shape) -> None:
    form = attention_layers(network(shape))["layer"].form
    config = layer_config(form, Ranks(k=2, v=1))
    assert read_config(json.loads(json.dumps(config.to_json())), form) == config


class FormHyperparameters(Hyperparameters):
    form: str

    @property
    def blocks(self) -> int:
        return 1


class StoredLayer(OneLayer):
    architecture = "stored layer"

    def __init__(self, form: str) -> None:
        super().__init__(PlainAttention(FORMS[form]))
        self.hyperparameters = {"form": form}


@pytest.mark.parametrize("form", FORMS)
def test_student_of_a_file_is_the_student(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(
        "stored layer", StoredLayer, ("layer",), FormHyperparameters, lambda state: {"form": form}
    )
    monkeypatch.setattr(families, "FAMILIES", (family,))
    shape, path = FORMS[form], tmp_path / "student.safetensors"
    model = StoredLayer(form).eval().requires_grad_(False)
    model.load_state_dict(network(shape).state_dict())
    student = student_of(model, Ranks(2, 2, 2), smooth(shape, 6, (8, 8)))
    save_student(path, student, student_metadata(student, "0" * 64, 0, {}))
    x = smooth(shape, 2, (7, 9), seed=1)
    with torch.no_grad():
        assert torch.equal(load(path)(x), student(x))


def test_fields_of_later_versions_are_left_out_where_they_say_nothing() -> None:
    form = attention_layers(network(Shape()))["layer"].form
    plain = layer_config(form, Ranks(k=2, v=1))
    assert "dilation" not in plain.to_json()
    assert replace(plain, dilation=2).to_json() == plain.to_json() | {"dilation": 2}


def test_layers_learn_where_they_are_called_by_keyword() -> None:
    model = network(Shape(query_channels=4))
    images = smooth(model.layer.shape, 4, (8, 8))
    student = student_of(model, Ranks(2, 2, 2), images)
    processes = Processes(torch.device("cpu"), "fp32")
    stage = LayerStage(student, model, DistillSettings(steps=1), processes, [(images,)])
    loss, _ = stage.accumulate(Batch((images,), None), Tensor.backward)
    assert float(loss) > 0
    grads = [parameter.grad for parameter in stage.parameters if parameter.grad is not None]
    assert len(grads) == len(stage.parameters) and any(grad.any() for grad in grads)


def test_keywords_that_no_reader_knows_are_refused_in_one_line() -> None:
    model, images = network(Shape(query_channels=4)), smooth(Shape(query_channels=4), 2, (8, 8))
    model.recorded_readers = {"layer": PositionalReader("maps")}
    with pytest.raises(Csa2GlmhaError, match=r"^an attention module .* keywords \(query_input\), .* report"):
        student_of(model, Ranks(2, 2, 2), images)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (Shape(activation="relu"), "ReLU in the place of the softmax"),
        (Shape(beside=True), "all of their values"),
    ],
)
def test_what_has_no_compact_form_is_refused(shape: Shape, reason: str) -> None:
    layers = attention_layers(network(shape))
    with pytest.raises(UsageError, match=f"^--attention compact: .*{reason}.* give expanded$"):
        plan_layers(layers, Ranks(k=2, v=2), "compact")
    config = replace(layer_config(layers["layer"].form, Ranks(k=2, v=2)), attention="compact", rank_v=2)
    with pytest.raises(ValueError, match="'compact' does not go"):
        read_config(config.to_json(), layers["layer"].form)


def test_a_layer_that_needs_all_values_keeps_them() -> None:
    form = attention_layers(network(Shape(beside=True)))["layer"].form
    config = layer_config(form, Ranks(k=2, v=2))
    assert (config.rank_k, config.rank_v) == (2, form.head_channels)
    with pytest.raises(ValueError, match=r"^rank_v: 2, this layer needs all 3 values of a head$"):
        read_config(config.to_json() | {"rank_v": 2}, form)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"query_channels": 3}, "query_channels: 3, the network's layer has 4"),
        ({"query_channels": None}, "query_channels: None, the network's layer has 4"),
        ({"activation": "relu"}, "activation: relu, the network's layer has softmax"),
        ({"activation": "sparsemax"}, "activation"),
        ({"dilation": 0}, "dilation"),
    ],
)
def test_configurations_of_other_layers_are_refused(change: dict[str, Any], what: str) -> None:
    form = attention_layers(network(Shape(query_channels=4)))["layer"].form
    with pytest.raises(ValueError, match=f"^{what}"):
        read_config(layer_config(form, Ranks(k=2, v=2)).to_json() | change, form)


@pytest.mark.parametrize("k", [2, 4, 9])
def test_kernels_that_no_layer_has_are_refused(k: int) -> None:
    model = network(Shape(kernels=(k, 3, 3)))
    form = attention_layers(model)["layer"].form
    with pytest.raises(UsageError, match=rf"kernels of its \w+ are {k} x {k}: only 1 x 1, 3 x 3"):
        layer_config(form, Ranks(k=2, v=2))
