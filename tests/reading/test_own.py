"""Networks that no family knows are compressed in memory."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import csa2glmha
from csa2glmha.core.errors import OutputError, UsageError
from csa2glmha.networks.foreign import shapes_from
from csa2glmha.reading.check import difference
from csa2glmha.reading.layers import attention_layers, glmha_layers
from csa2glmha.reading.own import narrowed, read_own
from tests.networks import Block, Network, forms, image, refused

pytestmark = pytest.mark.usefixtures("quick_factors")


class MapThenTopK(nn.Module):
    """Two attentions, of which one is refused."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.plain, self.selected = forms.MapAttention(channels), refused.TopKAttention(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.plain(x)
        return x + self.selected(x)


@pytest.mark.parametrize("block", [forms.DilatedAttention, forms.CrossBlock, forms.LitBlock])
def test_compress_takes_any_network(block: Block) -> None:
    network = Network(block).eval()
    batches = [torch.cat([image(16, 24, seed) for seed in (1, 2)]), image(16, 24, 3)]
    exact = csa2glmha.compress(network, batches, rank="full", progress=False).student
    small = csa2glmha.compress(network, batches, rank=2, progress=False)
    assert len(glmha_layers(small.student)) == 2
    x = image(20, 12)
    with torch.no_grad():
        assert difference(exact(x), network(x)) < 1e-4
        assert small.student(x).shape == x.shape
    counted = small.record.complexity
    assert counted is not None and counted.after.macs < counted.before.macs


def test_its_student_is_loaded_into_a_network_with_other_weights(tmp_path: Path) -> None:
    batches = [image(16, 24, 1), image(16, 24, 2)]
    result = csa2glmha.compress(Network(forms.MapAttention).eval(), batches, rank=2, progress=False)
    result.save(tmp_path / "student.safetensors")
    for again in (result.save, result.export):
        with pytest.raises(OutputError, match=r"give overwrite=True to replace it, or choose another name$"):
            again(tmp_path / "student.safetensors")
    torch.manual_seed(7)
    loaded = csa2glmha.load(tmp_path / "student.safetensors", network=Network(forms.MapAttention))
    assert torch.equal(loaded(batches[0]), result.student(batches[0]))


def test_where_nothing_can_be_converted_the_reasons_are_one_line() -> None:
    network = Network(refused.TopKAttention).eval()
    with pytest.raises(UsageError) as caught:
        csa2glmha.compress(network, [image(16, 24, 1), image(16, 24, 2)], progress=False)
    assert str(caught.value) == (
        "no attention of Network can be converted: 'blocks.0', 'blocks.1': top-k between the two products"
    )


def test_compress_says_what_it_does_not_convert(capsys: pytest.CaptureFixture[str]) -> None:
    network = Network(MapThenTopK).eval()
    csa2glmha.compress(network, [image(16, 24, 1), image(16, 24, 2)], rank="full")
    told = capsys.readouterr().err
    assert "not converted" in told and "top-k between the two products" in told


def test_a_recording_is_made_of_a_small_part_that_is_not_square() -> None:
    batch, other = torch.rand(2, 3, 128, 64), torch.rand(2, 7)
    cut, kept = narrowed((batch, other))
    assert cut.shape == (1, 3, 64, 32) and kept.shape == (1, 7)
    (square,) = narrowed((torch.rand(2, 3, 16, 16),))
    assert square.shape == (1, 3, 16, 8)


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ([[1, 3, 0, 8]], "0 is no size"),
        ([[1, 3, 8, 1 << 30]], "is no size"),
        ([["3"]], "'3' is no size"),
        ([[1, 3, 1 << 20, 1 << 20]], "no inputs of a network"),
        ([], "no inputs of a network"),
    ],
)
def test_shapes_of_a_file_are_checked(shapes: list[list[object]], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        shapes_from(shapes)


def test_a_network_without_attention_is_told() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1)).eval()
    with pytest.raises(UsageError, match="Sequential has no attention across channels"):
        csa2glmha.compress(network, [image(16, 24, 1), image(16, 24, 2)], progress=False)


def test_copies_of_a_network_share_what_was_read() -> None:
    network = Network(forms.MapAttention)
    read_own(network, (image(),))
    layers, copies = attention_layers(network), attention_layers(copy.deepcopy(network))
    assert copies.keys() == layers.keys()
    for name, layer in layers.items():
        assert copies[name].reader is layer.reader and copies[name].module is not layer.module
