"""What choices cost: layers that are counted alone cost what they cost in the network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from csa2glmha.metrics.alone import CountedAlone, calls_of
from csa2glmha.metrics.complexity import count_complexity
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.layers import attention_layers
from csa2glmha.reading.own import read_own
from csa2glmha.search.choices import all_choices, picks_of_side, sizes_of
from csa2glmha.search.costs import StudentCount, count_costs
from tests.conformance import network
from tests.networks import Network, feedforwards, image
from tests.subjects import family_names, subject_of


def check_costs(teacher: nn.Module, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Choices save what the counts of whole students say."""
    choices = all_choices(attention_layers(teacher), feed_forwards(teacher), ())
    count = StudentCount(teacher, lambda _: shapes)
    costs = count_costs(choices, count_complexity(teacher, *shapes), count)
    lossless = count(sizes_of(teacher, choices, [0] * len(choices)))
    assert costs.lossless == (lossless.macs, lossless.params)
    for side in dict.fromkeys(side for _, side in choices):
        mine = [saved for (_, own), saved in costs.saved.items() if own == side]
        number = max(map(len, mine)) - 1
        counted = count(sizes_of(teacher, choices, picks_of_side(choices, side, number)))
        changed = [saved[number] for saved in mine if number < len(saved)]
        assert sum(macs for macs, _ in changed) == lossless.macs - counted.macs
        assert sum(params for _, params in changed) == lossless.params - counted.params
        assert number == 0 or counted.macs < lossless.macs


@pytest.mark.parametrize("family", family_names())
def test_of_every_family(family: str) -> None:
    teacher = network(subject_of(family))
    check_costs(teacher, teacher.input_shapes(32, 48))


@pytest.mark.parametrize("block", [feedforwards.Beside, feedforwards.Twice])
def test_of_a_network_of_the_users(block: type[nn.Module]) -> None:
    teacher = Network(lambda channels: feedforwards.Attended(channels, block)).eval()
    read_own(teacher, (image(32, 48),))
    check_costs(teacher, (tuple(image(32, 48).shape),))


class Twice(nn.Module):
    """One convolution that is called twice, at two sizes, with a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(input=self.layer(image)[..., ::2, ::2])


def test_all_calls_of_a_module_count() -> None:
    model = Twice()
    counted = CountedAlone(calls_of(model, ["layer"], (1, 3, 16, 24)))
    assert counted.macs("layer", model.layer) == count_complexity(model, (1, 3, 16, 24)).macs
    assert counted.macs("layer", nn.Conv2d(3, 3, 1)) * 9 == counted.macs("layer", model.layer)


class Chosen(nn.Module):
    """Calls what it keeps: which, cannot be read."""

    def __init__(self, product: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


def test_what_cannot_be_read_is_its_own_kind() -> None:
    model = nn.Sequential(Chosen(lambda x: x), nn.ReLU())
    counted = CountedAlone(calls_of(model, ["0"], (1, 8, 16, 16)))
    assert counted.macs("0", Chosen(lambda x: x @ x)) == 8 * 16**3
    assert counted.macs("0", Chosen(lambda x: x)) == 0


def test_layers_alike_in_shape_alone_are_told_apart() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.ReLU())
    counted = CountedAlone(calls_of(model, ["0", "1"], (1, 8, 16, 24)))
    narrower = nn.Conv2d(8, 8, 3)
    assert counted.macs("0", model[0]) == counted.macs("1", model[1]) > counted.macs("0", narrower)
