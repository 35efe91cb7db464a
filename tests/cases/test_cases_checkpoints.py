"""Checkpoints as training tools of the field write them: all of one small network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csa2glmha.checkpoint.student import load_model

#: File, what the weights are called in it, and what is said of them.
FILES = [
    ("lightning_net.ckpt", "state_dict.net", "opened 'state_dict.net'"),
    ("lightning_loss.ckpt", "state_dict.model", "opened 'state_dict.model'; left out 'state_dict.loss_fn'"),
    (
        "generator.pth",
        "state_dict.generator",
        "opened 'state_dict.generator'; left out 'state_dict.step_counter'",
    ),
    (
        "generator_ema.pth",
        "state_dict.generator_ema",
        "opened 'state_dict.generator_ema' (averaged weights); left out 'state_dict.generator'",
    ),
    ("checkpoint_wrapper.pth", None, None),
    (
        "thop.pth",
        None,
        "opened the weights at the top of the file; ignored 83 counters of a profiler "
        "(total_ops, total_params)",
    ),
    (
        "state_dict_ema.pth",
        "state_dict_ema",
        "opened 'state_dict_ema' (averaged weights); left out 'state_dict'",
    ),
    ("model_ema.pth", "model_ema", "opened 'model_ema' (averaged weights); left out 'model'"),
    ("ema_only.pth", "ema", "opened 'ema' (averaged weights)"),
    ("params-ema.pth", "params-ema", "opened 'params-ema' (averaged weights); left out 'params'"),
    ("protocol4.pth", "params", "opened 'params'"),
]


@pytest.mark.parametrize(("name", "weights", "note"), FILES)
def test_every_file_gives_the_trained_network(
    cases: Path, name: str, weights: str | None, note: str | None
) -> None:
    trained = torch.load(cases / "checkpoints" / "plain.pth", weights_only=True)["params"]
    loaded = load_model(cases / "checkpoints" / name)
    state = loaded.model.state_dict()
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in trained.items())
    assert loaded.checkpoint.wrapper == weights
    assert loaded.checkpoint.notes == (() if note is None else (note,))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("state_dict_ema.pth", "state_dict"),
        ("model_ema.pth", "model"),
        ("params-ema.pth", "params"),
        ("generator_ema.pth", "state_dict.generator"),
        ("generator_ema.pth", "generator"),
    ],
)
def test_the_others_can_be_chosen(cases: Path, name: str, weights: str) -> None:
    state = load_model(cases / "checkpoints" / name, weights).model.state_dict()
    assert all(not tensor.any() for tensor in state.values())
