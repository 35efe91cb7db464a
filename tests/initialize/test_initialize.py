from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.attention import GLMHA, ChannelAttention, GLMHAConfig, Projection
from csa2glmha.checkpoint.student import load
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import DataError
from csa2glmha.data.crops import calibration_crops
from csa2glmha.data.degrade import parse_degradation
from csa2glmha.data.images import MemoryImages, read_image
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.families.transposed.blocks import MDTA
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.compact import compact_target
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.initialize.factorize import (
    SeparableFactors,
    factorize,
    khatri_rao_rows,
    repaired,
    symmetric_root,
    teacher_bank,
)
from csa2glmha.initialize.logits import fit_guide, fit_scales, low_rank
from csa2glmha.initialize.statistics import LayerStatistics
from csa2glmha.reading import layers as layers_module
from csa2glmha.reading.layers import attention_layers, glmha_layers
from csa2glmha.reading.reader import PlainReader
from tests.conftest import MakeRestormer, batches


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(count: int, size: int, seed: int) -> Tensor:
    """Symmetric positive definite matrices with eigenvalues from 1 down to 1e-3."""
    basis = torch.linalg.qr(randn(count, size, size, seed=seed))[0]
    return basis @ torch.diag(torch.logspace(0, -3, size, dtype=torch.float64)) @ basis.mT


# --- factorisation of a filter bank


@dataclasses.dataclass
class Bank:
    """A factorisation problem of two heads with six channels each."""

    kernels: Tensor
    offsets: Tensor | None
    left: Tensor
    right: Tensor

    def factorize(self, rank: int, **changes: int) -> SeparableFactors:
        return factorize(self.kernels, self.offsets, self.left, self.right, rank, **changes)

    def error_of(self, factors: SeparableFactors) -> Tensor:
        """|M^(1/2) (T - G T_r) Omega^(1/2)|^2 over |M^(1/2) T Omega^(1/2)|^2, written out."""
        rows = khatri_rao_rows(factors.mix.double(), factors.kernel.double())
        if self.offsets is not None:
            rows = torch.cat((rows, factors.offset.double().unsqueeze(-1)), -1)
        target = teacher_bank(self.kernels, self.offsets)
        return self._size(target - factors.expand.double() @ rows) / self._size(target)

    def _size(self, bank: Tensor) -> Tensor:
        return torch.einsum("hij,hja,hab,hib->h", self.left, bank, self.right, bank)


def bank(area: int, offsets: bool, seed: int = 0, channels: int = 6) -> Bank:
    return Bank(
        randn(2, channels, area, seed=seed),
        randn(2, channels, seed=seed + 1) if offsets else None,
        spd(2, channels, seed + 2),
        spd(2, channels * area + offsets, seed + 3),
    )


def test_teacher_bank_places_each_kernel_on_its_channel() -> None:
    kernels = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    expected = torch.tensor([[[1.0, 2, 0, 0], [0, 0, 3, 4]]])
    assert torch.equal(teacher_bank(kernels, None), expected)
    with_offsets = teacher_bank(kernels, torch.tensor([[5.0, 6.0]]))
    assert torch.equal(with_offsets[..., :4], expected)
    assert torch.equal(with_offsets[..., 4], torch.tensor([[5.0, 6.0]]))


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 4, 5])
def test_pointwise_factorisation_is_the_truncated_svd(rank: int, offsets: bool) -> None:
    problem = bank(1, offsets)
    roots = [torch.from_numpy(_root(m)) for m in (problem.left, problem.right)]
    whitened = roots[0] @ teacher_bank(problem.kernels, problem.offsets) @ roots[1]
    power = torch.linalg.svdvals(whitened).square()
    bound = power[:, rank:].sum(-1) / power.sum(-1)
    factors = problem.factorize(rank)
    torch.testing.assert_close(problem.error_of(factors), bound, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(factors.error.double(), bound, rtol=1e-3, atol=1e-6)


def _root(matrices: Tensor) -> np.ndarray:
    """Square roots by another route than the code under test: Newton's iteration."""
    y, z = matrices / 2, torch.eye(matrices.shape[-1], dtype=matrices.dtype).expand_as(matrices)
    for _ in range(60):
        y, z = (y + torch.linalg.inv(z)) / 2, (z + torch.linalg.inv(y)) / 2
    return (y * 2**0.5).numpy()


@pytest.mark.parametrize("offsets", [False, True])
def test_separable_factorisation_improves_with_rank_and_ends_exact(offsets: bool) -> None:
    problem = bank(9, offsets)
    factors = {rank: problem.factorize(rank) for rank in range(1, 7)}
    errors = torch.stack([problem.error_of(f) for f in factors.values()])
    reported = torch.stack([f.error.double() for f in factors.values()])
    torch.testing.assert_close(reported, errors, rtol=1e-3, atol=1e-6)
    assert (errors[1:] <= errors[:-1] + 1e-6).all()
    assert (errors[0] > 0.05).all()  # there is something to gain
    assert (errors[-1] < 1e-6).all()


@pytest.mark.parametrize("offsets", [False, True])
def test_separable_factorisation_finds_a_planted_one(offsets: bool) -> None:
    """Channels that share two kernels are mixtures of two generated maps if their inputs are alike."""
    generator_kernels = randn(2, 2, 9, seed=1)
    kernels = generator_kernels[:, [0, 0, 0, 1, 1, 1]]
    gain = randn(2, 6, seed=2)
    offset = gain * randn(2, 2, seed=3)[:, [0, 0, 0, 1, 1, 1]] if offsets else None
    # Every map is its gain times one common map.
    common = spd(2, 9 + offsets, 4)
    spread = torch.zeros(2, 6 * 9 + offsets, 9 + offsets, dtype=torch.float64)
    for channel in range(6):
        spread[:, channel * 9 : channel * 9 + 9, :9] = torch.diag_embed(gain[:, channel, None].expand(2, 9))
    if offsets:
        spread[:, -1, -1] = 1
    problem = Bank(kernels, offset, spd(2, 6, 5), spread @ common @ spread.mT)
    assert (problem.error_of(problem.factorize(2)) < 1e-6).all()
    assert (problem.error_of(problem.factorize(1)) > 1e-2).all()


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("rank", [1, 3])
def test_refinement_is_never_worse_than_its_start(rank: int, offsets: bool) -> None:
    problem = bank(9, offsets, seed=7)
    errors = [problem.error_of(problem.factorize(rank, iterations=n)) for n in (0, 1, 5, 150)]
    for before, after in itertools.pairwise(errors):
        assert (after <= before + 1e-6).all()
    assert (errors[-1] < 0.95 * errors[0]).any()


def test_components_have_unit_power_and_unit_kernels() -> None:
    problem = bank(9, True)
    factors = problem.factorize(3)
    rows = torch.cat((factors.bank, factors.offset.unsqueeze(-1)), -1).double()
    power = torch.einsum("hra,hab,hrb->hr", rows, problem.right, rows)
    torch.testing.assert_close(power, torch.ones_like(power), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(factors.kernel.norm(dim=-1), torch.ones(2, 3))


@pytest.mark.parametrize("area", [1, 9])
def test_degenerate_metrics_stay_finite(area: int) -> None:
    """Maps without signal, maps that are all the same, and a head that nothing reads."""
    problem = bank(area, False)
    zero, ones = torch.zeros_like(problem.right), torch.ones_like(problem.right)
    for right in (zero, ones):
        for left in (problem.left, torch.zeros_like(problem.left)):
            factors = dataclasses.replace(problem, left=left, right=right).factorize(2)
            for name, value in vars(factors).items():
                assert value.isfinite().all(), name


# --- metrics


def test_repaired_lifts_what_is_not_positive() -> None:
    basis = torch.linalg.qr(randn(5, 5))[0]
    matrix = basis @ torch.diag(torch.tensor([3.0, 2, 1, 0, -0.1], dtype=torch.float64)) @ basis.mT
    fixed = repaired(matrix.unsqueeze(0))[0]
    values = torch.linalg.eigvalsh(fixed)
    assert values[0] > 0
    torch.testing.assert_close(values[2:], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert torch.equal(fixed, fixed.mT) or torch.allclose(fixed, fixed.mT)
    torch.linalg.cholesky(fixed)


def test_repaired_leaves_good_matrices_alone_and_makes_symmetric() -> None:
    good = spd(3, 6, 0)
    torch.testing.assert_close(repaired(good), good, rtol=1e-6, atol=1e-8)
    skewed = good.clone()
    skewed[:, 0, 1] += 1e-4
    torch.testing.assert_close(repaired(skewed), repaired(skewed).mT)
    torch.linalg.cholesky(repaired(torch.zeros(2, 4, 4, dtype=torch.float64)))


def test_symmetric_root() -> None:
    matrix = spd(3, 6, 1)
    torch.testing.assert_close(symmetric_root(matrix) @ symmetric_root(matrix), matrix)
    product = symmetric_root(matrix) @ symmetric_root(matrix, inverse=True)
    torch.testing.assert_close(product, torch.eye(6, dtype=torch.float64).expand(3, 6, 6))


# --- attention statistics


def mdta(channels: int, heads: int, bias: bool) -> MDTA:
    layer = MDTA(channels, heads, bias).eval().requires_grad_(False)
    for index, parameter in enumerate(layer.parameters()):
        parameter.copy_(randn(*parameter.shape, seed=index))
    layer.temperature.abs_().add_(1.0)
    return layer


def form_of(module: nn.Module) -> ChannelAttention:
    return attention_layers(nn.Sequential(module))["0"].form


def moments(statistics: LayerStatistics) -> dict[str, Tensor]:
    assert statistics.queries is not None and statistics.keys is not None
    assert statistics.attention is not None and statistics.values is not None
    return {
        "attention": statistics.attention,
        "values": statistics.values,
        "query mean": statistics.queries.mean,
        "query second": statistics.queries.second,
        "query power": statistics.queries.power,
        "key mean": statistics.keys.mean,
        "key second": statistics.keys.second,
        "key power": statistics.keys.power,
    }


def gathered(form: ChannelAttention, *batches: Tensor) -> LayerStatistics:
    statistics = LayerStatistics.empty(form, queries=True, keys=True, values=True)
    for batch in batches:
        statistics.add(batch)
    return statistics


@pytest.mark.parametrize("bias", [False, True])
def test_statistics_stream(bias: bool) -> None:
    form, images = form_of(mdta(6, 2, bias)), randn(5, 6, 7, 4).float()
    together, singly = gathered(form, images), gathered(form, *images.split(1))
    assert together.images == singly.images == 5
    mixed = gathered(form, images[:2], images[2:])
    for name, value in moments(together).items():
        assert torch.equal(value, moments(singly)[name]), name
        assert torch.equal(value, moments(mixed)[name]), name


@pytest.mark.parametrize("bias", [False, True])
def test_statistics_are_the_sums_they_claim_to_be(bias: bool) -> None:
    """Two 3 x 2 images, one head of two channels, every patch and sum written out."""
    form, images = form_of(mdta(2, 1, bias)), randn(2, 2, 3, 2).float()
    height, width, c = 3, 2, 2
    plural = {"query": "queries", "key": "keys"}
    size = c * 9 + bias
    expected: dict[str, Any] = dict.fromkeys(moments(gathered(form, images)), 0.0)
    for image in images:
        flat: dict[str, np.ndarray] = {}
        stars: dict[str, np.ndarray] = {}
        for part in ("queries", "keys", "values"):
            projection: Any = getattr(form, part)
            mixed = np.einsum("oc,chw->ohw", projection.pointwise.double().numpy(), image.double().numpy())
            if bias:
                mixed = mixed + projection.pointwise_bias.double().numpy()[:, None, None]
            framed = np.pad(mixed, ((0, 0), (1, 1), (1, 1)))
            star = np.ones((size, height * width))
            for y in range(height):
                for x in range(width):
                    star[: c * 9, y * width + x] = framed[:, y : y + 3, x : x + 3].reshape(-1)
            filters = np.zeros((c, size))
            for channel in range(c):
                own = slice(channel * 9, channel * 9 + 9)
                filters[channel, own] = projection.depthwise[channel].double().numpy().reshape(-1)
                if bias:
                    filters[channel, -1] = projection.depthwise_bias[channel]
            stars[part], flat[part] = star, filters @ star
        unit = {part: m / np.linalg.norm(m, axis=1, keepdims=True) for part, m in flat.items()}
        for side, other in (("query", "key"), ("key", "query")):
            norms = np.linalg.norm(flat[plural[side]], axis=1)
            dependence = unit[plural[other]] @ stars[plural[side]].T / norms.mean()
            expected[f"{side} mean"] += dependence
            expected[f"{side} second"] += dependence.T @ dependence
            expected[f"{side} power"] += norms**2 / norms.mean() ** 2
        logits = np.exp(unit["queries"] @ unit["keys"].T * float(form.temperature))
        mapped = form.output.double().numpy() @ (logits / logits.sum(1, keepdims=True))
        expected["attention"] += mapped.T @ mapped
        expected["values"] += stars["values"] @ stars["values"].T / (height * width)
    for name, value in moments(gathered(form, images)).items():
        np.testing.assert_allclose(value[0].numpy(), expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_only_what_is_needed_is_gathered() -> None:
    form = form_of(mdta(6, 2, False))
    statistics = LayerStatistics.empty(form, queries=False, keys=True, values=False)
    statistics.add(randn(1, 6, 4, 4).float())
    assert statistics.queries is None and statistics.attention is None and statistics.values is None
    assert statistics.keys is not None and statistics.keys.images == 1


def test_metric_can_leave_out_the_mean() -> None:
    side = gathered(form_of(mdta(6, 2, False)), randn(1, 6, 5, 5).float()).keys
    assert side is not None
    assert side.metric(0.0).abs().max() > 0
    assert side.metric(1.0).abs().max() < 1e-10  # one image is its own mean


# --- corrections of the logits


@pytest.mark.parametrize(("keys", "queries"), [(True, False), (False, True), (True, True)])
def test_fit_scales_recovers_known_scales(keys: bool, queries: bool) -> None:
    logits = randn(200, 2, 5, 4)
    column = torch.exp(0.4 * randn(2, 1, 4, seed=1)) if keys else torch.ones(2, 1, 4).double()
    row = torch.exp(0.4 * randn(2, 5, 1, seed=2)) if queries else torch.ones(2, 5, 1).double()
    target = logits * column * row + randn(2, 5, 4, seed=3)  # a constant must not matter
    found_column, found_row = fit_scales(target, logits, keys, queries)
    torch.testing.assert_close(found_column * found_row, column * row, rtol=0.02, atol=0.0)
    if not keys:
        assert torch.equal(found_column, torch.ones(2, 1, 4).double())
    if not queries:
        assert torch.equal(found_row, torch.ones(2, 5, 1).double())


def test_scales_are_bounded_and_one_where_nothing_varies() -> None:
    logits = randn(50, 1, 3, 3)
    column, _ = fit_scales(100 * logits, logits, True, False)
    assert column.max() == 4.0
    column, _ = fit_scales(-logits, logits, True, False)
    assert column.min() == 0.25
    flat = torch.ones(4, 1, 3, 3)
    column, row = fit_scales(flat, flat, True, True)
    assert column.unique().tolist() == row.unique().tolist() == [1.0]


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_low_rank_is_the_best_there_is(rank: int) -> None:
    matrices = randn(2, 5, 7)
    left, right = low_rank(matrices, rank)
    assert left.shape == (2, 5, rank) and right.shape == (2, 7, rank)
    error = (matrices - left @ right.mT).square().sum((-2, -1))
    bound = torch.linalg.svdvals(matrices)[:, rank:].square().sum(-1)
    torch.testing.assert_close(error, bound, rtol=1e-4, atol=1e-8)


def _planted_residual(features: Tensor, noise: float) -> Tensor:
    """One mode per head, whose strength is linear in the features."""
    slope = randn(features.shape[1], seed=11) / features.std(0).double()
    strengths = features.double() @ slope + 0.7
    mode = torch.einsum("hc,hd->hcd", randn(2, 5, seed=12), randn(2, 4, seed=13))
    residual = torch.einsum("n,hcd->nhcd", strengths, mode)
    return residual + noise * randn(len(features), 2, 5, 4, seed=14)


@pytest.mark.parametrize("width", [1, 4])
def test_guide_recovers_a_planted_relation(width: int) -> None:
    features = (randn(90, 6, seed=10) * torch.logspace(-2, 2, 6)).float() + 3
    residual = _planted_residual(features, noise=1e-3)
    guide = fit_guide(residual[:60].float(), features[:60], width)
    assert guide.explained > 0.99
    strengths = features @ guide.weight.T + guide.bias
    predicted = torch.einsum("nl,hcl,hdl->nhcd", strengths, guide.left, guide.right)[60:]
    wanted = (residual - residual[:60].mean(0))[60:].float()  # the mean is the static bias' business
    assert (predicted - wanted).square().sum() < 0.01 * wanted.square().sum()


def test_guide_learns_nothing_from_noise() -> None:
    features, residual = randn(40, 12, seed=20), randn(40, 2, 5, 4, seed=21)
    guide = fit_guide(residual, features, 4)
    assert 0 <= guide.explained < 0.1
    strengths = features.float() @ guide.weight.T + guide.bias
    predicted = torch.einsum("nl,hcl,hdl->nhcd", strengths, guide.left, guide.right)
    assert predicted.square().sum() < 0.1 * residual.square().sum()


def test_guide_with_fewer_images_than_modes() -> None:
    guide = fit_guide(randn(2, 2, 5, 4), randn(2, 6, seed=1), 4)
    assert guide.left.shape == (2, 5, 4) and guide.right.shape == (2, 4, 4)
    assert guide.weight.shape == (4, 6) and guide.bias.shape == (4,)
    for part in (guide.left, guide.right, guide.weight, guide.bias):
        assert part.isfinite().all()


# --- whole layers and networks


def error(student: nn.Module, teacher: nn.Module, images: Tensor) -> float:
    """Mean square difference of the outputs, relative to the variance of the teacher's."""
    with torch.no_grad():
        expected = teacher(images)
        return float((student(images) - expected).square().mean() / expected.var())


def students_error(teacher: nn.Module, ranks: Ranks, images: Tensor, held_out: Tensor, **plan: Any) -> float:
    configs = plan_layers(attention_layers(teacher), ranks, **plan)
    student, _ = initialise_student(teacher, configs, batches(images))
    return error(student, teacher, held_out)


def assert_falls(errors: list[float], slack: float = 1.0) -> None:
    for lower_rank, higher_rank in itertools.pairwise(errors):
        assert higher_rank <= slack * lower_rank + 1e-12, errors


def smooth_images(count: int, channels: int, side: int, seed: int) -> Tensor:
    """Blurred noise of varying brightness: a little like photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, side // 4, side // 4, generator=generator)
    coarse = coarse * torch.linspace(0.3, 1.0, count).view(-1, 1, 1, 1)
    fine = F.interpolate(coarse, size=(side, side), mode="bilinear")
    return fine + 0.05 * torch.randn(fine.shape, generator=generator)


def test_tiny_network(make_restormer: MakeRestormer) -> None:
    tiny_restormer = make_restormer(heads=[1, 1, 2, 4], dim=4, num_refinement_blocks=0)
    images, held_out = smooth_images(8, 3, 32, 0), smooth_images(4, 3, 32, 1)
    before = copy.deepcopy(tiny_restormer.state_dict())
    errors = [students_error(tiny_restormer, Ranks(k=r, v=r), images, held_out) for r in (1, 4, 8)]
    assert_falls(errors)
    assert errors[0] < 0.5  # rank 1 is rough but no nonsense
    assert errors[-1] < 1e-9  # every part is full at rank 8
    for name, value in tiny_restormer.state_dict().items():
        assert torch.equal(value, before[name]), name  # the teacher is left as it was


def test_full_rank_needs_no_images_and_low_rank_does(tiny_restormer: Restormer) -> None:
    layers = attention_layers(tiny_restormer)
    student, fits = initialise_student(tiny_restormer, plan_layers(layers, Ranks()), None)
    assert error(student, tiny_restormer, smooth_images(2, 3, 24, 0)) < 1e-10
    assert all(not fit.key_error and not fit.value_error and fit.logit_error == 0 for fit in fits.values())
    assert not student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    with pytest.raises(ValueError, match="needs calibration images"):
        initialise_student(tiny_restormer, plan_layers(layers, Ranks(k=4)), None)


def test_deterministic_whatever_the_batch(tiny_restormer: Restormer) -> None:
    images = smooth_images(6, 3, 24, 0)
    layers = attention_layers(tiny_restormer)
    chosen = {"encoder_level3.0.attn": layers["encoder_level3.0.attn"]}
    configs = plan_layers(chosen, Ranks(4, 4, 4))
    first, fits = initialise_student(tiny_restormer, configs, batches(images, 2))
    again, _ = initialise_student(tiny_restormer, configs, batches(images, 2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    other, _ = initialise_student(tiny_restormer, configs, batches(images, 5))
    assert error(other, first, images) < 1e-6
    fit = fits["encoder_level3.0.attn"]
    for errors in (fit.key_error, fit.query_error, fit.value_error):
        assert len(errors) == 2 and all(0 <= e < 1 for e in errors)


DEAD = {"queries": slice(0, 16), "keys": slice(64, 80), "values": slice(128, 144)}


@pytest.mark.parametrize("attention", ["expanded", "compact"])
@pytest.mark.parametrize("part", [*DEAD, "output", "layer"])
def test_a_dead_head_is_no_obstacle(tiny_restormer: Restormer, part: str, attention: str) -> None:
    """Pruned checkpoints have heads whose weights are all zero."""
    layer = tiny_restormer.latent[0].attn
    assert isinstance(layer, MDTA)
    if part == "output":
        layer.project_out.weight[:, :16].zero_()
    elif part == "layer":
        for parameter in layer.parameters():
            parameter.zero_()
    else:
        layer.qkv.weight[DEAD[part]].zero_()
    layers = {"latent.0.attn": attention_layers(tiny_restormer)["latent.0.attn"]}
    ranks = Ranks(k=2, v=2) if attention == "compact" else Ranks(2, 2, 2)
    images = smooth_images(3, 3, 16, 0)
    student, _ = initialise_student(tiny_restormer, plan_layers(layers, ranks, attention), batches(images))
    for name, parameter in student.named_parameters():
        assert parameter.isfinite().all(), name
    assert error(student, tiny_restormer, images) < 0.1


@pytest.mark.parametrize("ranks", [Ranks(k=4, v=4), Ranks(4, 4, 4)], ids=str)
def test_compact_initialisation_beats_chance(tiny_restormer: Restormer, ranks: Ranks) -> None:
    images, held_out = smooth_images(6, 3, 32, 0), smooth_images(4, 3, 32, 1)
    layers = attention_layers(tiny_restormer)
    chosen = {name: layers[name] for name in ("encoder_level1.0.attn", "decoder_level1.0.attn")}
    configs = plan_layers(chosen, ranks, "compact")
    student, fits = initialise_student(tiny_restormer, configs, batches(images))
    for name in configs:
        clusters = fits[name].clusters
        assert clusters is not None
        assert all(len(head.unique()) == 4 for head in clusters)

    def scrambled(seed: int) -> Restormer:
        """PyTorch's usual initialisation; the output projection is kept."""
        torch.manual_seed(seed)
        other = copy.deepcopy(student)
        for core in glmha_layers(other).values():
            fresh, kept = GLMHA(core.config), cast("GLMHA", core)
            kept.pointwise, kept.depthwise = fresh.pointwise, fresh.depthwise
        return other

    random = [error(scrambled(seed), tiny_restormer, held_out) for seed in range(4)]
    assert error(student, tiny_restormer, held_out) < 0.3 * sum(random) / len(random)


def test_compact_target_keeps_the_attention_of_every_cluster() -> None:
    logits, clusters = randn(3, 2, 5, 5), torch.tensor([[0, 0, 1, 2, 1], [2, 1, 0, 0, 0]])
    attention = logits.softmax(-1)
    found = compact_target(logits, clusters, 3).softmax(-1)
    for head in range(2):
        for key in range(3):
            own = attention[:, head][..., clusters[head] == key].sum(-1)
            torch.testing.assert_close(found[:, head, :, key], own)


@pytest.mark.parametrize("bias", [False, True])
def test_low_rank_layer_is_found_exactly(bias: bool) -> None:
    """Six channels per head that are mixtures of two, with one kernel and, if biased, offsets likewise."""
    layer = mdta(12, 2, bias)
    for group in range(6):  # queries, keys and values of either head
        own = slice(group * 6, group * 6 + 6)
        mix = torch.cat((torch.eye(2), randn(4, 2, seed=group).float()))
        layer.qkv.weight[own] = (mix @ layer.qkv.weight[own][:2].flatten(1)).view(6, 12, 1, 1)
        layer.qkv_dwconv.weight[own] = layer.qkv_dwconv.weight[own][:1].clone()
        for conv in (layer.qkv, layer.qkv_dwconv):
            if conv.bias is not None:
                conv.bias[own] = mix @ conv.bias[own][:2]
    model = nn.Sequential(layer)
    images, held_out = smooth_images(8, 12, 16, 0), smooth_images(8, 12, 16, 1)
    assert students_error(model, Ranks(2, 2, 2), images, held_out) < 1e-6
    assert students_error(model, Ranks(k=2, v=2), images, held_out) < 1e-6
    assert students_error(model, Ranks(1, 1, 1), images, held_out) > 1e-4


# --- projections without a depthwise part


class PointwiseAttention(nn.Module):
    """CSA with plain 1x1 projections, as in networks on tokens."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.out = nn.Conv2d(channels, channels, 1, bias=bias)
        self.tau = nn.Parameter(torch.full((heads, 1, 1), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1, x[0, 0].numel()).unbind(1)
        attention = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.tau).softmax(-1)
        return self.out((attention @ v).reshape(x.shape))


class PointwiseReader(PlainReader):
    module_type = PointwiseAttention

    def read(self, module: nn.Module) -> ChannelAttention:
        assert isinstance(module, PointwiseAttention)
        weights = module.qkv.weight.detach()[:, :, 0, 0].chunk(3)
        biases = [None] * 3 if module.qkv.bias is None else module.qkv.bias.detach().chunk(3)
        rows, columns, values = (Projection(*pair) for pair in zip(weights, biases, strict=True))
        bias = None if module.out.bias is None else module.out.bias.detach()
        output = module.out.weight.detach()[:, :, 0, 0]
        return ChannelAttention(
            module.heads, rows, columns, values, module.tau.detach().flatten(), output, bias
        )

    def build(self, module: nn.Module, config: GLMHAConfig) -> GLMHA:
        return GLMHA(config)


def pointwise_network(monkeypatch: pytest.MonkeyPatch, bias: bool) -> nn.Sequential:
    monkeypatch.setattr(layers_module, "readers_of", lambda model: (PointwiseReader(),))
    layer = PointwiseAttention(12, 2, bias).eval().requires_grad_(False)
    for index, parameter in enumerate(layer.parameters()):
        if parameter.ndim != 3:
            parameter.copy_(randn(*parameter.shape, seed=index))
    return nn.Sequential(layer)


@pytest.mark.parametrize("bias", [False, True])
def test_pointwise_layers(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    model = pointwise_network(monkeypatch, bias)
    images, held_out = smooth_images(24, 12, 16, 0), smooth_images(8, 12, 16, 1)
    config = plan_layers(attention_layers(model), Ranks(k=2, v=2))["0"]
    assert (config.kernel_size, config.bias, config.output_bias) == (1, bias, bias)
    errors = [students_error(model, Ranks(k=r, v=r), images, held_out) for r in (1, 2, 4, 6)]
    assert_falls(errors)
    assert errors[0] < 0.6
    assert errors[-1] < 1e-10
    with_rows = [students_error(model, Ranks(r, r, r), images, held_out) for r in (1, 3, 6)]
    assert_falls(with_rows)


@pytest.mark.parametrize("bias", [False, True])
def test_low_rank_pointwise_layer_is_found_exactly(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    model = pointwise_network(monkeypatch, bias)
    layer: Any = model[0]
    for third in range(3):  # six channels per head, of which three are independent
        for head in range(2):
            own = slice(third * 12 + head * 6, third * 12 + head * 6 + 6)
            mix = randn(6, 3, seed=third + head).float()
            layer.qkv.weight[own] = (mix @ layer.qkv.weight[own][:3].flatten(1)).view(6, 12, 1, 1)
            if bias:
                layer.qkv.bias[own] = mix @ layer.qkv.bias[own][:3]
    images, held_out = smooth_images(8, 12, 16, 0), smooth_images(8, 12, 16, 1)
    assert students_error(model, Ranks(3, 3, 3), images, held_out) < 1e-6
    assert students_error(model, Ranks(k=3, v=3), images, held_out) < 1e-6
    assert students_error(model, Ranks(2, 2, 2), images, held_out) > 1e-4


@pytest.mark.parametrize("bias", [False, True])
def test_compact_pointwise_layers(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    model = pointwise_network(monkeypatch, bias)
    images, held_out = smooth_images(8, 12, 16, 0), smooth_images(8, 12, 16, 1)
    errors = [
        students_error(model, Ranks(k=r, v=r), images, held_out, attention="compact") for r in (2, 3, 5)
    ]
    assert all(np.isfinite(errors))
    assert_falls(errors)


# --- a trained network


@pytest.fixture
def photographs(shared: Path) -> tuple[Tensor, Tensor]:
    """Noisy calibration crops, and others to evaluate on."""
    paths = sorted((shared / "data" / "bsds_train").iterdir())[:12]
    images = [(path.name, read_image(path, 3)) for path in paths]
    noise = parse_degradation("noise:25")
    train, held_out = MemoryImages(images[:8]), MemoryImages(images[8:])
    return calibration_crops(train, noise, 48, 8, 0)[0], calibration_crops(held_out, noise, 48, 4, 1)[0]


def test_trained_network_improves_with_rank(shared: Path, photographs: tuple[Tensor, Tensor]) -> None:
    teacher = load(shared / "checkpoints" / "restormer_d24_denoise25.pth").requires_grad_(False)
    images, held_out = photographs
    # One layer at either end, of 24 and 48 channels: the factorisation of all fifteen takes a while.
    names = ("encoder_level1.1.attn", "refinement.0.attn")
    layers = {name: layer for name, layer in attention_layers(teacher).items() if name in names}
    errors = []
    for rank in (2, 4, 8, 16, None):
        student, fits = initialise_student(
            teacher, plan_layers(layers, Ranks(k=rank, v=rank)), batches(images)
        )
        errors.append(error(student, teacher, held_out))
        assert all(0 <= e < 1 for fit in fits.values() for e in fit.key_error + fit.value_error)
    assert_falls(errors)
    assert errors[2] < 1e-3


def test_trained_network_at_full_rank_is_the_teacher(
    shared: Path, photographs: tuple[Tensor, Tensor]
) -> None:
    teacher = load(shared / "checkpoints" / "restormer_d24_denoise25.pth").requires_grad_(False)
    student, _ = initialise_student(teacher, plan_layers(attention_layers(teacher), Ranks()), None)
    with torch.no_grad():
        difference = student(photographs[1]) - teacher(photographs[1])
    assert float(difference.abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("part", "scale", "what"),
    [
        ("patch_embed.proj.weight", 3e38, "its input is not finite"),
        ("encoder_level1.0.norm1.body.weight", 1e38, "its statistics cannot be decomposed"),
        ("encoder_level1.0.attn.qkv.weight", 1e25, "its .* cannot be decomposed|its .* not finite"),
        ("encoder_level1.0.attn.temperature", float("inf"), "its .* not finite|its .* cannot be decomposed"),
    ],
)
def test_a_layer_that_overflows_is_named(
    part: str, scale: float, what: str, make_restormer: MakeRestormer
) -> None:
    teacher = make_restormer()
    with torch.no_grad():
        teacher.get_parameter(part).mul_(scale)
    configs = plan_layers(attention_layers(teacher), Ranks(k=2, v=2))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        DataError, match=rf"^layer [a-z_0-9.]+\.attn: ({what}), values in it overflow"
    ) as caught:
        initialise_student(teacher, configs, batches(images))
    assert "\n" not in str(caught.value)
