from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.attention import GLMHA, ChannelAttention, GLMHAConfig
from csa2glmha.attention.canonical import Projection, stack_projections
from csa2glmha.attention.guide import CalibrationNetwork, pooled_statistics
from csa2glmha.config.ranks import Ranks, parse_rank
from csa2glmha.core.errors import UsageError
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.families.transposed.blocks import MDTA
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import BIAS_RANK, GUIDE_WIDTH, layer_config, plan_layers
from csa2glmha.reading.layers import AttentionLayer, attention_layers, glmha_layers, replace_layers
from tests.conftest import MakeRestormer, batches


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mdta(channels: int, heads: int, bias: bool, seed: int = 0) -> MDTA:
    """A layer whose attention is far from uniform."""
    layer = MDTA(channels, heads, bias)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        layer.temperature.abs_().add_(2.0)
    return layer.eval()


def randomised(config: GLMHAConfig, seed: int = 0) -> Any:
    """A GLMHA in which every parameter matters."""
    layer = GLMHA(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.eval().requires_grad_(False)


def config(**changes: Any) -> GLMHAConfig:
    base = GLMHAConfig(
        channels=6, out_channels=5, heads=2, head_channels=4, rank_q=4, rank_k=2, rank_v=2, kernel_size=3
    )
    return dataclasses.replace(base, **changes)


def converted(layer: MDTA) -> GLMHA:
    """At full rank."""
    student, _ = initialise_student(nn.Sequential(layer), {"0": layer_config(_form(layer), Ranks())}, None)
    assert isinstance(student[0], GLMHA)
    return student[0]


def _form(layer: MDTA) -> ChannelAttention:
    return attention_layers(nn.Sequential(layer))["0"].form


# --- the canonical form


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 3, 12])
def test_full_rank_is_mdta(heads: int, bias: bool) -> None:
    layer, x = mdta(12, heads, bias), randn(2, 12, 9, 7, seed=1)
    with torch.no_grad():
        expected = layer(x)
        torch.testing.assert_close(converted(layer)(x), expected, rtol=0, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize("bias", [False, True])
def test_canonical_logits_and_output_are_mdtas(bias: bool) -> None:
    layer, x = mdta(12, 3, bias), randn(2, 12, 9, 7, seed=1)
    form = _form(layer)
    assert (form.channels, form.heads, form.head_channels) == (12, 3, 4)
    with torch.no_grad():
        query, key, value = layer.qkv_dwconv(layer.qkv(x)).view(2, 3, 3, 4, 63).unbind(1)
        expected = (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT) * layer.temperature
        logits = form.logits(form.queries.spread(form.queries.mix(x)), form.keys.spread(form.keys.mix(x)))
        torch.testing.assert_close(logits, expected)
        mapped = (expected.softmax(-1) @ value).view(2, 12, 63)
        y = form.output @ mapped
        if form.output_bias is not None:
            y = y + form.output_bias.view(-1, 1)
        torch.testing.assert_close(y.view(2, 12, 9, 7), layer(x))
    assert (form.output_bias is None) is not bias


def test_stacked_projections_compute_both() -> None:
    parts = [
        Projection(
            randn(4, 6, seed=s), randn(4, seed=s + 1), randn(4, 3, 3, seed=s + 2), randn(4, seed=s + 3)
        )
        for s in (0, 10)
    ]
    x, both = randn(2, 6, 5, 5), stack_projections(parts)
    expected = torch.cat([part.spread(part.mix(x)) for part in parts], 1)
    torch.testing.assert_close(both.spread(both.mix(x)), expected)


def test_layers_are_found_in_order_and_replaced(tiny_restormer: Restormer) -> None:
    layers = attention_layers(tiny_restormer)
    assert list(layers) == [
        "encoder_level1.0.attn",
        "encoder_level2.0.attn",
        "encoder_level3.0.attn",
        "latent.0.attn",
        "decoder_level3.0.attn",
        "decoder_level2.0.attn",
        "decoder_level1.0.attn",
        "refinement.0.attn",
    ]
    chosen = {"latent.0.attn": layer_config(layers["latent.0.attn"].form, Ranks(k=4, v=4))}
    student = copy.deepcopy(tiny_restormer)
    replace_layers(student, chosen)
    assert list(glmha_layers(student)) == ["latent.0.attn"]
    assert len(attention_layers(student)) == 7
    with pytest.raises(KeyError):
        replace_layers(student, {"latent.1.attn": chosen["latent.0.attn"]})


# --- low rank


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("rank_q", "rank_k", "rank_v"), [(4, 2, 4), (4, 4, 2), (2, 4, 4), (2, 3, 1), (1, 1, 1)]
)
def test_low_rank_layer_is_the_mdta_with_its_expanded_maps(
    rank_q: int, rank_k: int, rank_v: int, bias: bool
) -> None:
    """A teacher whose maps *are* mixtures of r maps: the low-rank layer must equal it, no approximation."""
    heads, c = 2, 4
    layer = randomised(
        config(
            channels=8, out_channels=8, rank_q=rank_q, rank_k=rank_k, rank_v=rank_v, bias=bias,
            output_bias=bias,
        )
    )  # fmt: skip
    layer.temperature.copy_(torch.tensor([3.0, 5.0]).view(2, 1, 1).expand_as(layer.temperature))
    if layer.query_scale is not None:
        layer.query_scale.fill_(1.0)
    teacher: Any = MDTA(8, heads, bias).eval().requires_grad_(False)
    teacher.temperature.copy_(torch.tensor([3.0, 5.0]).view(2, 1, 1))
    teacher.project_out.weight.copy_(layer.output[:, :, None, None])
    assert layer.depthwise is not None
    if bias:
        teacher.project_out.bias.copy_(layer.output_bias)
    start = 0
    for third, (rank, expand) in enumerate(
        [(rank_q, layer.expand_queries), (rank_k, layer.expand_keys), (rank_v, layer.expand_values)]
    ):
        generated = slice(start, start + heads * rank)
        start += heads * rank
        mix = torch.eye(c).expand(heads, c, c) if expand is None else expand
        # Mixtures of separable filters are separable only if the spatial part is common to a head.
        kernels = layer.depthwise.weight[generated].view(heads, rank, 1, 3, 3)
        kernels.copy_(kernels[:, :1].clone().expand_as(kernels))
        own = slice(third * 8, third * 8 + 8)
        teacher.qkv_dwconv.weight[own] = kernels[:, :1].expand(heads, c, 1, 3, 3).reshape(8, 1, 3, 3)
        pointwise = layer.pointwise.weight[generated].view(heads, rank, 8)
        teacher.qkv.weight[own] = (mix @ pointwise).view(8, 8, 1, 1)
        if bias:
            teacher.qkv.bias[own] = (mix @ layer.pointwise.bias[generated].view(heads, rank, 1)).flatten()
            offset = layer.depthwise.bias[generated].view(heads, rank, 1)
            teacher.qkv_dwconv.bias[own] = (mix @ offset).flatten()
    x = randn(2, 8, 6, 5, seed=2)
    torch.testing.assert_close(layer(x), teacher(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_compact_form_attends_over_the_generated_keys(rank: int) -> None:
    layer = randomised(config(rank_k=rank, rank_v=rank, attention="compact", bias_rank=1))
    x = randn(2, 6, 5, 7)
    rows, keys, values = layer.generate(x)
    logits = layer.logits(rows, keys)
    assert logits.shape == (2, 2, 4, rank)
    rows, keys, values = (maps.view(2, 2, -1, 35) for maps in (rows, keys, values))
    expected = F.normalize(rows, dim=-1) @ F.normalize(keys, dim=-1).mT * layer.temperature
    expected = expected + layer.mode_left @ layer.mode_right.mT
    torch.testing.assert_close(logits, expected)
    attention = expected.softmax(-1)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 4))
    mapped = (attention @ values).view(2, 8, 35)
    torch.testing.assert_close(layer(x), (layer.output @ mapped).view(2, 5, 5, 7))


def test_static_bias_and_query_scale_and_key_temperature() -> None:
    layer = randomised(config(rank_q=3, bias_rank=2))
    rows, keys, _ = layer.generate(randn(2, 6, 5, 7))
    r = layer.expand_queries @ rows.view(2, 2, 3, 35)
    k = layer.expand_keys @ keys.view(2, 2, 2, 35)
    expected = F.normalize(r, dim=-1) @ F.normalize(k, dim=-1).mT
    expected = expected * layer.temperature * layer.query_scale
    assert layer.temperature.shape == (2, 1, 4)
    assert layer.query_scale.shape == (2, 4, 1)
    torch.testing.assert_close(layer.uncorrected_logits(rows, keys), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        layer.logits(rows, keys), expected + layer.mode_left @ layer.mode_right.mT, rtol=1e-4, atol=1e-5
    )


# --- the guide


def test_pooled_statistics() -> None:
    x = randn(3, 4, 6, 5) * 3 + 2
    expected = torch.cat((x.mean((2, 3)), x.std((2, 3), correction=0)), 1)
    torch.testing.assert_close(pooled_statistics(x), expected)


def test_gradient_of_pooled_statistics_is_finite_on_flat_maps() -> None:
    x = torch.full((1, 2, 4, 4), 0.3, requires_grad=True)
    pooled_statistics(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_guide_starts_with_gates_of_one_and_linear_strengths() -> None:
    guide, x = CalibrationNetwork(6, 3, 4, 5), randn(2, 6, 5, 7)
    strengths, gates_k, gates_v = guide(x)
    torch.testing.assert_close(strengths, pooled_statistics(x) @ guide.hidden.weight.T + guide.hidden.bias)
    assert torch.equal(gates_k, torch.ones(2, 4))
    assert torch.equal(gates_v, torch.ones(2, 5))


def _steered(layer: Any, strengths: list[float], gates_k: list[float], gates_v: list[float]) -> Any:
    """The layer with a guide that says the same for every image."""
    layer = copy.deepcopy(layer)
    guide = layer.guide
    assert guide is not None
    guide.hidden.weight.zero_()
    guide.hidden.bias.copy_(torch.tensor(strengths))
    guide.out.weight.zero_()
    correction = [0.0] * len(strengths)
    guide.out.bias.copy_(torch.tensor(correction + [g - 1 for g in gates_k + gates_v]))
    return layer


def test_guided_modes_add_to_the_static_bias() -> None:
    layer, x = randomised(config(bias_rank=1, guide_width=2)), randn(2, 6, 5, 7)
    rows, keys, _ = layer.generate(x)
    bare = layer.uncorrected_logits(rows, keys)
    left, right = layer.mode_left, layer.mode_right
    for strengths in ([0.0, 0.0], [0.5, -2.0]):
        steered = _steered(layer, strengths, [1.0] * 4, [1.0] * 4)
        modes = torch.tensor([1.0, *strengths])
        expected = bare + torch.einsum("hcl,l,hdl->hcd", left, modes, right)
        torch.testing.assert_close(steered.logits(rows, keys, *steered.guidance(x)[:2]), expected)


def test_value_gates_scale_what_each_generated_value_adds() -> None:
    layer, x = randomised(config(guide_width=2, output_bias=True)), randn(2, 6, 5, 7)

    def output(gates: list[float]) -> Tensor:
        steered = _steered(layer, [0.3, 0.2], [1.0] * 4, gates)
        return steered(x) - steered.output_bias.view(-1, 1, 1)

    torch.testing.assert_close(output([2.0] * 4), 2 * output([1.0] * 4), rtol=1e-4, atol=1e-4)
    assert output([0.0] * 4).abs().max() < 1e-5
    parts = sum(output([float(i == j) for j in range(4)]) for i in range(4))
    torch.testing.assert_close(parts, output([1.0] * 4), rtol=1e-4, atol=1e-4)


def test_key_gates_weigh_the_components_of_the_keys() -> None:
    layer, x = randomised(config(guide_width=1)), randn(2, 6, 5, 7)
    rows, keys, _ = layer.generate(x)

    def logits(gates: list[float]) -> Tensor:
        steered = _steered(layer, [0.0], gates, [1.0] * 4)
        return steered.uncorrected_logits(rows, keys, steered.guidance(x)[1])

    plain = layer.uncorrected_logits(rows, keys)
    torch.testing.assert_close(logits([1.0] * 4), plain)
    # A common factor cancels in the normalisation, per head.
    torch.testing.assert_close(logits([3.0, 3.0, 0.5, 0.5]), plain)
    weighted = copy.deepcopy(layer)
    weighted.expand_keys.mul_(torch.tensor([[1.0, 0.0], [2.0, 3.0]]).unsqueeze(1))
    torch.testing.assert_close(
        logits([1.0, 0.0, 2.0, 3.0]), weighted.uncorrected_logits(rows, keys), rtol=1e-4, atol=1e-5
    )


def test_key_gates_of_the_compact_form_scale_logits() -> None:
    layer = randomised(config(rank_k=3, rank_v=3, attention="compact", guide_width=1))
    rows, keys, _ = layer.generate(randn(2, 6, 5, 7))
    gates = torch.tensor([[1.0, 0.0, 2.0, 0.5, 1.0, -1.0]]).expand(2, 6)
    expected = layer.uncorrected_logits(rows, keys) * gates.view(2, 2, 1, 3)
    torch.testing.assert_close(layer.uncorrected_logits(rows, keys, gates), expected)


def test_full_keys_have_no_gates() -> None:
    """They would cancel in the normalisation, and get no gradient."""
    assert config(rank_k=4).key_gates == 0
    assert config(rank_k=2).key_gates == 4
    assert config(rank_k=4, rank_v=4, attention="compact").key_gates == 8


# --- behaviour in a network

SETTINGS: dict[str, tuple[Ranks, str]] = {
    "k, v 4": (Ranks(k=4, v=4), "expanded"),
    "q, k, v 4": (Ranks(4, 4, 4), "expanded"),
    "q, k, v 1": (Ranks(1, 1, 1), "expanded"),
    "k 8, v 2": (Ranks(k=8, v=2), "expanded"),  # full in the first level, low in the others
    "v alone": (Ranks(v=4), "expanded"),
    "k alone": (Ranks(k=4), "expanded"),
    "q alone": (Ranks(q=4), "expanded"),
    "full": (Ranks(), "expanded"),
    "compact 4": (Ranks(k=4, v=4), "compact"),
    "compact 4, q 4": (Ranks(4, 4, 4), "compact"),
    "compact 8": (Ranks(k=8, v=8), "compact"),
}


def _images() -> Tensor:
    """Eight, from one texture to another, so that the guide has something to go by."""
    one, other = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.stack([torch.lerp(one, 0.3 * other, weight) for weight in torch.linspace(0, 1, 8)])


def _two_layers(teacher: Restormer) -> dict[str, AttentionLayer]:
    names = ("encoder_level1.0.attn", "latent.0.attn")
    return {name: layer for name, layer in attention_layers(teacher).items() if name in names}


def _without_gradient(student: nn.Module, images: Tensor) -> list[str]:
    student.zero_grad()
    target = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    (student(images) - target).square().sum().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    return [name for name, p in student.named_parameters() if p.grad is not None and not p.grad.any()]


@pytest.mark.parametrize(("ranks", "attention"), SETTINGS.values(), ids=SETTINGS)
def test_gradients_reach_every_parameter(make_restormer: MakeRestormer, ranks: Ranks, attention: str) -> None:
    teacher = make_restormer(bias=True, num_refinement_blocks=0)
    images = _images()
    configs = plan_layers(_two_layers(teacher), ranks, attention)
    student, fits = initialise_student(teacher, configs, batches(images))
    assert all(fits[name].guide_explained > 0 for name in configs if configs[name].guide_width)
    assert _without_gradient(student, images) == []


def test_a_guide_that_could_not_be_fitted_still_learns(make_restormer: MakeRestormer) -> None:
    """Its strengths start at zero, which cuts its second layer off: for the first step only."""
    teacher = make_restormer(num_refinement_blocks=0)
    images = _images()[:1].repeat(4, 1, 1, 1)  # nothing varies
    student, _ = initialise_student(
        teacher, plan_layers(_two_layers(teacher), Ranks(k=4, v=4)), batches(images)
    )
    for core in glmha_layers(student).values():
        assert core.guide is not None
        nn.init.zeros_(core.guide.hidden.weight)
        nn.init.zeros_(core.guide.hidden.bias)
    assert all(name.endswith("guide.out.weight") for name in _without_gradient(student, _images()))
    torch.optim.Adam(student.parameters(), 1e-3).step()
    assert _without_gradient(student, _images()) == []


@pytest.mark.parametrize("attention", ["expanded", "compact"])
def test_attention_does_not_depend_on_the_image_size(attention: str) -> None:
    """Logits and guide are built of means: an image tiled 2 x 3 times is treated as the image itself."""
    layer = randomised(
        config(kernel_size=1, rank_q=3, attention=attention, bias_rank=1, guide_width=2, bias=True)
    )
    x = randn(2, 6, 5, 7)
    y, tiled = layer(x), layer(x.repeat(1, 1, 2, 3))
    torch.testing.assert_close(tiled, y.repeat(1, 1, 2, 3), rtol=1e-4, atol=1e-4)


def test_a_black_image_is_finite() -> None:
    layer = randomised(config(rank_q=3, bias_rank=1, guide_width=2))
    assert layer(torch.zeros(1, 6, 4, 4)).isfinite().all()


def test_deterministic_and_independent_of_the_batch() -> None:
    layer, x = randomised(config(rank_q=3, bias_rank=1, guide_width=2)), randn(3, 6, 5, 7)
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


def test_config_survives_json() -> None:
    original = config(bias_rank=3, guide_width=4, attention="compact", bias=True)
    assert GLMHAConfig(**original.to_json()) == original


# --- ranks


@pytest.mark.parametrize(
    ("value", "rank"), [(8, 8), ("8", 8), (" 16 ", 16), ("full", None), (" FULL ", None), (None, None)]
)
def test_parse_rank(value: int | str | None, rank: int | None) -> None:
    assert parse_rank(value, "--rank") == rank


@pytest.mark.parametrize(
    "value", [0, -1, "0", "-1", 8.5, 8.0, "8.5", "abc", "", math.nan, "nan", True, False]
)
def test_bad_ranks_are_quoted(value: object) -> None:
    with pytest.raises(UsageError) as caught:
        Ranks.parse(8, rank_v=value)
    message = str(caught.value)
    assert message.startswith(f"--rank-v {value}: ")
    assert "give a whole number such as 8, or full" in message
    assert "\n" not in message


def test_rank_sets_keys_and_values_only() -> None:
    assert Ranks.parse(8) == Ranks(None, 8, 8)
    assert Ranks.parse("full") == Ranks()
    assert Ranks.parse(8, rank_q=16) == Ranks(16, 8, 8)
    assert Ranks.parse(8, rank_k=4) == Ranks(None, 4, 8)
    assert Ranks.parse("8", rank_v="full") == Ranks(None, 8, None)
    assert str(Ranks(16, 8, None)) == "q 16, k 8, v full"


def test_plan(tiny_restormer: Restormer) -> None:
    plan = plan_layers(attention_layers(tiny_restormer), Ranks(k=12, v=4))
    first, latent = plan["encoder_level1.0.attn"], plan["latent.0.attn"]
    assert (first.head_channels, first.rank_q, first.rank_k, first.rank_v) == (8, 8, 8, 4)
    assert (latent.head_channels, latent.rank_q, latent.rank_k, latent.rank_v) == (16, 16, 12, 4)
    assert (latent.channels, latent.out_channels, latent.heads) == (64, 64, 4)
    assert (first.bias_rank, first.guide_width) == (0, 0)  # its logits are exact
    assert (latent.bias_rank, latent.guide_width) == (BIAS_RANK, GUIDE_WIDTH)
    assert not latent.full
    assert all(config.full for config in plan_layers(attention_layers(tiny_restormer), Ranks()).values())


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_rank_above_the_heads_channels(tiny_restormer: Restormer, part: str) -> None:
    layers = attention_layers(tiny_restormer)
    plan_layers(layers, Ranks(**{part: 16}))
    with pytest.raises(UsageError, match=f"rank 17 of {part} is above the 16 channels .* give 1 to 16"):
        plan_layers(layers, Ranks(**{part: 17}))


def test_attention_form_errors(tiny_restormer: Restormer) -> None:
    layers = attention_layers(tiny_restormer)
    with pytest.raises(UsageError, match="--attention sparse: unknown; give expanded or compact"):
        plan_layers(layers, Ranks(k=4, v=4), "sparse")
    with pytest.raises(UsageError, match="must be equal, not q full, k 4, v 8"):
        plan_layers(layers, Ranks(k=4, v=8), "compact")


def test_compact_at_full_rank_is_expanded(tiny_restormer: Restormer) -> None:
    plan = plan_layers(attention_layers(tiny_restormer), Ranks(k=8, v=8), "compact")
    assert plan["encoder_level1.0.attn"].attention == "expanded"
    assert plan["encoder_level1.0.attn"].full
    assert plan["latent.0.attn"].attention == "compact"


def test_compact_attention_needs_two_keys() -> None:
    layers = attention_layers(nn.Sequential(mdta(8, 1, bias=False)))
    with pytest.raises(UsageError, match="one key"):
        plan_layers(layers, Ranks(k=1, v=1), "compact")


def test_a_model_without_channel_attention_is_refused_clearly() -> None:
    with pytest.raises(UsageError, match="no channel attention"):
        plan_layers({}, Ranks(k=1, v=1))
