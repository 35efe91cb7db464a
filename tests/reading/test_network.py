"""Reading by recording: what has a canonical form is read and computes the same; the rest is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from csa2glmha.commands.inspect import form_in_words
from csa2glmha.config.ranks import Ranks
from csa2glmha.initialize.configure import layer_config
from csa2glmha.initialize.student import initialise_student
from csa2glmha.reading.check import difference
from csa2glmha.reading.layers import attention_layers
from csa2glmha.reading.network import read_network
from tests.networks import Block, Network, beside, forms, image, refused

FORMS: dict[str, tuple[Block, str]] = {
    "maps": (forms.MapAttention, ""),
    "dilated": (forms.DilatedAttention, ""),
    "interleaved": (forms.InterleavedAttention, ""),
    "late norm": (forms.LateNormAttention, ""),
    "in place": (forms.InPlaceAttention, ""),
    "tokens": (lambda c: forms.TokenBlock(forms.TokenAttention(c)), "attention"),
    "fused": (lambda c: forms.TokenBlock(forms.TokenAttention(c, fused=True)), "attention"),
    "tokens with kernels": (lambda c: forms.TokenBlock(forms.SpreadTokenAttention(c)), "attention"),
    "factor and branch": (forms.LitBlock, "attention"),
    "branch": (lambda c: forms.LitBlock(c, factor=False), "attention"),
    "factor": (lambda c: forms.LitBlock(c, branch=False), "attention"),
    "relu": (forms.ReluAttention, ""),
    "cross, called twice": (forms.CrossBlock, "attention"),
}

REFUSED: dict[str, tuple[Block, str]] = {
    "top-k": (refused.TopKAttention, "top-k between the two products"),
    "window": (refused.WindowAttention, "attention inside windows of 16 pixels"),
    "same": (refused.SameAttention, "keys and values are the same"),
    "plain": (refused.PlainAttention, "no normalisation of queries and keys over the pixels"),
    "half": (refused.HalfNormAttention, "no normalisation of keys over the pixels"),
    "pixel norm": (
        refused.PixelNormAttention,
        "its logits are not cosines of queries and keys over the pixels",
    ),
    "biased": (refused.BiasedAttention, "a bias is added to its logits"),
    "sized": (refused.SizedAttention, "at another size its canonical form differs"),
    "linear": (refused.LinearAttention, "no softmax or ReLU between the two products"),
    "outside": (refused.OutsideBlock, "its projections are outside of the module"),
    "wide": (refused.WideAttention, "made by a 3x3 convolution across channels"),
    "overwriting": (refused.OverwritingAttention, "the whole network differs by"),
    "functional": (
        beside.FunctionalAttention,
        "queries and keys are not made by layers that can be left out",
    ),
    "shared queries": (
        beside.SharedQueriesAttention,
        "its canonical form differs from what the module returned",
    ),
    "small keys": (refused.SmallKeysAttention, "made at another size than the maps have"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_read_from_one_pass(name: str) -> None:
    block, path = FORMS[name]
    network = Network(block)
    before = copy.deepcopy(network.state_dict())
    readings = read_network(network, (image(),))
    assert not readings.refused
    assert list(readings.layers) == [f"blocks.{index}{path and '.' + path}" for index in range(2)]
    assert max(layer.error for layer in readings.layers.values()) < 1e-5
    assert readings.difference is not None and readings.difference < 1e-5
    assert readings.other_size == ((1, 3, 40, 12),)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", FORMS)
def test_a_layer_at_full_rank_takes_the_place_of_a_module(name: str) -> None:
    block, _ = FORMS[name]
    network = Network(block).eval()
    readings = read_network(network, (image(),))
    network.recorded_readers = {  # type: ignore[assignment]
        layer: found.reader for layer, found in readings.layers.items()
    }
    configs = {layer: layer_config(each.form, Ranks()) for layer, each in attention_layers(network).items()}
    assert set(configs) == set(readings.layers)
    student, _ = initialise_student(network, configs, None)
    assert not isinstance(
        student.get_submodule(next(iter(configs))), type(network.get_submodule(next(iter(configs))))
    )
    with torch.no_grad():
        assert difference(student(image(16, 8)), network(image(16, 8))) < 1e-5


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_canonical_form_is_refused_with_its_reason(name: str) -> None:
    block, reason = REFUSED[name]
    readings = read_network(Network(block), (image(),))
    assert not readings.layers
    assert len(readings.refused) == 2
    for refusal in readings.refused:
        assert refusal.reason.startswith(reason) or reason in refusal.reason, refusal
        assert refusal.name.startswith("blocks.")


def test_one_layer_is_refused_and_the_rest_is_read() -> None:
    made = iter((forms.MapAttention, refused.TopKAttention))
    readings = read_network(Network(lambda channels: next(made)(channels)), (image(),))
    assert list(readings.layers) == ["blocks.0"]
    assert [refusal.name for refusal in readings.refused] == ["blocks.1"]


def test_attention_across_pixels_is_none_of_ours() -> None:
    class Spatial(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            y, _ = self.attention(tokens, tokens, tokens, need_weights=False)
            return y.transpose(1, 2).reshape(x.shape)

    readings = read_network(Network(Spatial), (image(),))
    assert not readings.layers and not readings.refused
    assert "attention over all pixels" in {each.kind for each in readings.operators}


def test_a_network_that_fails_at_another_size_is_checked_at_its_own() -> None:
    class Fixed(Network):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            assert image.shape[2:] == (12, 20)
            return super().forward(image)

    readings = read_network(Fixed(forms.MapAttention), (image(),))
    assert len(readings.layers) == 2
    assert readings.other_size is None and readings.difference is not None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("maps", "depthwise projections"),
        ("relu", "depthwise projections, relu"),
        ("cross, called twice", "depthwise projections, queries from a second input"),
        ("factor", "linear projections, V times a map"),
        ("branch", "linear projections, a branch of V"),
        ("factor and branch", "linear projections, V times a map, a branch of V"),
    ],
)
def test_forms_are_told_in_words(name: str, words: str) -> None:
    network = Network(FORMS[name][0])
    read_network(network, (image(),)).carried_by(network)
    assert {form_in_words(layer) for layer in attention_layers(network).values()} == {words}
