"""A family that says as little as it can: what it leaves out is derived, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csa2glmha import families
from csa2glmha.attention.glmha import GLMHA
from csa2glmha.checkpoint.student import load
from csa2glmha.commands.analyze import analyze_file
from csa2glmha.commands.convert import run_conversion
from csa2glmha.commands.inspect import describe, inspect_model
from csa2glmha.config.options import ConvertOptions, make_options
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import CheckpointError, UsageError
from csa2glmha.export.lowering.attention import DeployedGLMHA
from csa2glmha.export.lowering.rewrite import deploy
from csa2glmha.export.onnx import export_onnx
from csa2glmha.families import restormer
from csa2glmha.families.family import Family
from csa2glmha.families.hyperparameters import Hyperparameters, Width
from csa2glmha.families.registry import family_named, specialise_of
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.families.transposed.blocks import MDTA
from csa2glmha.families.transposed.readers import MDTAReader
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers
from tests.subjects import randomise


class ToyHyperparameters(Hyperparameters):
    width: Width

    @property
    def blocks(self) -> int:
        return 1


class Toy(RestorationModel):
    architecture, size_multiple, in_channels, out_channels = "toy", 1, 3, 3

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hyperparameters = {"width": width}
        self.toy_in, self.toy_out = nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)
        self.attention = MDTA(width, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.toy_out(self.attention(self.toy_in(image)))
        return x


def hyperparameters_from(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"width": state["toy_in.weight"].shape[0]}


TOY = Family("toy", Toy, ("toy_in.weight", "toy_out.weight"), ToyHyperparameters, hyperparameters_from)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    """One of its networks; the family is known, and no other."""
    monkeypatch.setattr(families, "FAMILIES", (TOY,))
    torch.manual_seed(0)
    return Toy(4).eval().requires_grad_(False)


def test_one_name_in_the_tuple_makes_it_known(toy: Toy, tmp_path: Path) -> None:
    path, image = tmp_path / "toy.pth", torch.rand(1, 3, 8, 8)
    torch.save({"net": {f"module.{name}": value for name, value in toy.state_dict().items()}}, path)
    assert torch.equal(load(path)(image), toy(image))


def test_loading_as_this_family_ends_in_one_line(toy: Toy) -> None:
    state = toy.state_dict()
    wrong = [
        {},
        {"toy_in.weight": torch.tensor(1.0), "toy_out.weight": torch.tensor(1.0)},
        {name: value for name, value in state.items() if name != "attention.temperature"},
        state | {"toy_out.weight": torch.ones(3, 5, 1, 1)},
    ]
    for each in wrong:
        with pytest.raises(CheckpointError, match=r"^x\.pth.*toy") as caught:
            family_named("toy").load(each, "x.pth")
        assert "\n" not in str(caught.value)


def test_without_readers_it_is_shown_and_nothing_is_converted(toy: Toy, tmp_path: Path) -> None:
    torch.save(toy.state_dict(), tmp_path / "toy.pth")
    assert attention_layers(toy) == {}
    found = inspect_model(tmp_path / "toy.pth", Ranks(k=8, v=8), 16)
    assert found["layers"] == []
    assert "no reader is written for the attention of toy" in describe(found)


@pytest.mark.parametrize("command", [run_conversion, analyze_file])
def test_without_readers_convert_and_analyze_refuse_it_by_name(
    toy: Toy, tmp_path: Path, command: Callable[[Path, ConvertOptions], Any]
) -> None:
    torch.save(toy.state_dict(), tmp_path / "toy.pth")
    with pytest.raises(UsageError, match=r"toy\.pth: no reader is written for the attention of toy"):
        command(tmp_path / "toy.pth", make_options(output=tmp_path / "out"))
    assert [each.name for each in tmp_path.iterdir()] == ["toy.pth"]


def test_lowering_is_for_networks_of_its_own_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """GLMHA stands for something else in each: here without, in Restormer with the norm before it."""
    lowered = replace(TOY, readers=(MDTAReader(),), lowering={GLMHA: DeployedGLMHA})
    monkeypatch.setattr(families, "FAMILIES", (lowered, restormer.FAMILY))
    torch.manual_seed(0)
    image = torch.rand(1, 3, 16, 16)
    for model in (Toy(4), Restormer(dim=8, num_blocks=[1, 1, 1, 1], heads=[1, 1, 2, 4])):
        randomise(model)
        model.eval().requires_grad_(False)
        deployed = deploy(model)
        torch.testing.assert_close(deployed(image), model(image), rtol=1e-4, atol=1e-4)
        kinds = {type(module) for module in deployed.modules()}
        assert DeployedGLMHA in kinds and GLMHA not in kinds


def test_without_lowering_it_is_exported_plainly_with_a_note(toy: Toy, tmp_path: Path) -> None:
    report = export_onnx(toy, tmp_path / "toy.onnx")
    assert not report.rewritten
    assert report.notes == ("exported without rewrites for deployment: toy has no lowering for deployment",)
    assert export_onnx(toy, tmp_path / "half.onnx", precision="fp16").notes == report.notes


def test_without_specialise_a_mask_is_refused_by_name(toy: Toy) -> None:
    with pytest.raises(UsageError, match="--mask: toy has no form for one mask"):
        specialise_of(toy)


@pytest.mark.parametrize("asked, shown", [(8, 4), (4, None), (3, None)])
def test_inspect_lowers_the_ranks_of_its_estimate(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: int, shown: int | None
) -> None:
    """Its default rank is above the channels that a small network's heads have."""
    monkeypatch.setattr(families, "FAMILIES", (replace(TOY, readers=(MDTAReader(),)),))
    torch.save(toy.state_dict(), tmp_path / "toy.pth")
    found = inspect_model(tmp_path / "toy.pth", Ranks(k=asked, v=asked), 16, lowered=True)
    assert [layer["name"] for layer in found["layers"]] == ["attention"]
    said = [note for note in found["notes"] if "no head of this network has more than 4 channels" in note]
    assert len(said) == (shown is not None)
    assert found["estimate"]["ranks"] == str(Ranks(k=shown or asked, v=shown or asked))
