"""Students of any network: their files say how each layer is put in; older ones do not, and load, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import csa2glmha
from csa2glmha.checkpoint import read_checkpoint, write_safetensors
from csa2glmha.checkpoint.student import load_model, save_student, student_metadata
from csa2glmha.config.options import make_options
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import CheckpointError
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.reading.layers import attention_layers, replace_layers
from csa2glmha.reading.network import read_network
from tests.networks import Block, Network, beside, builders, forms, image

STUDENTS = Path(__file__).parent / "students"
BLOCKS: dict[str, Block] = {
    "map": lambda c: forms.TokenBlock(beside.InteractingAttention(c)),
    "map, separate layers": beside.LastBlock,
    "maps": forms.MapAttention,
    "tokens with kernels": lambda c: forms.TokenBlock(forms.SpreadTokenAttention(c)),
    "factor and branch": forms.LitBlock,
    "relu": forms.ReluAttention,
    "cross, called twice": forms.CrossBlock,
}


def student_of(network: nn.Module) -> nn.Module:
    """Its layers replaced, with weights of no meaning."""
    read_network(network, (image(),)).carried_by(network)
    replace_layers(network, plan_layers(attention_layers(network), Ranks(k=2, v=2)))
    generator = torch.Generator().manual_seed(4)
    for parameter in network.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def saved(path: Path, block: Block) -> nn.Module:
    """A student, and its file."""
    student = student_of(Network(block))
    save_student(path, student, student_metadata(student, "0" * 64, 0, {}))
    return student


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_student_is_loaded_without_a_run(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "student.safetensors"
    student, runs = saved(path, block), []
    monkeypatch.setattr(Network, "forward", lambda *_: runs.append(1))
    loaded = csa2glmha.load(path, network=Network(block, seed=7))
    assert not runs
    monkeypatch.undo()
    with torch.no_grad():
        output = student(image(16, 8))
        assert output.isfinite().all() and torch.equal(loaded(image(16, 8)), output)
    # Saved again, it is the same file.
    again = student_metadata(loaded, "0" * 64, 0, {})
    with safe_open(path, "pt") as file:
        assert again == file.metadata()


def test_a_student_of_a_builder_is_loaded_without_a_run(tmp_path: Path) -> None:
    own = make_options(network=f"{builders.FILE}:build", network_arg="largest=2")
    teacher = load_model("-", None, own).model
    assert teacher.global_operators  # of the attention that is refused
    replace_layers(teacher, plan_layers(attention_layers(teacher), Ranks(k=2, v=2)))
    path = tmp_path / "student.safetensors"
    save_student(path, teacher, student_metadata(teacher, "0" * 64, 0, {}))
    loaded = load_model(path, None, make_options(network=f"{builders.FILE}:build")).model
    assert loaded.global_operators == teacher.global_operators
    assert "recorded_readers" not in vars(loaded.get_submodule("network"))
    with torch.no_grad():
        assert torch.equal(loaded(image(16, 20)), teacher(image(16, 20)))


@pytest.mark.parametrize("name", ["builder", "module"])
def test_files_without_replacements_give_what_they_gave(name: str) -> None:
    """Written before files had them: of a network that a builder made, and of one that was in memory."""
    path, expected = STUDENTS / f"{name}-recorded.safetensors", load_file(STUDENTS / f"{name}-io.safetensors")
    network: Any = f"{builders.FILE}:build" if name == "builder" else Network(forms.LitBlock, seed=7)
    loaded = csa2glmha.load(path, network=network)
    with torch.no_grad():
        assert torch.allclose(loaded(expected["input"]), expected["output"], atol=1e-5)


class Renamed(forms.LastAttention):
    """Called otherwise, with the same weights."""

    def forward(self, x: torch.Tensor, lamp: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x, lamp)


def renamed(channels: int) -> nn.Module:
    block = forms.LitBlock(channels)
    block.attention = Renamed(channels)
    return block


Change = Callable[[dict[str, Any]], object]
#: What is changed in a layer's entry, and what is said of it.
NONSENSE: dict[str, tuple[Change, str]] = {
    "kind": (lambda each: each.update(kind="other"), "kind: Input should be 'attention'"),
    "no wiring": (lambda each: each.pop("wiring"), "wiring: Field required"),
    "no such field": (lambda each: each.update(depth=3), "depth: Extra inputs are not permitted"),
    "signature": (
        lambda each: each.update(signature="(y)"),
        "was called with (y) then, and is with (x, light=",
    ),
    "plain": (lambda each: each.update(plain=True), "plain: this layer is not called with one map alone"),
    "not of moments": (
        lambda each: each.update(from_moments=False),
        "logits: 'subspace' does not go with queries of rank 2",
    ),
    "argument": (
        lambda each: each["wiring"]["factor"]["place"].update(position=2),
        "wiring: (x, light=...) has no such argument",
    ),
    "negative": (lambda each: each["wiring"]["values"]["place"].update(position=-1), "wiring.values.place"),
    "text": (lambda each: each["wiring"]["values"]["place"].update(position="0"), "wiring.values.place"),
    "layout": (lambda each: each["wiring"].update(output="columns"), "wiring.output: Input should be 'maps'"),
    "second input": (
        lambda each: each["wiring"].update(queries=each["wiring"]["values"]),
        "wiring: one with an input for queries and a layer without",
    ),
    "branch": (
        lambda each: each["wiring"]["branch"].update(module="pos"),
        "branch: its module has no 'pos'",
    ),
    "order": (lambda each: each["wiring"]["branch"].update(order=[0, 1]), "order: not of the 8 channels"),
    "channel": (
        lambda each: each["wiring"]["branch"].update(order=[*range(7), 8]),
        "order: not of the 8 channels",
    ),
}


def _kept(each: dict[str, Any]) -> Any:
    return each["left_out"]["kept"]


#: The same of a layer of which the map alone is made anew.
MAP_NONSENSE: dict[str, tuple[Change, str]] = {
    "kind": (lambda each: each.update(kind="attention"), "kind: 'attention' does not go with the other"),
    "no place": (lambda each: each.pop("given"), "kind: 'map' does not go with the other fields"),
    "moments": (lambda each: each.update(from_moments=True), "logits: 'maps' does not go with"),
    "plain": (lambda each: each.update(plain=True), "plain: this layer is not called with one map"),
    "logits": (lambda each: each["given"].update(shape=[1, 2, 9, 4]), "given: no logits of 2 heads of 4"),
    "order": (lambda each: each["given"].update(logits=9), "given: no logits of 2 heads of 4 channels"),
    "layer": (lambda each: _kept(each)[0].__setitem__(0, "pos"), "left_out: its module has no layer 'pos'"),
    "no linear layer": (lambda each: _kept(each)[0].__setitem__(0, "mask"), "its module has no layer 'mask'"),
    "channels": (lambda each: _kept(each)[0].__setitem__(1, [8]), "left_out: 'to_k' has no such channels"),
    "turned": (lambda each: _kept(each)[0].__setitem__(1, [2, 1]), "left_out: 'to_k' has no such channels"),
    "parameter": (lambda each: each["left_out"].update(parameters=["beta"]), "has no parameter 'beta'"),
}


@pytest.mark.parametrize("name", MAP_NONSENSE)
def test_nonsense_in_an_entry_of_a_map_is_one_line(name: str, tmp_path: Path) -> None:
    change, said = MAP_NONSENSE[name]
    message = refused(tmp_path, change, Network(beside.LastBlock), beside.LastBlock)
    assert message.startswith("layer 'blocks.0.attention': ")
    assert said in message


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_an_entry_is_one_line(name: str, tmp_path: Path) -> None:
    change, said = NONSENSE[name]
    message = refused(tmp_path, change, Network(forms.LitBlock))
    assert message.startswith("layer 'blocks.0.attention': ")
    assert said in message


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (forms.MapAttention, "the network has no module of this name"),
        (renamed, "its module was called with (x, light=...) then, and is with (x, lamp=...) now"),
    ],
    ids=["another network", "called otherwise"],
)
def test_a_network_that_has_changed_is_one_line(block: Block, said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, lambda each: None, Network(block))


def refused(folder: Path, change: Change, network: nn.Module, block: Block = forms.LitBlock) -> str:
    """What is said of a file with one changed entry, behind the file and the network."""
    path = folder / "student.safetensors"
    saved(path, block)
    checkpoint = read_checkpoint(path)
    told = json.loads(checkpoint.metadata["network"])
    change(told["replacements"]["blocks.0.attention"])
    changed = folder / "changed.safetensors"
    write_safetensors(changed, checkpoint.state_dict, {**checkpoint.metadata, "network": json.dumps(told)})
    with pytest.raises(CheckpointError) as caught:
        csa2glmha.load(changed, network=network)
    message = str(caught.value)
    assert "\n" not in message and message.endswith("; give the network that the student was made of")
    return message.partition("does not fit Network: ")[2]
