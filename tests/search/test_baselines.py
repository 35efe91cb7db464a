"""Other methods: what they are, and the comparison in a conversion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from csa2glmha.commands.convert import convert, run_conversion
from csa2glmha.compression.files import CONVERSION_STAGES, WriteReport, replaced
from csa2glmha.config.options import make_options
from csa2glmha.config.ranks import Ranks
from csa2glmha.distill.engine import _Training
from csa2glmha.families.registry import build
from csa2glmha.initialize.baselines import (
    COMPACT,
    STATIC,
    SVD,
    baseline_configs,
    initialise_baseline,
    supported,
)
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.initialize.pruning import MAGNITUDE, WANDA
from csa2glmha.initialize.student import initialise_student
from csa2glmha.metrics.complexity import Complexity, count_complexity
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.skipped import skipped_layers
from csa2glmha.reading.feedforwards import feed_forwards, narrowed_widths
from csa2glmha.reading.layers import attention_layers, glmha_layers
from csa2glmha.search.methods import Method, methods
from tests.conftest import TINY_RESTORMER, smooth_images
from tests.subjects import SUBJECTS

#: Wide enough for what the methods leave out.
TINY: dict[str, dict[str, Any]] = {
    "restormer": TINY_RESTORMER | {"dim": 16},
    "mst_plus_plus": dict(SUBJECTS["mst_plus_plus"].tiny) | {"n_feat": 8},
}


def make(name: str) -> RestorationModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(name, TINY[name]).eval().requires_grad_(False)


BATCHES = [(smooth_images(2, seed),) for seed in range(4)]


def error(student: RestorationModel, teacher: RestorationModel) -> float:
    with torch.no_grad():
        return float((student(smooth_images(2, 99)) - teacher(smooth_images(2, 99))).square().mean())


@pytest.mark.parametrize("name", list(TINY))
def test_svd_needs_no_data_and_is_exact_at_full_rank(name: str) -> None:
    teacher = make(name)
    first, _ = initialise_baseline(teacher, SVD, 4, BATCHES)
    second, _ = initialise_baseline(teacher, SVD, 4, [(smooth_images(2, 50),)])
    for name_, parameter in first.state_dict().items():
        assert torch.equal(parameter, second.state_dict()[name_])
    widest = max(layer.form.head_channels for layer in attention_layers(teacher).values())
    whole, _ = initialise_baseline(teacher, SVD, widest, BATCHES)
    assert error(whole, teacher) < 1e-10 < error(first, teacher)
    assert all(layer.guide is None and layer.mode_left is None for layer in glmha_layers(first).values())


def test_svd_is_the_truncation_of_the_filters() -> None:
    """Where nothing but the projections counts, no factors of that rank are closer to them."""
    teacher = make("mst_plus_plus")
    name, layer = next(iter(attention_layers(teacher).items()))
    student, _ = initialise_baseline(teacher, SVD, 3, BATCHES)
    core = glmha_layers(student)[name]
    c, reduce = core.config.head_channels, core.get_submodule("reduce_values")
    assert core.expand_values is not None and isinstance(reduce, torch.nn.Conv2d)
    weight = layer.form.values.pointwise[:c]
    left = core.expand_values[0] @ reduce.weight[:3, :, 0, 0] @ weight - weight
    assert torch.linalg.matrix_rank(left + weight) == 3


def test_the_static_form_is_the_compact_one_without_its_corrections() -> None:
    teacher = make("restormer")
    layers = attention_layers(teacher)
    static, compact = (baseline_configs(layers, kind, 4) for kind in (STATIC, COMPACT))
    for name in layers:
        assert static[name] == replace(compact[name], bias_rank=0, guide_width=0)
    students = {kind: initialise_baseline(teacher, kind, 4, BATCHES)[0] for kind in (STATIC, COMPACT)}
    assert error(students[COMPACT], teacher) < error(students[STATIC], teacher)


def test_spectral_layers_have_no_compact_form() -> None:
    layers = attention_layers(make("mst_plus_plus"))
    assert [supported(layers, kind) for kind in (SVD, STATIC, COMPACT)] == [True, False, False]


def test_glmha_starts_closer_than_any_of_them() -> None:
    teacher = make("restormer")
    configs = plan_layers(attention_layers(teacher), Ranks(k=4, v=4))
    student, _ = initialise_student(teacher, configs, BATCHES)
    for kind in (SVD, STATIC, COMPACT):
        assert error(student, teacher) < error(initialise_baseline(teacher, kind, 4, BATCHES)[0], teacher)


def counted(network: RestorationModel) -> Complexity:
    return count_complexity(network, *network.input_shapes(32, 32))


def named(
    teacher: RestorationModel, widths: dict[str, int], skipped: tuple[str, ...] = ()
) -> dict[str, Method]:
    return {method.name: method for method in methods(teacher, widths, skipped, counted)}


@pytest.mark.parametrize("share", [0.9, 0.7])
def test_pruning_meets_the_operations(share: float) -> None:
    teacher = make("restormer")
    whole = counted(teacher).macs
    found = named(teacher, {"encoder_level1.0.ffn": 8})[WANDA]
    setting = found.setting(round(share * whole))
    assert counted(found.student(setting, BATCHES)).macs == pytest.approx(share * whole, rel=0.01)
    shares = [setting.widths[name] / layer.hidden for name, layer in feed_forwards(teacher).items()]
    assert max(shares) - min(shares) < 0.05 and setting.share == pytest.approx(shares[0], abs=0.03)
    assert setting.rank is None and not glmha_layers(found.student(setting, BATCHES))


def test_pruning_says_what_it_cannot_reach() -> None:
    teacher = make("restormer")
    found = named(teacher, {"encoder_level1.0.ffn": 8})[MAGNITUDE]
    least = found.setting(0).least
    assert least is not None and least.macs < 0.6 * counted(teacher).macs
    assert found.setting(least.macs - 1).least is not None
    assert found.setting(least.macs).least is None
    assert set(found.setting(least.macs).widths.values()) == {1}


def test_feed_forwards_are_pruned_where_the_student_has_narrowed_its_own() -> None:
    teacher = make("restormer")
    assert list(named(teacher, {})) == [SVD, STATIC, COMPACT]
    widths = {"encoder_level1.0.ffn": 8, "latent.0.ffn": 16}
    found = named(teacher, widths)
    assert list(found)[3:] == [MAGNITUDE, f"{MAGNITUDE}-refit", WANDA, f"{WANDA}-refit"]
    # Other methods for the attention have the student's widths.
    student = found[SVD].student(found[SVD].setting(counted(teacher).macs // 2), BATCHES)
    assert narrowed_widths(student) == widths


def test_feed_forwards_that_the_student_goes_without_are_left_out() -> None:
    """And attention that it goes without is not: that is another way to make attention cheaper."""
    teacher = make("restormer")
    gone, attention = "latent.0.ffn", "latent.0.attn"
    assert list(named(teacher, {}, (attention,))) == [SVD, STATIC, COMPACT]
    found = named(teacher, {}, (attention, gone))
    assert len(found) == 7
    student = found[SVD].student(found[SVD].setting(counted(teacher).macs // 2), BATCHES)
    assert skipped_layers(student) == [gone] and attention in glmha_layers(student)


@pytest.fixture(scope="module")
def killed_and_resumed(
    quick_factors: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[int]]:
    """A conversion that was killed when all was trained, and resumed; its folder, its report, and how many
    training steps had been taken when it was killed and at its end."""
    folder = tmp_path_factory.mktemp("baselines")
    torch.save(make("restormer").state_dict(), folder / "tiny.pth")
    options: dict[str, Any] = {
        "rank": 8,
        "ffn": 0.75,
        "baselines": True,
        "output": folder / "out",
        "latency": False,
        "calibration_crops": 2,
        "calibration_size": 16,
        "input_size": 16,
        "crop": 16,
        "distill_steps": 2,
        "degrade": "noise:25",
    }
    steps, taken = [0], []

    def killed(*arguments: Any, **named: Any) -> Any:
        raise SystemExit(137)

    def count(original: Any) -> Any:
        def step(*arguments: Any) -> bool:
            steps[0] += 1
            return bool(original(*arguments))

        return step

    with pytest.MonkeyPatch.context() as counted:
        counted.setattr(_Training, "step", count(_Training.step))
        with pytest.raises(SystemExit):
            stages = replaced(WriteReport(killed), CONVERSION_STAGES)
            run_conversion(folder / "tiny.pth", make_options(**options), stages=stages)
        taken.append(steps[0])
        found = convert(folder / "tiny.pth", **options, resume=True)
        taken.append(steps[0])
    return folder / "out", found.report, taken


def test_conversion_with_baselines(killed_and_resumed: tuple[Path, dict[str, Any], list[int]]) -> None:
    output, report, _ = killed_and_resumed
    macs = report["complexity"]["after"]["macs"]
    low_rank, pruned = report["baselines"][:3], report["baselines"][3:]
    assert [each["name"] for each in low_rank] == [SVD, STATIC, COMPACT]
    for each in low_rank:
        # Compact attention makes smaller products, so it may have a higher rank.
        assert each["rank"] >= 8 and "ffn" not in each
        assert "feed-forward networks as in this student" in each["description"]
    for each in pruned:
        assert "rank" not in each and 0 < each["ffn"] < 0.75  # the attention stays
    for each in report["baselines"]:
        assert each["macs"] == pytest.approx(macs, rel=0.03)
        assert each["before"]["psnr_to_teacher"] > 0 and each["after"]["psnr_to_teacher"] > 0
        assert each["after"]["psnr_drop"] is not None
    by_name = {each["name"]: each["before"]["psnr_to_teacher"] for each in pruned}
    assert list(by_name) == [MAGNITUDE, f"{MAGNITUDE}-refit", WANDA, f"{WANDA}-refit"]
    assert by_name[f"{WANDA}-refit"] > by_name[MAGNITUDE]
    page = (output / "report.html").read_text()
    assert "Linformer" in page and "weights times activations pruned, the rest refitted" in page
    assert not list(output.glob("state*"))


def test_a_method_that_was_distilled_is_not_distilled_again(
    killed_and_resumed: tuple[Path, dict[str, Any], list[int]],
) -> None:
    assert killed_and_resumed[2] == [16, 16]  # of the student and seven methods, and no more
