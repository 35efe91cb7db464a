"""Networks are found wherever training tools put them, and averaged weights are preferred."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from csa2glmha.checkpoint import Checkpoint, networks, read_checkpoint
from csa2glmha.checkpoint.student import load, load_model
from csa2glmha.core.errors import CheckpointError, UsageError
from csa2glmha.families.restormer.network import Restormer
from tests.conftest import MakeRestormer
from tests.subjects import family_names

State = dict[str, Tensor]
Wrap = Callable[[State, State], dict[str, Any]]


@pytest.fixture(scope="module")
def state(make_restormer: MakeRestormer) -> State:
    return make_restormer(num_refinement_blocks=0).state_dict()


@pytest.fixture(scope="module")
def raw(state: State) -> State:
    """Other weights of the same network."""
    return {name: tensor + 1 for name, tensor in state.items()}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def read(tmp_path: Path, content: object, weights: str | None = None) -> Checkpoint:
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    return read_checkpoint(path, weights)


def assert_same(checkpoint: Checkpoint, expected: State) -> None:
    assert checkpoint.state_dict.keys() == expected.keys()
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in expected.items())


def inside(state: State, block: str, wrapper: str) -> State:
    return {name.replace(block, f"{block}{wrapper}"): tensor for name, tensor in state.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"params": [0, 1]}]}

LAYOUTS: dict[str, tuple[Wrap, tuple[str, ...]]] = {
    "released Restormer": (lambda w, _: {"params": w}, ("opened 'params'",)),
    "names alone": (lambda w, _: dict(w), ()),
    "Lightning, net.": (
        lambda w, _: {
            "epoch": 5,
            "state_dict": prefixed("net.", w),
            "optimizer_states": [OPTIMIZER],
            "callbacks": {"ModelCheckpoint{'monitor': 'psnr'}": {"best_model_score": torch.tensor(31.0)}},
            "pytorch-lightning_version": "2.1.0",
        },
        ("opened 'state_dict.net'; left out 'optimizer_states', 'callbacks'",),
    ),
    "Lightning with a loss network": (
        lambda w, _: {"state_dict": {**prefixed("model.", w), "loss_fn.vgg.0.weight": torch.ones(4)}},
        ("opened 'state_dict.model'; left out 'state_dict.loss_fn'",),
    ),
    "a loss within the same prefix": (
        lambda w, _: {**prefixed("model.net.", w), "model.loss.weight": torch.ones(4)},
        ("opened 'model.net'; left out 'model.loss'",),
    ),
    "MMagic": (
        lambda w, _: {
            "meta": {},
            "state_dict": {"step_counter": torch.tensor(5), **prefixed("generator.", w)},
        },
        ("opened 'state_dict.generator'; left out 'state_dict.step_counter'",),
    ),
    "MST++ as released": (lambda w, _: {"state_dict": prefixed("module.", w)}, ("opened 'state_dict'",)),
    "deep": (lambda w, _: {"a": {"b": {"c": OrderedDict(w)}}}, ("opened 'a.b.c'",)),
    "activation checkpointing": (
        lambda w, _: inside(w, "latent.0.", "_checkpoint_wrapped_module."),
        (),
    ),
    "compiled blocks": (lambda w, _: inside(w, "encoder_level1.0.", "_orig_mod."), ()),
    "compiled inside Lightning": (
        lambda w, _: {"state_dict": prefixed("net._orig_mod.", inside(w, "latent.0.", "module."))},
        ("opened 'state_dict.net'",),
    ),
    "FSDP": (
        lambda w, _: prefixed("_fsdp_wrapped_module.", inside(w, "patch_embed.", "_fsdp_wrapped_module.")),
        (),
    ),
    "thop": (
        lambda w, _: {**w, "total_ops": torch.zeros(1), "latent.0.attn.total_params": torch.zeros(1)},
        (
            "opened the weights at the top of the file; ignored 2 counters of a profiler "
            "(total_ops, total_params)",
        ),
    ),
}


@pytest.mark.parametrize(("wrap", "notes"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_network_is_found(
    tmp_path: Path, state: State, raw: State, wrap: Wrap, notes: tuple[str, ...]
) -> None:
    checkpoint = read(tmp_path, wrap(state, raw))
    assert_same(checkpoint, state)
    assert checkpoint.notes == notes
    assert (checkpoint.others, checkpoint.weights) == ((), "")


def averaged_model(average: State) -> State:
    """What PyTorch's AveragedModel saves."""
    return {"n_averaged": torch.tensor(3), **prefixed("module.", average)}


def dotless(average: State) -> State:
    """Averages as buffers, whose names have no dots."""
    return {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in average.items()}


#: Layouts of averaged weights w and raw weights r, and what the averaged ones are called in the note.
AVERAGED: dict[str, tuple[Wrap, str, str]] = {
    "BasicSR": (lambda w, r: {"params": r, "params_ema": w}, "params_ema", "params"),
    "BasicSR's other name": (lambda w, r: {"params-ema": w, "params": r}, "params-ema", "params"),
    "timm": (lambda w, r: {"state_dict": r, "state_dict_ema": w}, "state_dict_ema", "state_dict"),
    "model_ema": (lambda w, r: {"model": r, "model_ema": w}, "model_ema", "model"),
    "EMA in capitals": (lambda w, r: {"model": r, "modelEMA": w}, "modelEMA", "model"),
    "prefix": (
        lambda w, r: {"state_dict": {**prefixed("generator.", r), **prefixed("generator_ema.", w)}},
        "state_dict.generator_ema",
        "state_dict.generator",
    ),
    "ema_pytorch": (
        lambda w, r: {**prefixed("online_model.", r), **prefixed("ema_model.", w), "step": torch.tensor(3)},
        "ema_model",
        "online_model",
    ),
    "beside names alone": (lambda w, r: {**r, **prefixed("ema.", w)}, "ema", "."),
    "AveragedModel beside": (lambda w, r: {"model": r, "best": averaged_model(w)}, "best", "model"),
    "AveragedModel inside": (
        lambda w, r: {**prefixed("net.", r), **prefixed("copy.", averaged_model(w))},
        "copy",
        "net",
    ),
    "callback of Lightning": (
        lambda w, r: {
            "state_dict": prefixed("net.", r),
            "callbacks": {"StochasticWeightAveraging": {"average_model_state": prefixed("net.", w)}},
        },
        "callbacks.StochasticWeightAveraging.average_model_state.net",
        "state_dict.net",
    ),
    # These two have the averaged weights in the place of the others.
    "Lightning's WeightAveraging": (
        lambda w, r: {
            "state_dict": prefixed("net.", w),
            "current_model_state": prefixed("net.", r),
            "averaging_state": {"n_averaged": torch.tensor(7)},
        },
        "state_dict.net",
        "current_model_state.net",
    ),
    "MMEngine": (
        lambda w, r: {
            "state_dict": w,
            "ema_state_dict": {**prefixed("module.", r), "steps": torch.tensor(7)},
        },
        "state_dict",
        "ema_state_dict",
    ),
    "names without dots": (
        lambda w, r: {**prefixed("model.", r), **dotless(w), "model_ema.decay": torch.tensor(0.99)},
        "model_ema",
        "model",
    ),
}


@pytest.mark.parametrize(("wrap", "label", "other"), AVERAGED.values(), ids=AVERAGED)
def test_averaged_weights_are_preferred_and_said(
    tmp_path: Path, state: State, raw: State, wrap: Wrap, label: str, other: str
) -> None:
    content = wrap(state, raw)
    checkpoint = read(tmp_path, content)
    assert_same(checkpoint, state)
    assert checkpoint.wrapper == checkpoint.weights == label
    assert checkpoint.others == (other,)
    assert len(checkpoint.notes) == 1
    assert checkpoint.notes[0].startswith(f"opened '{label}' (averaged weights)")
    # The others can be asked for, and then are what is taken.
    asked = read(tmp_path, content, other)
    assert_same(asked, raw)
    assert asked.weights == other
    assert "averaged" not in asked.notes[0].partition(";")[0]


def test_the_left_out_are_named(tmp_path: Path, state: State, raw: State) -> None:
    content = {
        "state_dict": raw,
        "state_dict_ema": state,
        "optimizer": OPTIMIZER,
        "epoch": 3,
        "args": {"lr": 1},
    }
    notes = read(tmp_path, content).notes
    assert notes == ("opened 'state_dict_ema' (averaged weights); left out 'state_dict', 'optimizer'",)


@pytest.mark.parametrize("content", ["ema", "averaged model"])
def test_averaged_weights_alone(tmp_path: Path, state: State, content: str) -> None:
    held: dict[str, Any] = {"ema": state, "epoch": 1} if content == "ema" else averaged_model(state)
    checkpoint = read(tmp_path, held)
    assert_same(checkpoint, state)
    assert "(averaged weights)" in checkpoint.notes[0]


def test_what_pytorch_itself_saves(tmp_path: Path, tiny_restormer: Restormer) -> None:
    average = AveragedModel(tiny_restormer)
    average.update_parameters(tiny_restormer)
    checkpoint = read(tmp_path, average.state_dict())
    assert_same(checkpoint, tiny_restormer.state_dict())
    assert "averaged" in checkpoint.notes[0]


@pytest.mark.parametrize("name", ["params_ema", "params"])
def test_the_same_weights_twice_are_no_choice(tmp_path: Path, state: State, name: str) -> None:
    checkpoint = read(tmp_path, {name: state, "model": {key: value.clone() for key, value in state.items()}})
    assert_same(checkpoint, state)
    assert checkpoint.others == ()


@pytest.mark.parametrize(
    ("first", "second"), [("student", "teacher"), ("ema", "swa"), ("model", "best_model"), ("no_ema", "net")]
)
def test_several_networks_are_refused_by_name(
    tmp_path: Path, state: State, raw: State, first: str, second: str
) -> None:
    with pytest.raises(CheckpointError, match=r"holds 2 networks.*choose one with --weights") as caught:
        read(tmp_path, {first: raw, second: state})
    assert f"'{first}'" in str(caught.value)
    assert f"'{second}'" in str(caught.value)
    assert_same(read(tmp_path, {first: raw, second: state}, second), state)


def test_averages_of_another_network_are_no_substitute(
    tmp_path: Path, state: State, make_restormer: MakeRestormer
) -> None:
    other = make_restormer(dim=16, num_refinement_blocks=0).state_dict()
    with pytest.raises(CheckpointError, match="holds 2 networks"):
        read(tmp_path, {"net_g": state, "degrader_ema": other})


def test_a_part_of_the_name_is_enough(tmp_path: Path, state: State, raw: State) -> None:
    content = {"state_dict": {**prefixed("generator.", state), **prefixed("generator_ema.", raw)}}
    assert_same(read(tmp_path, content, "generator"), state)
    assert_same(read(tmp_path, content, "state_dict"), raw)


def test_weights_that_are_not_there(tmp_path: Path, state: State, raw: State) -> None:
    with pytest.raises(
        UsageError, match=r"--weights 'ema'.*no network of that name; it has 'params_ema', 'params'"
    ):
        read(tmp_path, {"params_ema": raw, "params": state}, "ema")
    with pytest.raises(UsageError, match=r"--weights 'x'.*nothing of that name.* '.'"):
        read(tmp_path, {"conv.weight": torch.ones(2)}, "x")


def test_load_takes_a_name(tmp_path: Path, tiny_restormer: Restormer) -> None:
    state = tiny_restormer.state_dict()
    zero = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    path = tmp_path / "two.pth"
    torch.save({"params": zero, "params_ema": state}, path)
    for weights, expected in ((None, state), ("params_ema", state), ("params", zero)):
        loaded = load(path, weights=weights).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_safetensors_with_prefixes_and_metadata(tmp_path: Path, tiny_restormer: Restormer) -> None:
    path = tmp_path / "model.safetensors"
    state = tiny_restormer.state_dict()
    zero = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    safetensors.torch.save_file({**prefixed("net.", zero), **prefixed("ema.", state)}, path, {"format": "pt"})
    loaded = load_model(path)
    assert loaded.checkpoint.wrapper == "ema"
    assert all(torch.equal(loaded.model.state_dict()[name], tensor) for name, tensor in state.items())


# --- what is not a whole network


def error_of(tmp_path: Path, content: object) -> str:
    path = tmp_path / "model.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parts_that_are_missing_are_named_under_a_prefix_too(tmp_path: Path, state: State) -> None:
    del (broken := dict(state))["output.weight"]
    message = error_of(tmp_path, {"state_dict": {**prefixed("net.", broken), "loss.weight": torch.ones(2)}})
    assert "closest is restormer, but it has no output.weight" in message


def test_more_than_the_network_under_the_same_prefix_is_refused(tmp_path: Path, state: State) -> None:
    # A Restormer with prompts, say: without them it would load, and restore nothing.
    message = error_of(tmp_path, {"params": {**state, "prompt1.prompt_param": torch.ones(2)}})
    assert "1 unexpected: prompt1.prompt_param" in message
    assert "contains 7 groups that look like channel attention (first: encoder_level1.0.attn)" in message
    assert message.endswith("give the network with --network")


def test_two_tensors_for_one_name(tmp_path: Path, state: State) -> None:
    twice = {**state, "latent._orig_mod.0.attn.temperature": state["latent.0.attn.temperature"] + 1}
    assert "keys do not fit" in error_of(tmp_path, twice)


def test_a_dict_in_itself_is_searched_once(tmp_path: Path, state: State) -> None:
    content: dict[str, Any] = {"epoch": 1, "net": {"state_dict": state}}
    content["model"] = content["params"] = content["net"]["self"] = content
    assert_same(read(tmp_path, content), state)


def test_the_search_is_bounded(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_MOST_ENTRIES", 20)
    with pytest.raises(CheckpointError, match="more dicts in it than are searched"):
        read(tmp_path, {"options": {str(i): i for i in range(30)}, "more": {"net": {"state_dict": state}}})


def test_a_great_many_names_and_networks_take_no_time_to_speak_of(tmp_path: Path) -> None:
    # Quadratic work on these would take hours.
    one = torch.ones(1)
    many: State = {f"a.{i}.patch_embed.proj.weight": one for i in range(100_000)}
    many |= {"." * 900 + str(i): one for i in range(1000)} | {"x" * 1_000_000: one}
    assert "closest is restormer" in error_of(tmp_path, many)


# --- variants of supported networks


def spectral_blocks(prefix: str, mask: bool) -> State:
    names = ["encoder_layers.0.0.blocks.0.0.to_q.weight", "bottleneck.blocks.0.0.rescale", "mapping.weight"]
    names += ["encoder_layers.0.0.blocks.0.0.mm.depth_conv.weight"] if mask else []
    return prefixed(prefix, {name: torch.ones(4, 4, 1, 1) for name in names})


VARIANTS: dict[str, tuple[State, str]] = {
    "real": (
        {"embedding.weight": torch.ones(1), "fution.weight": torch.ones(28, 28, 3, 3)}
        | spectral_blocks("", False),
        "is MST for real CASSI measurements",
    ),
    "MST++ for CASSI": (
        {"conv_in.weight": torch.ones(1), "conv_out.weight": torch.ones(1)}
        | {"fution.weight": torch.ones(28, 56, 1, 1), "fution.bias": torch.ones(28)}
        | prefixed("body.0.", {"embedding.weight": torch.ones(1)})
        | spectral_blocks("body.0.", False),
        "is MST++ for CASSI measurements (with a fusion of 56 to 28 channels in front",
    ),
    "NTIRE 2022": (
        {"embedding_1.weight": torch.ones(31, 3, 3, 3), "embedding_2.weight": torch.ones(31, 3, 3, 3)}
        | spectral_blocks("", True),
        "is MST for RGB images, of NTIRE 2022",
    ),
}


@pytest.mark.parametrize("prefix", ["", "module.", "net."])
@pytest.mark.parametrize(("variant", "what"), VARIANTS.values(), ids=VARIANTS)
def test_variants_are_named(tmp_path: Path, variant: State, what: str, prefix: str) -> None:
    message = error_of(tmp_path, {"state_dict": prefixed(prefix, variant)})
    assert what in message
    assert f"which is not supported. Supported: {', '.join(family_names())}" in message


def test_modules_are_wrapped_as_these_names_say(tiny_restormer: Restormer) -> None:
    parallel = nn.DataParallel(tiny_restormer)
    assert {networks.without_wrappers(name) for name in parallel.state_dict()} == set(
        tiny_restormer.state_dict()
    )
