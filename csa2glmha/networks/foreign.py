"""A network of the user's own, with all that a network of a known family has."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from csa2glmha.core.errors import NetworkError
from csa2glmha.core.users_code import calls_users_code
from csa2glmha.networks.builder import Origin, label_of
from csa2glmha.networks.model import (
    IMAGE,
    LARGEST_SCALE,
    LOGITS,
    RestorationModel,
    reflect_pad_to,
    reflect_pad_to_multiple,
    scaled,
)
from csa2glmha.networks.ranges import RANGES

Shape = tuple[int, ...]
#: Inputs that a network may have.
MOST_INPUTS = 4
#: Numbers in an input.
_LARGEST = 1 << 28
#: What a classifier names its inputs, for :mod:`csa2glmha.data.inputs`: images with a class each.
CLASSES = "classes"

calls_users_code(__file__)


@dataclass(frozen=True)
class Interface:
    """What a network takes and makes.

    Attributes:
        shapes: of inputs that it takes, in the order of its call; the first is an image (B, C, H, W).
        out_channels: of its output; of logits the number of classes.
        multiple: heights and widths must be multiples of it.
        scale: height and width of the output over those of the first input.
        fixed_size: height and width, where it takes one size only.
        value_range: of inputs and of an image as output, one of :data:`~csa2glmha.networks.ranges.RANGES`.
        output_index: which of several outputs counts.
        batches: several images at once give what each of them gives alone.
        output: an image, or logits (B, classes), as :attr:`RestorationModel.output_name`.
    """

    shapes: tuple[Shape, ...]
    out_channels: int
    multiple: int = 1
    scale: Fraction = Fraction(1)
    fixed_size: tuple[int, int] | None = None
    value_range: str = "0-1"
    output_index: int = -1
    batches: bool = True
    output: str = IMAGE

    def to_json(self) -> dict[str, Any]:
        """JSON values, for a student's file."""
        return {
            "shapes": [list(shape) for shape in self.shapes],
            "out_channels": self.out_channels,
            "multiple": self.multiple,
            "scale": str(self.scale),
            "fixed_size": None if self.fixed_size is None else list(self.fixed_size),
            "value_range": self.value_range,
            "output_index": self.output_index,
            "batches": self.batches,
            "output": self.output,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Interface:
        """The inverse.

        Raises:
            LookupError, TypeError, ValueError: these are none.
        """
        fixed = values["fixed_size"]
        found = cls(
            shapes_from(values["shapes"]),
            _positive(values["out_channels"]),
            _positive(values["multiple"]),
            Fraction(str(values["scale"])),
            None if fixed is None else (_positive(fixed[0]), _positive(fixed[1])),
            str(values["value_range"]),
            int(values["output_index"]),
            bool(values.get("batches", True)),  # files of earlier versions do not say
            str(values.get("output", IMAGE)),  # earlier versions took networks that make images alone
        )
        if len(found.shapes[0]) != 4 or found.value_range not in RANGES:
            raise ValueError("these are no inputs and outputs of a network")
        if found.output not in (IMAGE, LOGITS):
            raise ValueError(f"{found.output!r} is no kind of output")
        if not 0 < found.scale <= LARGEST_SCALE:
            raise ValueError(f"a scale of {found.scale} is none")
        return found


def shapes_from(value: Sequence[Sequence[object]]) -> tuple[Shape, ...]:
    """Shapes of a network's inputs out of a file.

    Raises:
        TypeError, ValueError: these are none.
    """
    shapes = tuple(tuple(_positive(size) for size in shape) for shape in value)
    if not shapes or any(math.prod(shape) > _LARGEST for shape in shapes):
        raise ValueError("these are no inputs of a network")
    return shapes


def _positive(value: object) -> int:
    if not isinstance(value, int) or not 0 < value < 1 << 24:
        raise ValueError(f"{value!r} is no size")
    return value


class ForeignNetwork(RestorationModel):
    """The user's network behind the contract of all others.

    It takes images of any height and width, with values in [0, 1], and makes one output of values in [0, 1],
    or logits of classes.

    Args:
        network: the user's, which is kept as it is under this name.
        interface: what that takes and makes.
        origin: where it came from.

    Attributes:
        refused: attention that cannot be converted: module and reason.
        refused_feed_forwards: feed-forward networks that cannot be narrowed, likewise.
        global_operators: what else sees all pixels at once, in words.
    """

    refused: tuple[tuple[str, str], ...] = ()
    refused_feed_forwards: tuple[tuple[str, str], ...] = ()
    global_operators: tuple[str, ...] = ()

    def __init__(self, network: nn.Module, interface: Interface, origin: Origin) -> None:
        super().__init__()
        self.network = network
        self.interface = interface
        self.origin = origin
        self.architecture = label_of(network)
        self.size_multiple = interface.multiple
        self.fixed_size = interface.fixed_size
        self.scale = interface.scale
        self.batches = interface.batches
        self.output_name = interface.output
        if interface.output == LOGITS:
            self.inputs = CLASSES
        more = range(2, len(interface.shapes) + 1)
        self.input_names = ("input", *(f"input{number}" for number in more))
        self.hyperparameters = {"network": origin.builder, **origin.arguments} | self._particulars()

    def _particulars(self) -> dict[str, Any]:
        """What is not as it usually is."""
        face = self.interface
        usual = Interface(face.shapes, face.out_channels)
        told = {
            "size multiple": (face.multiple, usual.multiple),
            "output scale": (str(face.scale), str(usual.scale)),
            "values": (face.value_range, usual.value_range),
            "output": (face.output_index, usual.output_index),
            "one image at a time": (not face.batches, not usual.batches),
            "classes": (face.out_channels if face.output == LOGITS else None, None),
        }
        return {name: value for name, (value, default) in told.items() if value != default}

    @property
    def argument_names(self) -> tuple[str, ...]:
        """What the user's network calls its inputs, where Python knows that."""
        names = list(inspect.signature(self.network.forward).parameters)
        return (
            tuple(names[: len(self.input_names)]) if len(names) >= len(self.input_names) else self.input_names
        )

    @property
    def in_channels(self) -> int:
        """Channels of the first input."""
        return self.interface.shapes[0][1]

    @property
    def out_channels(self) -> int:
        """Channels of the output, or classes."""
        return self.interface.out_channels

    def input_shapes(self, height: int, width: int, batch: int = 1) -> tuple[Shape, ...]:
        """Further inputs are larger or smaller than the first as in the example that the user gave."""
        first, *more = self.interface.shapes
        image = (batch, first[1], height, width)
        return (image, *(alike(shape, first, image) for shape in more))

    def forward(
        self,
        image: Tensor,
        second: Tensor | None = None,
        third: Tensor | None = None,
        fourth: Tensor | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) in [0, 1], and what further inputs there are, to images or logits.

        These are (B, C', scale H, scale W), and (B, classes).
        """
        # By name, one by one: PyTorch's exporter and its tracer know how many there are.
        inputs = (image, *(each for each in (second, third, fourth) if each is not None))
        height, width = image.shape[-2:]
        face = self.interface
        if not face.batches and len(image) > 1:
            singles = (each.split(1) for each in inputs)
            return torch.cat([self.forward(*single) for single in zip(*singles, strict=True)])
        values, multiple = RANGES[face.value_range], face.multiple
        if multiple > 1 and face.fixed_size is None:
            inputs = self._padded(inputs)
        inputs = tuple(map(values.enter, inputs))
        output = chosen_output(self.network(*inputs), face.output_index)
        if face.output == LOGITS:
            return output
        output = values.leave(output)
        if multiple > 1 and face.fixed_size is None:
            output = output[..., : scaled(height, face.scale), : scaled(width, face.scale)]
        return output

    def _padded(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The image padded to a size that the network takes, and further maps to what belongs to that."""
        image = reflect_pad_to_multiple(inputs[0], self.interface.multiple)
        first, *shapes = self.interface.shapes
        found = [image]
        for shape, given in zip(shapes, inputs[1:], strict=True):
            sides = alike(shape, first, tuple(image.shape))[2:]
            found.append(reflect_pad_to(given, *sides) if is_map(shape) else given)
        return tuple(found)


def users_own(model: nn.Module) -> nn.Module:
    """The user's own network, by whose names layers are called everywhere; of another network that itself."""
    return model.network if isinstance(model, ForeignNetwork) else model


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by those names, once for each name that one has; the network itself is ""."""
    yield "", model
    for name, module in users_own(model).named_modules(remove_duplicate=False):
        if name:
            yield name, module


def is_map(shape: Shape) -> bool:
    """Whether an input of this shape is as large as the image, or a part of it: four axes, and pixels."""
    return len(shape) == 4 and shape[2:] != (1, 1)


def alike(shape: Shape, first: Shape, image: Shape) -> Shape:
    """The shape that stands to ``image`` as it stands to ``first`` now.

    A side that is a whole number of times the image's, or a whole part of it, stays that. Any other has so
    many pixels more or fewer, as a mask that is moved along the bands of a cube.

    >>> alike((1, 8, 16, 62), (1, 8, 32, 48), (1, 8, 64, 96))
    (1, 8, 32, 110)
    """
    if not is_map(shape):
        return (image[0], *shape[1:])
    sides = zip(shape[2:], image[2:], first[2:], strict=True)
    return (image[0], shape[1], *(_side_alike(*each) for each in sides))


def _side_alike(side: int, now: int, then: int) -> int:
    whole = side % then == 0 or then % side == 0
    return side * now // then if whole else now + side - then


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in what a network returns, in their order; classes derived from tuple or dict, too."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list, Mapping)):
        for each in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(each)
    elif is_dataclass(output) and not isinstance(output, type):
        for each in vars(output).values():
            yield from _tensors(each)


def chosen_output(output: Any, index: int) -> Tensor:
    """One of the tensors that a network returns, alone or in tuples, lists, dicts and dataclasses.

    Raises:
        NetworkError: there is none of that number.
    """
    held = isinstance(output, (tuple, list, Mapping)) or is_dataclass(output)
    tensors = list(_tensors(output)) if held else [output]  # a symbolic trace's stand-in is no tensor
    if not tensors:
        kind = type(output).__name__
        raise NetworkError(
            f"the network makes no tensor, but a {kind} without one: return tensors, alone or in dicts"
        )
    if not -len(tensors) <= index < len(tensors):
        found = "1 output" if len(tensors) == 1 else f"{len(tensors)} outputs"
        raise NetworkError(f"--output-index {index}: the network makes {found}; give a smaller number")
    chosen: Tensor = tensors[index]
    return chosen
