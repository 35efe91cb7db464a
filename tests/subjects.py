"""The families that the conformance suite runs over: the one place in it that knows their modules.

A new family gets the whole suite (`conformance.py`) by one entry in :data:`SUBJECTS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.data.batches import Inputs
from csa2glmha.data.inputs.cassi import initial_cube, shifted_mask
from csa2glmha.data.inputs.masks import load_mask
from csa2glmha.families import FAMILIES
from csa2glmha.families.registry import build, family_named, specialise_of
from csa2glmha.networks import RestorationModel

State = dict[str, Tensor]


def family_names() -> tuple[str, ...]:
    """The families that csa2glmha supports."""
    return tuple(family.name for family in FAMILIES)


def load_as(name: str, state: State, source: str) -> RestorationModel:
    """Load a state dict as one of a family that is given, whatever it looks like."""
    return family_named(name).load(state, source)


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights that give attention maps, guides and gates that differ from image to image."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("temperature", "rescale")):
                parameter.copy_(2 + noise.abs())
            elif "norm" in name or parameter.ndim < 2:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise / math.sqrt(max(1, parameter[0].numel())))


def scene(channels: int, height: int, width: int, batch: int = 1, seed: int = 1) -> Tensor:
    """Smooth images, dark on the left and bright on the right: parts are unlike the whole."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 5, 7, generator=generator)
    image = F.interpolate(coarse, (height, width), mode="bicubic")
    return image * torch.linspace(0.1, 1, width) + 0.1 * torch.randn(image.shape, generator=generator)


def image_alone(model: RestorationModel, height: int, width: int, batch: int = 1, seed: int = 1) -> Inputs:
    """The inputs of a network that takes an image and nothing else."""
    return (scene(model.in_channels, height, width, batch, seed),)


def image_and_mask(model: RestorationModel, height: int, width: int, batch: int = 1, seed: int = 1) -> Inputs:
    """An image and the dispersed mask of a CASSI, the same for all images of a size."""
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(5))
    image = scene(model.in_channels, height, width, batch, seed)
    return image, shifted_mask(mask, model.in_channels)


Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Fixture:
    """What the official code made of an input, in the shared folder.

    Attributes:
        checkpoint, arrays: official weights, and an .npz of inputs and output.
        hyperparameters: what is read from the weights.
        inputs: from the arrays and the shared folder to the inputs of the network.
        output: name of the array that the network's output is compared with.
        stride: between the pixels of the output that are kept in it.
        tolerance: largest difference, over the largest value.
    """

    checkpoint: str
    arrays: str
    hyperparameters: Mapping[str, Any]
    inputs: Callable[[Arrays, Path], Inputs] = lambda arrays, _: (torch.from_numpy(arrays["input"]),)
    output: str = "output"
    stride: int = 1
    tolerance: float = 1e-4


@dataclass(frozen=True, eq=False)  # by identity, so that networks can be kept for it
class Subject:
    """One family, and what the suite has to know of it.

    Attributes:
        name: of the family, as a checkpoint is recognised by and `inspect` shows.
        tiny: hyper-parameters of a network of a few thousand weights that has every kind of part.
        layers: how many attention layers that has.
        shared: how many other layers that look at all pixels at once.
        container, prefix: where the authors' training code puts the weights in a file: ``{container:
            {prefix + name: ...}}``; None where the file has nothing but the weights.
        relative: from the state dict of the tiny network to that of a similar network that is not supported.
        refusal: what the error that refuses it says; a regular expression.
        inputs: makes inputs of (model, height, width, batch, seed).
        rank: of keys and values of a student that is not exact.
        rounding: of outputs that are the same in exact numbers, over the largest value. Float32 has 1.2e-7,
            and a network sums thousands of values.
        odd_sizes: it takes images of any size, and pads inside.
        fix: makes the network for one size of image from (model, inputs), where the family has such a form.
        overlap: pixels by which tiles of the tiny network overlap: no less than its receptive field reaches,
            and a multiple of the size that it pads to.
        fixtures: outputs of the official code.
    """

    name: str
    tiny: Mapping[str, Any]
    layers: int
    container: str | None
    prefix: str
    relative: Callable[[State], State]
    refusal: str
    shared: int = 0
    inputs: Callable[..., Inputs] = image_alone
    rank: int = 2
    rounding: float = 1e-5
    odd_sizes: bool = True
    fix: Callable[[RestorationModel, Inputs], RestorationModel] | None = None
    overlap: int = 72
    fixtures: tuple[Fixture, ...] = ()

    def build(self) -> RestorationModel:
        """The tiny network, the same every time, in eval mode without gradients."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build(self.name, self.tiny)
        randomise(model)
        return model.eval().requires_grad_(False)


def _renamed(**names: str) -> Callable[[State], State]:
    """A change of the names of weights, with ``__`` for a dot."""
    dotted = {old.replace("__", "."): new.replace("__", ".") for old, new in names.items()}
    return lambda state: {dotted.get(key, key): value for key, value in state.items()}


def _mst_of_rgb(state: State) -> State:
    rest = {key: value for key, value in state.items() if key != "embedding.weight"}
    return rest | {f"embedding_{number}.weight": state["embedding.weight"] for number in (1, 2)}


def _cassi_inputs(arrays: Arrays, shared: Path) -> Inputs:
    mask = shifted_mask(load_mask(shared / "data/cassi/simu_mask.mat"))
    return initial_cube(torch.from_numpy(arrays["measurement"])), mask


def _with_mask(model: RestorationModel, inputs: Inputs) -> RestorationModel:
    return specialise_of(model).bake(model, inputs[1])


_RESTORMER = {"in_channels": 3, "out_channels": 3, "dual_pixel": False}

SUBJECTS: dict[str, Subject] = {
    "restormer": Subject(
        name="restormer",
        tiny={"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 2, 4]},
        layers=8,
        container="params",
        prefix="",
        relative=_renamed(output__weight="head__weight"),
        refusal=r"closest is restormer, but it has no output\.weight",
        rank=3,
        # Its levels, with two 3x3 convolutions a block and one to change level, reach over
        # 1 + 2 (2 + 1) + 2 (4 + 2) + 2 (8 + 4) + (16 + 8) + 2 = 69 pixels.
        fixtures=(
            Fixture(
                "parity/restormer_biasfree.pth",
                "parity/restormer_biasfree_io.npz",
                _RESTORMER
                | {"dim": 16, "num_blocks": [1, 2, 1, 1], "num_refinement_blocks": 1, "heads": [1, 2, 4, 8]}
                | {"ffn_expansion_factor": 2.66, "bias": False, "norm_bias": False},
            ),
            Fixture(
                "parity/restormer_withbias.pth",
                "parity/restormer_withbias_io.npz",
                _RESTORMER
                | {"dim": 24, "num_blocks": [1, 1, 2, 1], "num_refinement_blocks": 2, "heads": [1, 1, 2, 4]}
                | {"ffn_expansion_factor": 2.0, "bias": True, "norm_bias": True},
            ),
        ),
    ),
    "promptir": Subject(
        name="promptir",
        tiny={"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 2, 4]}
        | {"prompt_length": 3, "prompt_channels": [4, 6, 8], "prompt_sizes": [8, 6, 4]},
        layers=11,
        shared=3,
        container="state_dict",
        prefix="net.",
        relative=_renamed(output__weight="head__weight"),
        refusal=r"closest is promptir, but it has no output\.weight",
        rank=3,
        # As Restormer, and two convolutions in each block behind a prompt: 69 + 2 (8 + 4 + 2).
        overlap=104,
        fixtures=(
            Fixture(
                "parity/promptir.pth",
                "parity/promptir_io.npz",
                {"in_channels": 3, "out_channels": 3, "dim": 48, "num_blocks": [1, 1, 1, 1]}
                | {"num_refinement_blocks": 1, "heads": [1, 2, 4, 8], "ffn_expansion_factor": 2.66}
                | {"bias": False, "norm_bias": True, "prompt_length": 5}
                | {"prompt_channels": [64, 128, 320], "prompt_sizes": [64, 32, 16]},
            ),
        ),
    ),
    "retinexformer": Subject(
        name="retinexformer",
        tiny={"n_feat": 8, "stage": 2, "num_blocks": [1, 1, 1]},
        layers=10,
        container="params",
        prefix="",
        relative=_renamed(body__0__denoiser__mapping__weight="body__0__denoiser__tail__weight"),
        refusal=r"closest is retinexformer, but it has no body\.0\.denoiser\.mapping\.weight",
        # A stage: 2 for the light, then levels with three 3x3 convolutions a block and one to change level,
        # 2 + 1 + 2 (3 + 2) + 2 (6 + 4) + 12 + 1 = 46.
        overlap=92,
        fixtures=(
            Fixture(
                "parity/retinexformer.pth",
                "parity/retinexformer_io.npz",
                {"in_channels": 3, "n_feat": 16, "stage": 1, "num_blocks": [1, 1, 1]},
            ),
        ),
    ),
    "cidnet": Subject(
        name="cidnet",
        tiny={"channels": [8, 8, 12, 16], "heads": [2, 2, 4], "ffn_expansion_factor": 2.5},
        layers=11,
        container=None,
        prefix="",
        relative=_renamed(trans__density_k="trans__k"),
        refusal=r"closest is cidnet, but it has no trans\.density_k",
        # In the branch of colour norms follow each other without a residual, and each magnifies rounding.
        rounding=5e-5,
        # Three 3x3 convolutions a block, two blocks a level, one convolution and one pixel of resizing to
        # change level: 1 + 2 + 2 (6 + 4) + 4 (6 + 4) + 8 (6 + 2) + 1 = 128.
        overlap=128,
        fixtures=(
            Fixture(
                "parity/cidnet.pth",
                "parity/cidnet_io.npz",
                {
                    "channels": [24, 24, 48, 96],
                    "heads": [2, 4, 8],
                    "ffn_expansion_factor": 2.66,
                    "norm": False,
                },
            ),
        ),
    ),
    "mst": Subject(
        name="mst",
        tiny={"dim": 4, "num_blocks": [1, 1, 1]},
        layers=5,
        container="state_dict",
        prefix="module.",
        relative=_mst_of_rgb,
        refusal="MST for RGB images, of NTIRE 2022",
        inputs=image_and_mask,
        odd_sizes=False,
        fix=_with_mask,
        fixtures=(
            Fixture(
                "checkpoints/mst_s.pth",
                "parity/mst_s_io.npz",
                {"dim": 28, "num_blocks": [2, 2, 2]},
                _cassi_inputs,
                output="output_strided",
                stride=8,
                tolerance=1e-5,
            ),
        ),
    ),
    "mst_plus_plus": Subject(
        name="mst_plus_plus",
        tiny={"n_feat": 5, "stage": 1, "num_blocks": [1, 1, 1]},
        layers=5,
        container="state_dict",
        prefix="module.",
        relative=lambda state: state | {"fution.weight": torch.ones(5, 8, 1, 1)},
        refusal=r"MST\+\+ for CASSI measurements \(with a fusion of 8 to 5 channels",
        fixtures=(
            Fixture(
                "parity/mstpp_stage1.pth",
                "parity/mstpp_stage1_io.npz",
                {"in_channels": 3, "n_feat": 31, "stage": 1, "num_blocks": [1, 1, 1]},
                tolerance=1e-5,
            ),
        ),
    ),
}


def subject_of(name: str) -> Subject:
    """The entry of a family that csa2glmha supports."""
    assert name in SUBJECTS, (
        f"csa2glmha supports the family {name}, which the conformance suite does not know: add "
        f"{name!r}: Subject(name={name!r}, tiny=..., layers=..., container=..., prefix=..., relative=..., "
        "refusal=...) to SUBJECTS in tests/subjects.py, and its official outputs as fixtures"
    )
    return SUBJECTS[name]
