"""What a network takes and makes, found by trying."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from csa2glmha.core.errors import NetworkError, UsageError
from csa2glmha.export.onnx import export_onnx
from csa2glmha.networks.builder import Origin
from csa2glmha.networks.foreign import ForeignNetwork, Interface, chosen_output
from csa2glmha.networks.probe import probe
from tests.networks import builders


class Behind(nn.Module):
    """A convolution, and something that is made of its output."""

    def __init__(self, made: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.made = nn.Conv2d(3, 3, 1), made

    def forward(self, x: Tensor) -> object:
        return self.made(self.layer(x))


class Output(dict[str, object]):
    """As libraries have them: a dict with further ways to its values."""


class Pair(tuple[object, ...]):
    pass


@dataclass
class Result:
    label: str
    restored: object


@pytest.mark.parametrize(
    "made",
    [
        lambda y: Output(loss=None, restored=y),
        lambda y: Pair((None, y)),
        lambda y: UserDict(restored=Output(inner=[y])),
        lambda y: Result("a", {"b": y}),
    ],
    ids=["dict", "tuple", "user dict", "dataclass"],
)
def test_tensors_are_found_in_classes_of_libraries(made: Callable[[Tensor], object]) -> None:
    network = Behind(made)
    found = probe(network, "archs.py:build", (), Interface((), 0))
    image = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(chosen_output(network(image), -1), network.layer(image))
    assert found.out_channels == 3


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (lambda y: y[..., :0, :0], "is no enlarged or reduced image"),
        (lambda y: y / 0 * 0, "its output is not finite"),
        (lambda y: {"width": 3}, "makes no tensor, but a dict without one"),
        (lambda y: [], "makes no tensor, but a list without one"),
    ],
    ids=["no pixels", "not a number", "a dict", "an empty list"],
)
def test_outputs_that_are_no_images_are_told(made: Callable[[Tensor], object], match: str) -> None:
    with pytest.raises(NetworkError, match=match):
        probe(Behind(made), "archs.py:build", (), Interface((), 0))


def test_logits_are_told_from_images() -> None:
    found = probe(Behind(lambda y: y.mean((2, 3))), "archs.py:build", (), Interface((), 0))
    assert (found.output, found.out_channels, found.multiple, found.fixed_size) == ("logits", 3, 1, None)
    assert Interface.from_json(found.to_json()) == found
    earlier = {name: value for name, value in found.to_json().items() if name != "output"}
    assert Interface.from_json(earlier).output == "output"
    with pytest.raises(ValueError, match="'text' is no kind of output"):
        Interface.from_json(found.to_json() | {"output": "text"})


def test_logits_of_images_of_one_size() -> None:
    network = builders.classifier(side=64)
    found = probe(network, "archs.py:classifier", (), Interface((), 0))
    assert (found.output, found.out_channels, found.fixed_size) == ("logits", 4, (64, 64))
    chosen = builders.classifier(side=64, auxiliary=True)
    assert probe(chosen, "archs.py:classifier", (), Interface((), 0)).output == "logits"
    with pytest.raises(NetworkError, match="1x256x12, neither images nor logits"):
        probe(chosen, "archs.py:classifier", (), Interface((), 0, output_index=0))


def test_a_range_of_colours_is_refused_for_other_channels() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1))
    with pytest.raises(UsageError, match="--range imagenet: is of 3 channels"):
        probe(network, "archs.py:build", (), Interface((), 0, value_range="imagenet"))


def test_an_image_is_one() -> None:
    assert probe(Behind(lambda y: y), "archs.py:build", (), Interface((), 0)).out_channels == 3


@pytest.mark.parametrize("mixes", [False, True])
def test_networks_of_single_images_get_one_after_the_other(mixes: bool) -> None:
    network = builders.Single(mixes).eval()
    found = probe(network, "archs.py:Single", (), Interface((), 0))
    assert not found.batches and Interface.from_json(found.to_json()) == found
    model = ForeignNetwork(network, found, Origin("archs.py:Single", {}, {}))
    images = torch.rand(2, 3, 14, 17, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(images), torch.cat([model(images[:1]), model(images[1:])]))


def test_the_file_of_such_a_network_takes_single_images(tmp_path: Path) -> None:
    network = builders.Single().eval()
    found = probe(network, "archs.py:Single", (), Interface((), 0))
    model = ForeignNetwork(network, found, Origin("archs.py:Single", {}, {}))
    report = export_onnx(model, tmp_path / "single.onnx")
    assert [size.shape[0] for size in report.parity] == [1, 1, 1]


def test_others_get_batches() -> None:
    assert probe(builders.build(), "archs.py:build", (), Interface((), 0)).batches


class Shifted(nn.Module):
    """Of two inputs: an image, and a mask that is six columns wider."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        assert mask.shape[-1] == image.shape[-1] + 6
        return image * mask[..., 3:-3]


def test_a_mask_with_more_columns_has_as_many_more_for_every_image() -> None:
    shapes = ((1, 3, 32, 48), (1, 3, 32, 54))
    found = probe(Shifted(), "archs.py:build", shapes, Interface((), 0))
    assert (found.multiple, found.fixed_size) == (1, None)
    network = ForeignNetwork(Shifted(), found, Origin("archs.py:build", {}, {}))
    assert network.input_shapes(45, 70, 2) == ((2, 3, 45, 70), (2, 3, 45, 76))
