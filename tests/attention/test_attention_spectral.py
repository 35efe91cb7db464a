"""Conversion of the channel attention of MST and MST++."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.attention import GLMHAConfig
from csa2glmha.attention.pointwise import full_values_are_cheaper, gram_is_cheaper
from csa2glmha.checkpoint.student import load, load_model, save_student, student_metadata
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.inputs.cassi import CassiScenes, shifted_mask
from csa2glmha.data.inputs.masks import load_mask
from csa2glmha.data.inputs.synthetic import SyntheticSpectra
from csa2glmha.families.mst.network import MST, bake_mask
from csa2glmha.families.mst_plus_plus.network import MSTPlusPlus
from csa2glmha.families.registry import build
from csa2glmha.initialize import LayerFit, initialise_student
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.initialize.factorize import factorize
from csa2glmha.initialize.moments import LayerMoments
from csa2glmha.metrics.complexity import count_complexity
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers, glmha_layers, replace_layers
from tests.conftest import TINY_RESTORMER, batches

pytestmark = pytest.mark.usefixtures("quick_factors")

BANDS, SIZE = 8, 16
DISPERSED = SIZE + 2 * (BANDS - 1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_character(model: RestorationModel) -> Any:
    """Attention that is far from uniform, and every parameter with a value of its own."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            noise = randn(*parameter.shape, seed=index)
            if name.endswith("rescale"):
                parameter.copy_(3.0 + noise.abs())
            elif parameter.ndim == 1:
                parameter.add_(0.1 * noise)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def mst() -> MST:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return with_character(MST(BANDS, (1, 1, 1)))


@pytest.fixture(scope="module")
def mst_plus_plus() -> MSTPlusPlus:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return with_character(MSTPlusPlus(3, BANDS, 1, (1, 1, 1)))


@pytest.fixture(scope="module")
def mask() -> Tensor:
    return shifted_mask((randn(SIZE, SIZE, seed=5) > 0).float(), BANDS)


@pytest.fixture(scope="module")
def baked(mst: MST, mask: Tensor) -> MST:
    return bake_mask(mst, mask).requires_grad_(False)


def cubes(count: int, seed: int, channels: int = BANDS, size: int = SIZE) -> Tensor:
    """Blurred noise of varying brightness, neighbouring bands alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size // 4, size // 4, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear")
    weights = torch.softmax(2 * torch.randn(channels, 3, generator=torch.Generator().manual_seed(9)), 1)
    maps = torch.einsum("bc,nchw->nbhw", weights, smooth)
    return maps + 0.05 * torch.rand(maps.shape, generator=generator)


def convert(
    teacher: nn.Module, ranks: Ranks, images: Tensor | None, *shared_inputs: Tensor
) -> tuple[Any, dict[str, LayerFit]]:
    configs = plan_layers(attention_layers(teacher), ranks)
    inputs = None if images is None else batches(images, 2, *shared_inputs)
    return initialise_student(teacher, configs, inputs)


def relative(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).abs().max() / expected.abs().max())


def error(student: nn.Module, teacher: nn.Module, *inputs: Tensor) -> float:
    with torch.no_grad():
        expected = teacher(*inputs)
        return float((student(*inputs) - expected).square().mean() / expected.var())


# --- full rank


def test_one_mask_for_each_image_at_full_rank(mst: MST) -> None:
    student, _ = convert(mst, Ranks(), None)
    masks, x = torch.rand(2, BANDS, 24, 32 + 2 * (BANDS - 1)), torch.rand(2, BANDS, 24, 32)
    with torch.no_grad():
        assert relative(student(x, masks), mst(x, masks)) < 1e-5


def test_full_rank_takes_the_route_over_the_gram_matrix(mst_plus_plus: MSTPlusPlus) -> None:
    configs = plan_layers(attention_layers(mst_plus_plus), Ranks())
    assert {config.route for config in configs.values()} == {
        "logits from the input's Gram matrix (full), values full"
    }


def configs_of(model: nn.Module) -> dict[str, GLMHAConfig]:
    return {name: layer.config for name, layer in glmha_layers(model).items()}


def test_baked_mask(mst: MST, mask: Tensor, baked: MST) -> None:
    x = cubes(2, 0)
    student, _ = convert(baked, Ranks(), None)
    for network in (baked, student):
        assert network.input_names == ("input",)
        assert network.input_shapes(SIZE, SIZE, 3) == ((3, BANDS, SIZE, SIZE),)
        with torch.no_grad():
            assert relative(network(x), mst(x, mask)) < 1e-5
        names = dict(network.named_parameters())
        assert not any("mm." in name or name == "encoder_layers.0.2.weight" for name in names)
    with torch.no_grad():  # the factors are those of this mask
        assert relative(baked(x), mst(x, torch.ones_like(mask))) > 1e-2
    assert mst.hyperparameters == {"dim": BANDS, "num_blocks": [1, 1, 1]}  # the original is as it was


def test_baked_mask_holds_for_its_own_size(mst: MST, mask: Tensor, baked: MST) -> None:
    for shape in ((1, BANDS, SIZE, 2 * SIZE), (1, BANDS, SIZE // 2, SIZE), (1, BANDS + 1, SIZE, SIZE)):
        with pytest.raises(DataError, match=rf"\(1, {shape[1]}, {shape[2]}, .*only; convert with a mask"):
            baked(torch.rand(shape))
    with pytest.raises(DataError, match="leave it out"):
        baked(cubes(1, 0), mask)
    with pytest.raises(DataError, match="no mask is given"):
        mst(cubes(1, 0))


@pytest.mark.parametrize(
    "shape",
    [
        (2, BANDS, SIZE, DISPERSED),
        (BANDS, SIZE, DISPERSED),
        (1, BANDS + 1, SIZE, DISPERSED),
        (1, BANDS, SIZE, 2 * (BANDS - 1)),
        (1, BANDS, SIZE + 2, DISPERSED),
        (1, BANDS, SIZE, DISPERSED + 2),
    ],
)
def test_masks_that_cannot_be_baked(mst: MST, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="cannot be baked in: give"):
        bake_mask(mst, torch.rand(shape))


# --- what it costs


def planned(teacher: RestorationModel, ranks: Ranks) -> RestorationModel:
    """A student's shapes, without its weights."""
    replace_layers(teacher, plan_layers(attention_layers(teacher), ranks))
    return teacher


def macs(model: RestorationModel) -> int:
    counted = count_complexity(model, *model.input_shapes(256, 256))
    assert not counted.uncounted
    return counted.macs


PUBLISHED = [
    ("mst", {"num_blocks": [2, 2, 2], "mask_size": [256, 256]}, None, 8_463_365_120),
    ("mst", {"num_blocks": [4, 7, 5], "mask_size": [256, 256]}, None, 19_053_755_392),
    ("mst_plus_plus", {"stage": 3}, None, 20_037_832_824),
    ("mst", {"num_blocks": [2, 2, 2], "mask_size": [256, 256]}, 8, 7_843_404_832),
]


@pytest.mark.parametrize(("name", "hyperparameters", "rank", "expected"), PUBLISHED)
def test_macs_of_published_networks(
    name: str, hyperparameters: dict[str, Any], rank: int | None, expected: int
) -> None:
    with torch.device("meta"):
        student = planned(build(name, hyperparameters), Ranks(k=rank, v=rank))
    assert macs(student) == expected


@pytest.mark.parametrize("rank", [None, 4])
def test_macs_of_a_layer(rank: int | None) -> None:
    """Counted by hand: C = 28 in one head, 16 x 8 pixels."""
    with torch.device("meta"):
        student = planned(MSTPlusPlus(3, 28, 1, (1, 1)), Ranks(k=rank, v=rank))
    counted = count_complexity(student, (1, 3, 16, 8))  # a multiple of 8, so nothing is padded
    layer = counted.modules["body.0.encoder_layers.0.0.blocks.0.0"]
    pixels, c = 16 * 8, 28
    beside = pixels * (c * c + 2 * 9 * c)  # V and its embedding
    if rank is None:
        gram = pixels * c * c
        small = 2 * c**3 + c**3 + c**3  # W_R G, W_K G; (W_R G) W_K^T; output times attention
        assert layer.macs == beside + gram + pixels * c * c + small
    else:
        r, modes = rank, 8 + 4
        gram = pixels * (c * r + r * r)
        values = pixels * (c * r + r * c)
        guide = 2 * c * 4 + 4 * (4 + r + r)
        logits = 2 * c * r * r + c * c * r + c * c * modes
        fold = c * c * r + c * c * r
        assert layer.macs == beside + gram + values + guide + logits + fold


def test_the_cheapest_route_is_taken() -> None:
    for channels, heads in ((28, 1), (56, 2), (112, 4)):
        c = channels // heads
        for rank in range(1, c):
            gram, subspace = channels**2, channels * heads * rank + heads * rank**2
            assert gram_is_cheaper(channels, heads, rank) == (gram <= subspace)
            # V_r head by head from V, then every head's part of the output.
            low = heads * c * rank + channels * heads * rank
            assert full_values_are_cheaper(channels, heads, rank) == (channels**2 <= low)


def test_ranks_too_high_to_pay_are_left_out_and_the_rest_named() -> None:
    with torch.device("meta"):
        layers = attention_layers(MST())
    name = "encoder_layers.0.0.blocks.0.0"
    high = plan_layers(layers, Ranks(k=20, v=20))[name]
    assert high.full and high.logits == "gram" and high.bias_rank == high.guide_width == 0
    low = plan_layers(layers, Ranks(k=8, v=4, pos=6))[name]
    assert low.route == "logits from a projection's Gram matrix (rank 8), values rank 4, branch values rank 6"
    assert not low.full
    assert plan_layers(layers, Ranks(q=10, k=8))[name].rank_k == 10  # one projection stands for both
    only_pos = plan_layers(layers, Ranks(pos=6))[name]
    assert (only_pos.logits, only_pos.rank_v, only_pos.rank_pos, only_pos.full) == ("gram", 28, 6, False)


def test_what_these_layers_do_not_have(mst: MST) -> None:
    layers = attention_layers(mst)
    with pytest.raises(UsageError, match=r"--attention compact: .*give expanded"):
        plan_layers(layers, Ranks(k=4, v=4), "compact")
    with pytest.raises(UsageError, match="rank 9 of pos is above the 8 channels"):
        plan_layers(layers, Ranks(pos=9))
    restormer = build("restormer", TINY_RESTORMER)
    with pytest.raises(UsageError, match=r"--rank-pos 4: .*leave it out"):
        plan_layers(attention_layers(restormer), Ranks(pos=4))


# --- low rank


def test_error_falls_with_rank(baked: MST, mst_plus_plus: MSTPlusPlus) -> None:
    """On the images it was fitted to; a dozen of them say little of others at an error of 1e-6."""
    kinds: list[Callable[[int], Ranks]] = [
        lambda r: Ranks(k=r),
        lambda r: Ranks(v=r),
        lambda r: Ranks(pos=r),
        lambda r: Ranks(r, r, r),
    ]
    for teacher, images in ((baked, cubes(12, 0)), (mst_plus_plus, cubes(12, 2, channels=3))):
        for ranks in kinds:
            errors = [error(convert(teacher, ranks(r), images)[0], teacher, images) for r in (1, 3, 8)]
            for lower, higher in itertools.pairwise(errors):
                assert higher < lower, errors
            assert errors[-1] < 1e-9  # all of it is full
            assert errors[0] > 1e-7


def test_layers_of_low_rank_are_found_exactly(mask: Tensor) -> None:
    """Rows and columns in one space of two dimensions: nothing is lost at rank 2."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        teacher = with_character(MST(BANDS, (1, 1)))
    layers = attention_layers(teacher)
    for layer in layers.values():
        module: Any = layer.module
        heads = module.heads
        space = randn(heads, 2, module.to_q.weight.shape[1], seed=1)
        for index, linear in enumerate((module.to_q, module.to_k)):
            mixing = randn(heads, BANDS, 2, seed=2 + index)
            linear.weight.copy_((mixing @ space).flatten(0, 1))
    images = cubes(6, 0)
    assert error(convert(teacher, Ranks(k=2), images, mask)[0], teacher, cubes(2, 1), mask) < 1e-8
    assert error(convert(teacher, Ranks(k=1), images, mask)[0], teacher, cubes(2, 1), mask) > 1e-6


def test_two_inputs_and_baked_give_the_same_student(mst: MST, baked: MST, mask: Tensor) -> None:
    images, x = cubes(5, 0), cubes(2, 1)
    open_student, _ = convert(mst, Ranks(k=3, v=2), images, mask)
    closed_student, fits = convert(baked, Ranks(k=3, v=2), images)
    with torch.no_grad():
        assert relative(open_student(x, mask), closed_student(x)) < 1e-3
    for fit in fits.values():
        for errors in (fit.key_error, fit.query_error, fit.value_error):
            assert errors and all(0 <= e < 1 for e in errors)
    assert all(parameter.requires_grad for parameter in closed_student.parameters())
    assert not closed_student.training


def test_values_are_reduced_behind_the_mask(mst: MST, mask: Tensor) -> None:
    """V_r and its expansion are the truncated SVD of the *masked* values in the output's metric."""
    student, fits = convert(mst, Ranks(v=2), cubes(4, 0), mask)
    name = "encoder_layers.0.0.blocks.0.0"
    layer = attention_layers(mst)[name]
    seen: dict[str, Any] = {}
    handle = layer.module.register_forward_pre_hook(lambda _, args: seen.update(args=args))
    with torch.no_grad():
        mst(cubes(4, 0), mask)
        x, features = seen["args"]
        module: Any = layer.module
        values = module.values(x) * module.mask_attention(features, SIZE)
        tokens = values.flatten(2).double()
        logits = layer.form.logits(layer.form.queries.mix(x), layer.form.keys.mix(x))[:, 0].double()
        mapped = layer.form.output.double() @ logits.softmax(-1)
    handle.remove()
    metric = (mapped.mT @ mapped).mean(0)
    second = (tokens @ tokens.mT).mean(0) / tokens.shape[-1]
    expected = factorize(torch.ones(1, BANDS, 1), None, metric[None], second[None], 2)
    assert fits[name].value_error == pytest.approx(expected.error.sqrt().tolist(), rel=1e-3)
    core: Any = glmha_layers(student)[name]
    product = core.expand_values[0] @ core.reduce_values.weight[:, :, 0, 0]
    torch.testing.assert_close(product.detach(), expected.expand[0] @ expected.mix[0], rtol=1e-3, atol=1e-4)


def test_moments_give_the_teachers_logits_and_outputs(mst: MST) -> None:
    layer = attention_layers(mst)["bottleneck.blocks.0.0"]
    x = randn(3, 4 * BANDS, 6, 5) + 1
    gathered = LayerMoments(layer.form)
    gathered.add(x[:2])
    gathered.add(x[2:])
    moments = gathered.freeze()
    logits = layer.form.logits(layer.form.queries.mix(x), layer.form.keys.mix(x))
    torch.testing.assert_close(moments.logits().float(), logits, rtol=1e-4, atol=1e-5)
    values = layer.form.values.mix(x).view(3, 4, BANDS, 30)
    mixed = (logits.softmax(-1) @ values).flatten(1, 2)
    expected = layer.form.output @ mixed
    output = moments.outputs().float().transpose(1, 2).flatten(2) @ values.flatten(1, 2)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    second = (values @ values.mT).mean(0) / 30
    torch.testing.assert_close(moments.head_values().float(), second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["to_q", "to_k", "to_v", "proj", "everything"])
def test_a_dead_head_is_no_obstacle(mst_plus_plus: MSTPlusPlus, part: str) -> None:
    teacher = MSTPlusPlus(3, BANDS, 1, (1, 1, 1))
    teacher.load_state_dict(mst_plus_plus.state_dict())
    layer: Any = teacher.eval().requires_grad_(False).body[0].bottleneck.blocks[0][0]
    if part == "everything":
        for parameter in layer.parameters():
            parameter.zero_()
    elif part == "proj":
        layer.proj.weight[:, :BANDS].zero_()
    else:
        getattr(layer, part).weight[:BANDS].zero_()
    images = cubes(3, 0, channels=3)
    student, _ = convert(teacher, Ranks(k=2, v=2, pos=2), images)
    for name, parameter in student.named_parameters():
        assert parameter.isfinite().all(), name
    assert error(student, teacher, images) < 0.5


# --- files


def test_students_with_a_rank_of_positions_survive_a_round_trip(
    mst: MST, baked: MST, mst_plus_plus: MSTPlusPlus, mask: Tensor, tmp_path: Path
) -> None:
    ranks = Ranks(k=3, v=2, pos=2)
    for teacher, shared in ((mst, (mask,)), (baked, ()), (mst_plus_plus, ())):
        images = cubes(3, 0, channels=teacher.in_channels)
        student, _ = convert(teacher, ranks, images, *shared)
        path = tmp_path / "student.safetensors"
        save_student(path, student, student_metadata(student, "0" * 64, 0, {"ranks": str(ranks)}))
        again = load_model(path)
        assert again.is_student
        assert again.model.hyperparameters == student.hyperparameters
        assert again.model.input_names == student.input_names
        assert again.model.fixed_size == student.fixed_size
        assert configs_of(again.model) == configs_of(student)
        with torch.no_grad():
            assert torch.equal(again.model(images, *shared), student(images, *shared))


# --- official weights


def official(shared: Path) -> tuple[MST, Tensor]:
    teacher = load(shared / "checkpoints/mst_s.pth").requires_grad_(False)
    assert isinstance(teacher, MST)
    return teacher, load_mask(shared / "data/cassi/simu_mask.mat")


def test_official_mst_s_in_low_rank(shared: Path) -> None:
    """Synthetic spectra, in a corner of the mask so that it is quick."""
    teacher, aperture = official(shared)
    corner = aperture[:64, :64]
    baked = bake_mask(teacher, shifted_mask(corner)).requires_grad_(False)

    def scenes(folder: str, count: int) -> Tensor:
        cubes = CassiScenes(SyntheticSpectra(ImageSet.find(shared / "data" / folder, 3)), corner)
        return torch.stack([cubes.read(4 * index)[1] for index in range(count)])

    images, held_out = scenes("bsds_train", 16), scenes("cbsd68", 4)
    errors = [error(convert(baked, Ranks(k=r, v=r), images)[0], baked, held_out) for r in (2, 4, 8)]
    assert errors[2] < errors[1] < errors[0], errors
    assert errors[2] < 2e-3
