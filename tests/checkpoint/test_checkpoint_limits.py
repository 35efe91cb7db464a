"""Small files that ask for much, and nonsense in what they say, end at once in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from csa2glmha.attention.stored import read_config
from csa2glmha.checkpoint import load as loading
from csa2glmha.checkpoint import read_checkpoint, write_safetensors
from csa2glmha.checkpoint.student import load, student_metadata
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import CheckpointError
from csa2glmha.families.mst.network import MST
from csa2glmha.families.mst_plus_plus.network import MSTPlusPlus
from csa2glmha.families.registry import build, family_named
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.initialize.configure import layer_config, plan_layers
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers, replace_layers
from tests.conftest import TINY_RESTORMER

MODELS: dict[str, Callable[[], RestorationModel]] = {
    "restormer": lambda: Restormer(**TINY_RESTORMER),
    "mst": lambda: MST(4, (1, 1, 1)),
    "mst_plus_plus": lambda: MSTPlusPlus(3, 4, 1, (1, 1, 1)),
}


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert message.isprintable()
    return message


def saved(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "model.pth")
    return tmp_path / "model.pth"


# --- more of a network than there are weights

MILLION = 1_000_000
NAMES = {
    "restormer": ["encoder_level1.1000000000.x", "latent.99999999.x", "refinement.1000000000.x"],
    "mst": ["encoder_layers.0.0.blocks.1000000000.0.x", "bottleneck.blocks.1000000000.x"],
    "mst_plus_plus": ["body.1000000000.x", "body.0.encoder_layers.0.0.blocks.1000000000.x"],
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in NAMES.items() for key in keys])
def test_one_name_does_not_make_a_million_blocks(tmp_path: Path, name: str, key: str) -> None:
    state = MODELS[name]().state_dict() | {key: torch.ones(1)}
    assert "blocks, but only" in error_of(saved(tmp_path, state))


@pytest.mark.parametrize("level", ["9" * 5, "9" * 5000], ids=["large", "beyond conversion"])
def test_levels_that_are_not_there(tmp_path: Path, level: str) -> None:
    state = MODELS["mst"]().state_dict() | {f"encoder_layers.{level}.0.blocks.0.x": torch.ones(1)}
    error_of(saved(tmp_path, state))


WRONG_HYPERPARAMETERS: list[tuple[str, dict[str, Any], str]] = [
    ("restormer", {"num_blocks": [MILLION, 1, 1, 1]}, "blocks, but only"),
    ("restormer", {"num_refinement_blocks": MILLION}, "blocks, but only"),
    ("restormer", {"num_blocks": [1] * MILLION}, "num_blocks"),
    ("restormer", {"heads": [1] * MILLION}, "heads"),
    ("restormer", {"heads": [0, 1, 1, 1]}, "heads"),
    ("restormer", {"heads": [3, 1, 1, 1]}, "heads"),
    ("restormer", {"dim": 10**30}, "dim"),
    ("restormer", {"dim": True}, "dim"),
    ("restormer", {"bias": "no"}, "bias"),
    ("restormer", {"ffn_expansion_factor": float("nan")}, "ffn_expansion_factor"),
    ("restormer", {"ffn_expansion_factor": float("inf")}, "ffn_expansion_factor"),
    ("restormer", {"ffn_expansion_factor": 1e-9}, "ffn_expansion_factor"),
    ("mst", {"num_blocks": [MILLION, 1, 1]}, "blocks, but only"),
    ("mst", {"num_blocks": [1] * 30}, "num_blocks"),
    ("mst", {"num_blocks": []}, "num_blocks"),
    ("mst", {"mask_size": [8]}, "mask_size"),
    ("mst", {"mask_size": [-8, 8]}, "mask_size"),
    ("mst_plus_plus", {"stage": MILLION}, "blocks, but only"),
    ("mst_plus_plus", {"stage": 0}, "stage"),
    ("mst_plus_plus", {"num_blocks": [1, MILLION, 1]}, "blocks, but only"),
    ("mst_plus_plus", {"n_feat": -4}, "n_feat"),
]


@pytest.mark.parametrize(("name", "change", "what"), WRONG_HYPERPARAMETERS)
def test_hyperparameters_are_checked_before_anything_is_built(
    tmp_path: Path, name: str, change: dict[str, Any], what: str
) -> None:
    model = MODELS[name]()
    metadata = student_metadata(model, "ab" * 32, 0, {}) | {
        "hyperparameters": json.dumps(model.hyperparameters | change)
    }
    write_safetensors(tmp_path / "student.safetensors", model.state_dict(), metadata)
    message = error_of(tmp_path / "student.safetensors")
    assert "damaged student metadata" in message
    assert what in message


@pytest.mark.parametrize("name", MODELS)
def test_hyperparameters_of_real_networks_pass(name: str) -> None:
    model = MODELS[name]()
    values = family_named(name).check(json.loads(json.dumps(model.hyperparameters)), 1000)
    assert build(name, values).hyperparameters == model.hyperparameters


@pytest.mark.parametrize("values", [None, [], 3, {"dim": 8}, {"": {}}])
def test_hyperparameters_of_another_form(values: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        family_named("restormer").check(values, 1000)


# --- layers

LAYERS: dict[str, tuple[RestorationModel, Ranks, str]] = {
    "maps": (Restormer(**TINY_RESTORMER), Ranks(4, 4, 4), "expanded"),
    "full": (Restormer(**TINY_RESTORMER), Ranks(), "expanded"),
    "no keys": (Restormer(**TINY_RESTORMER), Ranks(k=0, v=4), "expanded"),
    "compact": (Restormer(**TINY_RESTORMER), Ranks(k=4, v=4), "compact"),
    "compact at full rank": (Restormer(**TINY_RESTORMER), Ranks(), "compact"),
    "gram": (MSTPlusPlus(3, 8, 1, (1, 1, 1)), Ranks(), "expanded"),
    "spectral": (MSTPlusPlus(3, 8, 1, (1, 1, 1)), Ranks(k=1, v=1, pos=1), "expanded"),
    "spectral, no keys": (MST(8, (1, 1, 1)), Ranks(k=0, v=1), "expanded"),
}


@pytest.mark.parametrize(("model", "ranks", "attention"), LAYERS.values(), ids=LAYERS)
def test_configurations_that_are_made_can_be_read(
    model: RestorationModel, ranks: Ranks, attention: str
) -> None:
    layers = attention_layers(model)
    for name, config in plan_layers(layers, ranks, attention).items():
        assert read_config(json.loads(json.dumps(config.to_json())), layers[name].form) == config


NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"rank_k": -5}, "rank_k: Input should be greater"),
    ({"rank_k": 17}, "rank_k: 17 is above the 16 channels of a head"),
    ({"rank_v": 0}, "rank_v"),
    ({"rank_q": 10**40}, "rank_q"),
    ({"rank_q": 2.5}, "rank_q"),
    ({"rank_v": float("nan")}, "rank_v"),
    ({"rank_v": "4"}, "rank_v"),
    ({"rank_v": None}, "rank_v"),
    ({"heads": True}, "heads"),
    ({"heads": 2}, "heads: 2, the network's layer has 4"),
    ({"channels": 32}, "channels: 32, the network's layer has 64"),
    ({"out_channels": 32}, "out_channels: 32"),
    ({"head_channels": 8}, "head_channels: 8"),
    ({"attention": "sparse"}, "attention"),
    ({"logits": "dense"}, "logits"),
    ({"logits": "gram"}, "logits: 'gram' does not go"),
    ({"logits": "modes"}, "logits: 'modes' does not go"),
    ({"rank_k": 0}, "logits: 'maps' does not go"),
    ({"rank_q": 0}, "logits: 'maps' does not go"),
    ({"attention": "compact", "rank_v": 8}, "attention: 'compact' does not go"),
    ({"attention": "compact", "rank_v": 1, "rank_k": 1}, "attention: 'compact' does not go"),
    ({"kernel_size": 2}, "kernel_size"),
    ({"kernel_size": 10**9}, "kernel_size"),
    ({"bias_rank": 1000}, "bias_rank"),
    ({"guide_width": 10**9}, "guide_width"),
    ({"rank_pos": 4}, "rank_pos"),
    ({"depth": 3}, "depth"),
    ({"\x1b[31mdepth": 3}, "depth"),
]


@pytest.mark.parametrize(("change", "what"), NONSENSE)
def test_nonsense_in_a_layer_is_one_line(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    model = Restormer(**TINY_RESTORMER)
    layer = attention_layers(model)["latent.0.attn"]
    config = layer_config(layer.form, Ranks(4, 4, 4))
    replace_layers(model, {"latent.0.attn": config})
    metadata = student_metadata(model, "ab" * 32, 0, {})
    metadata["layers"] = json.dumps({"latent.0.attn": config.to_json() | change})
    write_safetensors(tmp_path / "student.safetensors", model.state_dict(), metadata)
    message = error_of(tmp_path / "student.safetensors")
    assert "layer 'latent.0.attn'" in message
    assert what in message


def test_metadata_nested_without_end(tmp_path: Path) -> None:
    model = MODELS["restormer"]()
    metadata = student_metadata(model, "ab" * 32, 0, {}) | {"layers": "[" * 100_000}
    write_safetensors(tmp_path / "student.safetensors", model.state_dict(), metadata)
    assert "damaged student metadata" in error_of(tmp_path / "student.safetensors")


# --- tensors larger than the file


@pytest.mark.parametrize("zipped", [True, False])
def test_expanded_tensors_are_refused_before_they_are_copied(tmp_path: Path, zipped: bool) -> None:
    state = MODELS["restormer"]().state_dict() | {"output.weight": torch.ones(1).expand(10**10)}
    torch.save({"params": state}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    message = error_of(tmp_path / "x.pth")
    assert "would take 40.0 GB" in message
    assert "'output.weight' of shape (10000000000,)" in message


def test_several_of_them_are_not_compared_first(tmp_path: Path) -> None:
    state = MODELS["restormer"]().state_dict()
    huge = state | {"output.weight": torch.ones(1).expand(10**11)}
    assert "would take" in error_of(saved(tmp_path, {"a": huge, "b": dict(huge)}))


def test_tied_and_small_repeated_tensors_are_read(tmp_path: Path) -> None:
    model = MODELS["restormer"]()
    state = model.state_dict()
    name = "encoder_level1.0.norm1.body.weight"
    state[name] = torch.ones(1).expand(state[name].shape)
    assert torch.equal(load(saved(tmp_path, state)).state_dict()[name], torch.ones(8))


def test_archives_that_unpack_to_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_PACKING_SLACK", 1 << 20)
    path = saved(tmp_path, {"a": torch.zeros(2**18)})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/1", bytes(1 << 26))
    assert "is compressed: its 1.1 MB would unpack to 0.1 GB" in error_of(path)


def test_thirty_blocks_a_level_are_read(tmp_path: Path) -> None:
    options = TINY_RESTORMER | {"num_blocks": [30] * 4, "num_refinement_blocks": 30}
    loaded = load(saved(tmp_path, {"params": Restormer(**options).state_dict()}))
    assert loaded.hyperparameters["num_blocks"] == [30] * 4
    # Three levels of the decoder and the refinement come to the four of the encoder.
    assert len(attention_layers(loaded)) == 8 * 30


# --- names


def test_control_characters_do_not_reach_messages(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    state: dict[str, Tensor] = MODELS["restormer"]().state_dict()
    path = tmp_path / "a\x1b[31mb.pth"
    for content in (
        state | {evil: torch.ones(1)},
        {name: tensor for name, tensor in state.items() if name != "output.weight"} | {evil: torch.ones(1)},
        {evil: torch.ones(1)},
        {evil: 1},
        {evil: state, f"{evil}2": {name: tensor + 1 for name, tensor in state.items()}},
        state | {"output.weight": torch.full((3, 16, 3, 3), float("nan"))},
    ):
        torch.save(content, path)
        error_of(path)
    torch.save({evil: state}, path)
    assert all(note.isprintable() for note in read_checkpoint(path).notes)
    metadata = student_metadata(MODELS["restormer"](), "x", 0, {})
    for change in ({"format_version": evil}, {"architecture": evil}, {"layers": json.dumps({evil: {}})}):
        path = tmp_path / "student.safetensors"
        write_safetensors(path, state, metadata | change)
        error_of(path)


# --- the same bytes

WRITE = """
import sys, torch
from csa2glmha.checkpoint import write_safetensors
tensors = {name: torch.ones(2) for name in "cab"}
write_safetensors(sys.argv[1], tensors, {f"key {i}": str(i) for i in range(20)})
"""


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = {name: torch.ones(2) for name in "cab"}
    metadata = {f"key {i}": str(i) for i in range(20)}
    write_safetensors(tmp_path / "here", tensors, metadata)
    once = (tmp_path / "here").read_bytes()
    for _ in range(3):
        tensors, metadata = dict(reversed(tensors.items())), dict(reversed(metadata.items()))
        write_safetensors(tmp_path / "here", tensors, metadata)
        assert (tmp_path / "here").read_bytes() == once
    header = once[8 : 8 + int.from_bytes(once[:8], "little")]
    assert len(header) % 8 == 0
    assert list(json.loads(header)["__metadata__"]) == sorted(metadata)
    # Another process has another order of hashes.
    subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / "there")], check=True)
    assert (tmp_path / "there").read_bytes() == once


def test_files_in_the_old_order_are_read(tmp_path: Path) -> None:
    metadata = {"rank": "8", "Ä": "\x1b ü", "format": "pt"}
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "old", metadata)
    write_safetensors(tmp_path / "new", {"a": torch.ones(2)}, metadata)
    assert (
        read_checkpoint(tmp_path / "old").metadata == read_checkpoint(tmp_path / "new").metadata == metadata
    )
    assert (tmp_path / "old").stat().st_size == (tmp_path / "new").stat().st_size
