"""Networks of known families are read by recording as by their readers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.reading.layers import attention_layers
from csa2glmha.reading.network import read_network
from tests.subjects import SUBJECTS

#: V is multiplied by what a module makes of the mask and of a number, which is not read.
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
