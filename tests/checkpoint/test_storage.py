from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import csa2glmha
from csa2glmha import __version__
from csa2glmha.checkpoint import write_safetensors
from csa2glmha.checkpoint.student import load, load_model, save_student, student_metadata
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import CheckpointError, Csa2GlmhaError
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.reading.layers import attention_layers, glmha_layers
from tests.conftest import MakeRestormer, batches

SHA = "ab" * 32


def image(channels: int = 3) -> Tensor:
    return torch.rand(1, channels, 17, 12, generator=torch.Generator().manual_seed(0))


def make_student(teacher: Restormer, ranks: Ranks, attention: str = "expanded") -> Restormer:
    """Two layers converted; all weights away from their starting values."""
    names = ("encoder_level2.0.attn", "latent.0.attn")
    layers = {name: layer for name, layer in attention_layers(teacher).items() if name in names}
    calibration = torch.rand(2, teacher.in_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    student, _ = initialise_student(teacher, plan_layers(layers, ranks, attention), batches(calibration))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return student


def metadata_of(student: Restormer) -> dict[str, str]:
    return student_metadata(student, SHA, 7, {"ranks": "q full, k 4, v 4", "task": "noise:25"})


@pytest.fixture(scope="module")
def student(make_restormer: MakeRestormer) -> Restormer:
    return make_student(make_restormer(num_refinement_blocks=0), Ranks(k=4, v=4))


@pytest.mark.parametrize(
    ("ranks", "attention", "changes"),
    [
        (Ranks(4, 2, 8), "expanded", {"bias": True}),
        (Ranks(k=4, v=4), "compact", {"norm_bias": False}),
        (Ranks(), "expanded", {"in_channels": 6, "dual_pixel": True}),
        (Ranks(v=2), "expanded", {"in_channels": 1, "out_channels": 1}),
    ],
    ids=["q, k, v", "compact", "dual-pixel", "gray"],
)
def test_a_loaded_student_is_the_one_saved(
    tmp_path: Path,
    make_restormer: MakeRestormer,
    ranks: Ranks,
    attention: str,
    changes: dict[str, Any],
) -> None:
    saved = make_student(make_restormer(num_refinement_blocks=0, **changes), ranks, attention)
    path = tmp_path / "student.safetensors"
    save_student(path, saved, metadata_of(saved))
    loaded = load_model(path)
    assert loaded.is_student
    assert not loaded.model.training
    assert loaded.model.hyperparameters == saved.hyperparameters
    assert {n: g.config for n, g in glmha_layers(loaded.model).items()} == {
        n: g.config for n, g in glmha_layers(saved).items()
    }
    state, expected = loaded.model.state_dict(), saved.state_dict()
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    x = image(saved.in_channels)
    with torch.no_grad():
        assert torch.equal(load(path)(x), saved(x))
    # Trainable again, as `distill` on a student file needs it.
    loaded.model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.model.parameters())


def test_metadata_is_complete(student: Restormer) -> None:
    metadata = metadata_of(student)
    assert metadata["format"] == "csa2glmha-student"
    assert metadata["format_version"] == "4"
    assert metadata["tool_version"] == __version__
    assert metadata["architecture"] == "restormer"
    assert json.loads(metadata["hyperparameters"]) == student.hyperparameters
    assert metadata["teacher_sha256"] == SHA
    assert metadata["seed"] == "7"
    assert (metadata["ranks"], metadata["task"]) == ("q full, k 4, v 4", "noise:25")
    layers = json.loads(metadata["layers"])
    assert set(layers) == {"encoder_level2.0.attn", "latent.0.attn"}
    assert layers["latent.0.attn"] == {
        "channels": 64, "out_channels": 64, "heads": 4, "head_channels": 16,
        "rank_q": 16, "rank_k": 4, "rank_v": 4, "attention": "expanded", "kernel_size": 3,
        "bias": False, "output_bias": False, "bias_rank": 8, "guide_width": 4,
        "logits": "maps", "rank_pos": None,
    }  # fmt: skip
    assert all(isinstance(value, str) for value in metadata.values())


def _layers(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, str]], object]:
    def run(metadata: dict[str, str]) -> None:
        layers = json.loads(metadata["layers"])
        change(layers)
        metadata["layers"] = json.dumps(layers)

    return run


DAMAGE: dict[str, Callable[[dict[str, str]], object]] = {
    "newer version": lambda m: m.update(format_version="5"),
    "no version": lambda m: m.pop("format_version"),
    "no architecture": lambda m: m.pop("architecture"),
    "unknown architecture": lambda m: m.update(architecture="unet"),
    "no hyper-parameters": lambda m: m.pop("hyperparameters"),
    "hyper-parameters not JSON": lambda m: m.update(hyperparameters="{'dim': 8}"),
    "hyper-parameters null": lambda m: m.update(hyperparameters="null"),
    "unknown hyper-parameter": lambda m: m.update(hyperparameters='{"depth": 8}'),
    "dim of another network": lambda m: m.update(hyperparameters='{"dim": 16}'),
    "dim negative": lambda m: m.update(hyperparameters='{"dim": -8}'),
    "dim zero": lambda m: m.update(hyperparameters='{"dim": 0}'),
    "dim text": lambda m: m.update(hyperparameters='{"dim": "8"}'),
    "too few levels": lambda m: m.update(hyperparameters='{"num_blocks": [1]}'),
    "layers a list": lambda m: m.update(layers="[]"),
    "layers cut": lambda m: m.update(layers=m["layers"][:-5]),
    "no layer": lambda m: m.update(layers="{}"),
    "unknown layer": _layers(lambda v: v.update({"latent.9.attn": v["latent.0.attn"]})),
    "layer that is no attention": _layers(lambda v: v.update({"patch_embed": v["latent.0.attn"]})),
    "unknown key of a layer": _layers(lambda v: v["latent.0.attn"].update(depth=3)),
    "missing key of a layer": _layers(lambda v: v["latent.0.attn"].pop("heads")),
    "other rank": _layers(lambda v: v["latent.0.attn"].update(rank_k=5)),
    "negative rank": _layers(lambda v: v["latent.0.attn"].update(rank_k=-5)),
    "rank as text": _layers(lambda v: v["latent.0.attn"].update(rank_k="4")),
    "no heads": _layers(lambda v: v["latent.0.attn"].update(heads=0)),
    "no widths": lambda m: m.pop("feed_forwards"),
    "widths a list": lambda m: m.update(feed_forwards="[1]"),
    "unknown feed-forward network": lambda m: m.update(feed_forwards='{"latent.9.ffn": 8}'),
    "attention as feed-forward network": lambda m: m.update(feed_forwards='{"latent.0.attn": 8}'),
    "no width": lambda m: m.update(feed_forwards='{"latent.0.ffn": 0}'),
    "too wide": lambda m: m.update(feed_forwards='{"latent.0.ffn": 1000000000}'),
    "another width": lambda m: m.update(feed_forwards='{"latent.0.ffn": 8}'),
    "width as text": lambda m: m.update(feed_forwards='{"latent.0.ffn": "8"}'),
    "layer null": _layers(lambda v: v.update({"latent.0.attn": None})),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_metadata_is_one_clear_line(
    tmp_path: Path, student: Restormer, damage: Callable[[dict[str, str]], object]
) -> None:
    metadata = metadata_of(student)
    damage(metadata)
    path = tmp_path / "student.safetensors"
    write_safetensors(path, student.state_dict(), metadata)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


def test_wrong_version_says_what_to_do(tmp_path: Path, student: Restormer) -> None:
    path = tmp_path / "student.safetensors"
    write_safetensors(path, student.state_dict(), metadata_of(student) | {"format_version": "5"})
    with pytest.raises(CheckpointError, match=r"student format 5 is not 1 to 4.*convert the teacher again"):
        load(path)


def test_weights_that_do_not_fit_the_metadata(tmp_path: Path, student: Restormer) -> None:
    path = tmp_path / "student.safetensors"
    state = dict(student.state_dict())
    del state["latent.0.attn.expand_values"]
    write_safetensors(path, state, metadata_of(student))
    with pytest.raises(CheckpointError, match=r"1 missing: latent\.0\.attn\.expand_values"):
        load(path)


def test_a_student_without_its_metadata_is_not_taken_for_a_teacher(
    tmp_path: Path, student: Restormer
) -> None:
    path = tmp_path / "student.safetensors"
    write_safetensors(path, student.state_dict(), {})
    with pytest.raises(Csa2GlmhaError) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_an_interrupted_write_leaves_the_earlier_file(
    tmp_path: Path, student: Restormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "student.safetensors"
    save_student(path, student, metadata_of(student))
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_student(path, student, metadata_of(student) | {"seed": "8"})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


# --- teachers


def _wrapped(state: dict[str, Tensor], wrapper: str | None, prefix: str) -> dict[str, Any]:
    named = {prefix + name: value for name, value in state.items()}
    return named if wrapper is None else {wrapper: named, "epoch": 3}


@pytest.mark.parametrize("wrapper", [None, "params", "params_ema", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_teachers_load_from_any_wrapping(
    tmp_path: Path, tiny_restormer: Restormer, wrapper: str | None, prefix: str
) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(_wrapped(tiny_restormer.state_dict(), wrapper, prefix), path)
    loaded = load_model(path)
    assert not loaded.is_student
    assert loaded.checkpoint.wrapper == wrapper
    assert loaded.model.hyperparameters == tiny_restormer.hyperparameters
    with torch.no_grad():
        assert torch.equal(loaded.model(image()), tiny_restormer(image()))


def test_half_precision_teacher_is_widened(tmp_path: Path, tiny_restormer: Restormer) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(tiny_restormer.half().state_dict(), path)
    model = load(path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(model(image()), tiny_restormer.float()(image()))


def test_integer_weights_are_a_checkpoint_error(tmp_path: Path, tiny_restormer: Restormer) -> None:
    path = tmp_path / "teacher.pth"
    state = dict(tiny_restormer.state_dict())
    state["output.weight"] = state["output.weight"].to(torch.int8)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"output\.weight"):
        load(path)


def test_load_is_offered_by_the_package(tmp_path: Path, tiny_restormer: Restormer) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(tiny_restormer.state_dict(), path)
    assert isinstance(csa2glmha.load(str(path)), Restormer)


def test_trained_teacher(shared: Path) -> None:
    loaded = load_model(shared / "checkpoints" / "restormer_d24_denoise25.pth")
    assert loaded.model.hyperparameters == {
        "in_channels": 3, "out_channels": 3, "dim": 24, "num_blocks": [2, 2, 2, 2],
        "num_refinement_blocks": 1, "heads": [1, 1, 2, 4], "ffn_expansion_factor": 2.66,
        "bias": False, "norm_bias": False, "dual_pixel": False,
    }  # fmt: skip
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == pytest.approx(2.57e6, abs=5e3)
    assert loaded.checkpoint.sha256.startswith("0b69b75f282ca934")
