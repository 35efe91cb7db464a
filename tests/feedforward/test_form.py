"""Feed-forward networks as they are found, narrowed and refitted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from csa2glmha.config.ranks import Ranks
from csa2glmha.families import FAMILIES
from csa2glmha.feedforward.form import FeedForward, FeedForwardReader, kept_channels
from csa2glmha.feedforward.refit import AnchoredMoments
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.initialize.feedforward import HiddenMoments, hidden_moments, narrow
from csa2glmha.initialize.outputs import FeedForwardOutput, Output, outputs_of
from csa2glmha.initialize.refit import refit
from csa2glmha.initialize.residual import ResidualSums, expecting, residual_order
from csa2glmha.networks import run
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.layers import attention_layers
from csa2glmha.reading.own import read_own
from tests.networks import Block as NetworkBlock
from tests.networks import Network, forms, image
from tests.subjects import SUBJECTS, Subject

pytestmark = pytest.mark.usefixtures("quick_factors")


class Gated(nn.Module):
    """A gate and a value, with biases everywhere."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, 2 * hidden, 1)
        self.near = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=2, dilation=2, groups=2 * hidden)
        self.back = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.near(self.wide(x)).chunk(2, 1)
        return self.back(gate.sigmoid() * value)


class Blocks(nn.Module):
    """Residual blocks of the above, the second one adding in place."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn = nn.ModuleList(Gated(6, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ffn[0](x)
        x += self.ffn[1](x)
        return x + self.ffn[2](x)


READER = FeedForwardReader(Gated, ("wide", "near"), "back")


def blocks() -> Blocks:
    torch.manual_seed(0)
    model = Blocks().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def layers_of(model: Blocks) -> dict[str, FeedForward]:
    return {f"ffn.{index}": READER.read(module) for index, module in enumerate(model.ffn)}


def projections_of(model: Blocks) -> dict[str, Output]:
    return {name: FeedForwardOutput(layer) for name, layer in layers_of(model).items()}


def batches(count: int = 3) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(4)
    return [(torch.randn(2, 6, 9, 7, generator=generator),) for _ in range(count)]


@torch.no_grad()
def output(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return run(model, inputs)


def test_channels_that_are_kept_are_those_of_the_original() -> None:
    module = blocks().ffn[0]
    wanted = copy.deepcopy(module)
    gone = [1, 5, 15]
    with torch.no_grad():
        wanted.back.weight[:, gone] = 0
    form = READER.read(module)
    form.keep([index for index in range(16) if index not in gone])
    assert form.hidden == 13 and module.near.groups == 26 and module.near.dilation == (2, 2)
    x = batches()[0][0]
    torch.testing.assert_close(output(module, (x,)), output(wanted, (x,)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("channels", [[], [0, 0], [16], [-1]])
def test_channels_that_are_not_there_are_refused(channels: list[int]) -> None:
    with pytest.raises(ValueError, match="are not some of 16"):
        READER.read(blocks().ffn[0]).keep(channels)


def test_widths_are_whole_blocks() -> None:
    assert [kept_channels(1021, share) for share in (1.0, 0.75, 0.5, 0.001)] == [1021, 768, 512, 8]


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=lambda subject: subject.name)
def test_feed_forwards_of_every_family_can_be_narrowed_and_refitted(subject: Subject) -> None:
    if not any(family.feed_forwards for family in FAMILIES if family.name == subject.name):
        pytest.skip("says nothing of feed-forward networks")
    teacher = subject.build()
    student = copy.deepcopy(teacher)
    inputs = [subject.inputs(teacher, 32, 48, 2, seed) for seed in (1, 2)]
    hidden = HiddenMoments.of(teacher, feed_forwards(teacher), inputs)
    layers = feed_forwards(student)
    assert layers and set(hidden.moments) == set(layers)
    widths = {name: kept_channels(layer.hidden, 0.5) for name, layer in layers.items()}
    errors = narrow(layers, widths, hidden)
    assert all(layer.hidden == widths[name] for name, layer in layers.items())
    assert all(0 <= error < 1 for error in errors.values())
    before = (output(student, inputs[0]) - output(teacher, inputs[0])).square().mean()
    fits = refit(teacher, student, outputs_of(student, teacher), inputs)
    assert list(fits) and all(fit.after <= fit.before * (1 + 1e-6) for fit in fits.values())
    after = (output(student, inputs[0]) - output(teacher, inputs[0])).square().mean()
    assert after < before


def test_moments_are_means_of_what_the_contraction_gets() -> None:
    model = blocks()
    inputs = batches()
    x = torch.cat([each[0] for each in inputs])
    gate, value = model.ffn[0].near(model.ffn[0].wide(x)).chunk(2, 1)
    rows = (gate.sigmoid() * value).transpose(0, 1).flatten(1).detach().double()
    found = hidden_moments(model, layers_of(model), inputs)["ffn.0"]
    torch.testing.assert_close(found, rows @ rows.T / rows.shape[1], rtol=1e-4, atol=1e-6)


def test_sums_are_seen_whatever_code_adds() -> None:
    model = blocks()
    modules = dict(model.ffn.named_children())
    seen = residual_order(modules, lambda: model(*batches()[0]))
    assert list(seen.items()) == [("0", True), ("1", True), ("2", True)]
    # What the watcher answers takes the place of the sum, in place or not.
    zeros = ResidualSums(lambda _, stream, __: stream)
    x = batches()[0][0]
    with expecting(modules, lambda: zeros), zeros, torch.no_grad():
        torch.testing.assert_close(model(x.clone()), x)


def test_a_layer_that_runs_twice_is_left_alone_and_one_that_is_not_added_is_refitted() -> None:
    class Odd(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            x = x + self.ffn[0](x)
            x = x + self.ffn[0](x)
            return self.ffn[1](x) * 2

    torch.manual_seed(0)
    teacher = Odd().eval()
    student = copy.deepcopy(teacher)
    layers_of(student)["ffn.1"].keep(range(8))
    twice = student.ffn[0].back.weight.clone()
    before = (output(student, batches()[0]) - output(teacher, batches()[0])).square().mean()
    assert refit(teacher, student, projections_of(student), batches()).keys() == {"ffn.1"}
    assert torch.equal(student.ffn[0].back.weight, twice)
    assert (output(student, batches()[0]) - output(teacher, batches()[0])).square().mean() < before


def test_an_output_that_goes_elsewhere_first_is_no_part_of_a_sum() -> None:
    class Chained(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            y = self.ffn[0](x)
            return y + self.ffn[1](y.tanh())

    model = Chained().eval()
    seen = residual_order(dict(model.ffn.named_children()), lambda: model(*batches()[0]))
    assert list(seen.items()) == [("0", False), ("1", True)]


def test_refit_of_the_teacher_itself_changes_nothing() -> None:
    teacher = blocks()
    student = copy.deepcopy(teacher)
    fits = refit(teacher, student, projections_of(student), batches())
    assert list(fits) == ["ffn.0", "ffn.1", "ffn.2"]
    assert all(fit.before < 1e-5 and fit.after < 1e-5 for fit in fits.values())
    torch.testing.assert_close(
        output(student, batches()[0]), output(teacher, batches()[0]), atol=1e-4, rtol=1e-4
    )


def test_refit_is_least_squares_on_the_students_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer's weights against a regression written out, with what came before refitted already."""
    monkeypatch.setattr("csa2glmha.feedforward.refit.ANCHOR", 1e-5)  # the regression holds nothing
    teacher = blocks()
    student = copy.deepcopy(teacher)
    for layer in layers_of(student).values():
        layer.keep(range(0, 16, 2))
    refit(teacher, student, projections_of(student), batches())
    x = torch.cat([each[0] for each in batches()])
    with torch.no_grad():
        target, stream = x, x
        for index in range(3):
            target = target + teacher.ffn[index](target)
        for index in range(2):
            stream = stream + student.ffn[index](stream)
        last = student.ffn[2]
        gate, value = last.near(last.wide(stream)).chunk(2, 1)
        features = (gate.sigmoid() * value).transpose(0, 1).flatten(1).double()
        goal = (target - stream - last.back.bias.view(-1, 1, 1)).transpose(0, 1).flatten(1).double()
        expected = torch.linalg.lstsq(features.T, goal.T).solution.T
    torch.testing.assert_close(last.back.weight[:, :, 0, 0].double(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    "block",
    [
        forms.MapAttention,
        lambda channels: forms.TokenBlock(forms.TokenAttention(channels)),
        lambda channels: forms.TokenBlock(forms.SpreadTokenAttention(channels)),
        forms.LitBlock,
    ],
    ids=["maps", "tokens", "tokens with kernels", "channels last"],
)
def test_attention_is_refitted_in_every_layout(block: NetworkBlock) -> None:
    teacher = Network(block).eval()
    read_own(teacher, (image(),))
    inputs = [(image(16, 24, seed),) for seed in (1, 2, 3)]
    student, _ = initialise_student(teacher, plan_layers(attention_layers(teacher), Ranks(k=2, v=2)), inputs)

    def error() -> float:
        return float(sum((output(student, x) - output(teacher, x)).square().mean() for x in inputs))

    before = error()
    fits = refit(teacher, student, outputs_of(student, teacher), inputs)
    assert len(fits) == 2 and all(fit.after < fit.before for fit in fits.values())
    assert error() < before


def test_weights_stay_where_the_data_say_nothing() -> None:
    moments, weight = AnchoredMoments(), torch.ones(2, 3)
    features = torch.zeros(1, 3, 16)
    features[:, 0] = 1
    moments.add(features, torch.full((1, 2, 16), 5.0) - weight @ features)
    change = moments.change()
    wanted = torch.tensor([[5.0, 1, 1], [5, 1, 1]])
    torch.testing.assert_close(weight + change.float(), wanted, atol=1e-3, rtol=1e-3)
    before, after = moments.errors(weight, change)
    assert before == pytest.approx(0.64) and after < 1e-5
