"""What every supported network offers beyond being an ``nn.Module``."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

#: Names of outputs.
IMAGE, LOGITS = "output", "logits"
#: No network makes images larger than that.
LARGEST_SCALE = 64


def scaled(size: int, scale: Fraction) -> int:
    """A height or width of an input, in pixels of the output."""
    return size * scale.numerator // scale.denominator


class RestorationModel(nn.Module):
    """A network whose channel attention can be converted.

    Subclasses set :attr:`architecture` and fill :attr:`hyperparameters` with the JSON values that
    rebuild them, so that a student file describes itself.
    """

    #: Its name, in messages and files.
    architecture: str
    #: Its kind of inputs, by a name that :mod:`csa2glmha.data.inputs` knows: that says how files are opened,
    #: read, shaped and refused.
    inputs: str = "images"
    #: Names of the inputs in call order; they become the names in the ONNX file.
    input_names: tuple[str, ...] = ("input",)
    #: Feature maps are halved this often, so heights and widths are padded to this multiple inside.
    size_multiple: int = 8
    #: Height and width, where the network holds for one size only.
    fixed_size: tuple[int, int] | None = None

    #: It takes several images at once. Where it does not, its forward gives it one after the other.
    batches: bool = True
    #: What the output is called in the ONNX file: "output", with channels at every pixel, or "logits",
    #: (B, classes).
    output_name: str = IMAGE
    #: Height and width of the output over those of the input.
    scale: Fraction = Fraction(1)

    hyperparameters: dict[str, Any]

    @property
    def in_channels(self) -> int:
        """Channels of the (first) input."""
        raise NotImplementedError

    @property
    def out_channels(self) -> int:
        """Channels of the output, or classes."""
        raise NotImplementedError

    def input_shapes(self, height: int, width: int, batch: int = 1) -> tuple[tuple[int, ...], ...]:
        """Shapes of the inputs, in call order, for an image of ``height`` x ``width`` pixels."""
        return ((batch, self.in_channels, height, width),)

    def output_shape(self, height: int, width: int, batch: int = 1) -> tuple[int, ...]:
        """Shape of the output for an image of ``height`` x ``width`` pixels."""
        if self.output_name == LOGITS:
            return batch, self.out_channels
        return batch, self.out_channels, scaled(height, self.scale), scaled(width, self.scale)


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def skeleton_of(model: ModuleT) -> ModuleT:
    """The network with shapes only, so that a run takes no memory and hardly any time."""
    memo: dict[int, Any] = {
        id(tensor): nn.Parameter(tensor.to("meta"), requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else tensor.to("meta")
        for tensor in (*model.parameters(), *model.buffers())
    }
    return copy.deepcopy(model, memo)


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The model's output for one batch of inputs, which are moved to the model's device.

    Inputs that the model does not take are left out: one with a mask baked in takes no mask.
    """
    device = next(model.parameters()).device
    taken = len(getattr(model, "input_names", inputs))
    output: Tensor = model(*(each.to(device) for each in inputs[:taken]))
    return output


def reflect_pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) at the bottom and right by reflection to the next multiple.

    Written as an index look-up rather than ``F.pad``: it holds for images smaller than the padding
    (the reflection bounces), and it stays valid for any size in an exported graph.
    """
    return reflect_pad_to(x, *((side + multiple - 1) // multiple * multiple for side in x.shape[2:]))


def reflect_pad_to(x: Tensor, height: int, width: int) -> Tensor:
    """As :func:`reflect_pad_to_multiple`, to a height and width that are no less than those of ``x``."""
    for dim, padded in ((2, height), (3, width)):
        size = x.shape[dim]
        if not torch.compiler.is_exporting() and padded == size:
            continue
        # A triangle wave of period 2 (size - 1): 0 1 2 ... size-1 size-2 ... 1 0 1 ...
        last = size - 1
        position = torch.arange(padded, device=x.device)
        # The period is a tensor because the ONNX exporter takes no symbolic number as a divisor, and at
        # least 1 because a single row or column repeats: its index is 0 whatever the position.
        period = torch.full_like(position, torch.sym_max(2 * last, 1))
        # No abs: OpenVINO 2026.4 leaves whole numbers negative at fixed sizes, and reads beside the image.
        distance = position.remainder(period) - last
        index = last - torch.maximum(distance, -distance)
        x = x.index_select(dim, index)
    return x
