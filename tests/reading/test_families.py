"""Networks of known families are read by recording as by their readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import csa2glmha
from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.config.ranks import Ranks
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import layer_config
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers
from csa2glmha.reading.network import read_network
from tests.conftest import MakeRestormer
from tests.subjects import SUBJECTS

pytestmark = pytest.mark.usefixtures("quick_factors")

#: V is multiplied by what a module makes of the mask and of a number, and no layer makes queries and keys: a
#: function is given their weights.
_REFUSED = {"mst"}


def tensors(part: ChannelAttention | Projection) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, Projection):
            found |= {f"{name}.{key}": tensor for key, tensor in tensors(value).items()}
    return found


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_forms_are_those_of_the_reader(name: str) -> None:
    subject = SUBJECTS[name]
    model = subject.build()
    height, width = model.fixed_size or (16, 24)
    readings = read_network(model, subject.inputs(model, height, width))
    if name in _REFUSED:
        assert not readings.layers
        assert {refusal.reason.split(" by ")[0] for refusal in readings.refused} == {"V is multiplied"}
        return
    native = attention_layers(model)
    assert readings.layers.keys() == native.keys() and not readings.refused
    for layer, found in readings.layers.items():
        theirs, ours = tensors(native[layer].form), tensors(found.form)
        assert theirs.keys() == ours.keys()
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, rtol=1e-5, atol=1e-6)
        assert found.form.heads == native[layer].form.heads
        assert found.form.query_channels == native[layer].form.query_channels
        assert found.form.value_branch == native[layer].form.value_branch


def student_of(model: RestorationModel, inputs: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """The weights of a student whose layers differ in their ranks: the first three and the last."""
    ranks = (Ranks(k=3, v=3), Ranks(), Ranks(q=2, k=3, v=4), Ranks(k=4, v=2))
    *_, last = layers = list(attention_layers(model).items())
    configs = {
        name: layer_config(layer.form, each)
        for (name, layer), each in zip((*layers[:3], last), ranks, strict=True)
    }
    student, _ = initialise_student(model, configs, inputs)
    # What is made of V beside the attention is called as the family calls it, or by what it is.
    return {
        name.replace(".branch.module.", ".pos_emb."): value for name, value in student.state_dict().items()
    }


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name not in _REFUSED])
def test_the_student_is_that_of_the_reader(name: str) -> None:
    subject = SUBJECTS[name]
    native, recorded = subject.build(), subject.build()
    read_network(recorded, subject.inputs(recorded, 16, 24)).carried_by(recorded)
    inputs = [subject.inputs(native, 16, 24, 2, seed) for seed in (2, 3)]
    expected, found = student_of(native, inputs), student_of(recorded, inputs)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("rank", [8, "full"])
def test_files_of_one_network_by_name_and_by_its_code(
    rank: int | str, make_restormer: MakeRestormer, photos: Path, tmp_path: Path
) -> None:
    """A file that is recognised, and the same with the class named as if it were the user's own."""
    network = make_restormer(norm_bias=False)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    small = {"calibration_crops": 4, "calibration_size": 32, "input_size": 32}
    options = {
        "rank": rank,
        "data": photos,
        "degrade": "noise:25",
        "distill": False,
        "timing": False,
        **small,
    }
    kind = type(network)
    own = {"network": f"{kind.__module__}:{kind.__name__}", "network_arg": network.hyperparameters}
    for folder, more in (("native", {}), ("recorded", own)):
        csa2glmha.convert(tmp_path / "weights.pth", output=tmp_path / folder, **options, **more)
    files = [tmp_path / folder / "student.safetensors" for folder in ("native", "recorded")]
    expected, found = (load_file(file) for file in files)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5, msg=key)
    layers = []
    for file in files:
        with safe_open(file, "pt") as opened:
            layers.append(json.loads(opened.metadata()["layers"]))
    assert layers[0] == layers[1]
