"""How a module is called: the arguments that its attention is made of, and the order of their axes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from csa2glmha.attention.layout import Layout, to_maps
from csa2glmha.core.problems import first_problem
from csa2glmha.core.strict_json import dumps
from csa2glmha.reading.operands import codes
from csa2glmha.reading.recording import Call, Value

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
#: Those that do not say height and width.
FLAT = ("tokens", "channel rows")


#: More arguments and channels than any module has.
Index = Annotated[int, Field(ge=0, le=2**20)]
PartT = TypeVar("PartT", bound="WiringPart")


class WiringPart(BaseModel):
    """A part of what a student's file says of a layer: stored as JSON, and checked when it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def from_json(cls: type[PartT], value: object) -> PartT:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: in one line, why it is none.
        """
        try:
            return cls.model_validate_json(dumps(value))
        except ValidationError as error:
            raise ValueError(first_problem(error)) from None

    def to_json(self) -> dict[str, object]:
        """JSON values, for a student's file."""
        return self.model_dump(mode="json", exclude_defaults=True)


class ArgumentPlace(WiringPart):
    """Where an argument of a call is.

    Attributes:
        position: of the argument in the module's signature.
        index: in that argument, where it is a tuple or a list.
    """

    position: Index
    index: Index | None = None

    def of(self, args: Sequence[Any]) -> Any:
        """The argument, from all of them in the order of the signature."""
        given = args[self.position]
        return given if self.index is None else given[self.index]


class Map(WiringPart):
    """A tensor among the arguments that is a map of features.

    Attributes:
        place: which.
        layout: the order of its axes.
        order: the channel that each channel of the canonical form is; empty: all as they are.
    """

    place: ArgumentPlace
    layout: Layout
    order: tuple[Index, ...] = ()

    def maps(self, args: Sequence[Any], size: tuple[int, int] | None) -> Tensor:
        """The argument as (B, C, H, W)."""
        maps = to_maps(self.place.of(args), self.layout, size)
        return maps[:, list(self.order)] if self.order else maps


class Branch(WiringPart):
    """A module inside that makes something of V, which is added to the result.

    Attributes:
        module: its name inside the attention module.
        entry, result: layouts of what it takes and of what it gives.
        order: the channel of the canonical V that each channel it takes is; empty: all as they are.
    """

    module: str
    entry: Layout
    result: Layout
    order: tuple[Index, ...] = ()


class Wiring(WiringPart):
    """All that connects the canonical form with one module's call.

    Attributes:
        values: what keys and values are projected from.
        queries: what queries are projected from, where that is another argument.
        output: layout of the result.
        size: where height and width are, for layouts that do not say.
        factor: what V is multiplied by before the attention.
        branch: what is made of V and added.
    """

    values: Map
    output: Layout
    queries: Map | None = None
    size: tuple[ArgumentPlace, ArgumentPlace] | None = None
    factor: Map | None = None
    branch: Branch | None = None

    @property
    def places(self) -> tuple[ArgumentPlace, ...]:
        """All arguments that matter."""
        maps = (self.values, self.queries, self.factor)
        return (*(each.place for each in maps if each is not None), *(self.size or ()))

    def size_of(self, args: Sequence[Any]) -> tuple[int, int] | None:
        """Height and width of a call, where they are arguments."""
        if self.size is None:
            return None
        height, width = self.size
        return int(height.of(args)), int(width.of(args))

    def inputs(self, args: Sequence[Any]) -> tuple[Tensor, ...]:
        """What the attention is made from, (B, C, H, W): one input, or a second one for queries."""
        size = self.size_of(args)
        maps = (self.values,) if self.queries is None else (self.values, self.queries)
        return tuple(each.maps(args, size) for each in maps)

    def factors(self, args: Sequence[Any], width: int) -> Tensor | None:
        """What V, of so many channels, is multiplied by, (B, width, H, W); None: nothing."""
        if self.factor is None:
            return None
        return self.factor.maps(args, self.size_of(args)).expand(-1, width, -1, -1)


#: One map (B, C, H, W) as the first argument, and another as the result.
ON_MAPS = Wiring(values=Map(place=ArgumentPlace(position=0), layout="maps"), output="maps")


def signature_of(module: nn.Module) -> inspect.Signature:
    """How a module is called, without annotations: they may be of any kind."""
    signature = inspect.signature(module.forward)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)


def in_words(signature: inspect.Signature) -> str:
    """A signature with its names alone: what defaults are does not matter.

    >>> in_words(inspect.signature(lambda x, size=(3, 4), *, mask=None: x))
    '(x, size=..., *, mask=...)'
    """
    bare = [
        each if each.default is inspect.Parameter.empty else each.replace(default=...)
        for each in signature.parameters.values()
    ]
    return str(signature.replace(parameters=bare)).replace("=Ellipsis", "=...")


def bind(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of a call in the order of the signature, however they were given."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return tuple(bound.arguments.values())


def called(signature: inspect.Signature, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call, from all of them in the order of the signature."""
    names = list(signature.parameters)
    bound = inspect.BoundArguments(signature, dict(zip(names, args, strict=True)))
    return bound.args, bound.kwargs


def arguments_of(call: Call) -> tuple[Any, ...]:
    """As :func:`bind`, of a recorded call; values stand for tensors."""
    return bind(signature_of(call.module), call.args, call.kwargs)


def place_of(call: Call, value: Value) -> ArgumentPlace | None:
    """The argument that ``value`` is in a call; None: it is none."""
    for position, given in enumerate(arguments_of(call)):
        if given is value:
            return ArgumentPlace(position=position)
        if isinstance(given, list | tuple):
            for index, each in enumerate(given):
                if each is value:
                    return ArgumentPlace(position=position, index=index)
    return None


def places_of_size(call: Call, size: tuple[int, int]) -> tuple[ArgumentPlace, ArgumentPlace] | None:
    """The two integers among the arguments that are height and width."""
    found: list[tuple[ArgumentPlace, int]] = []
    for position, given in enumerate(arguments_of(call)):
        if type(given) is int:
            found.append((ArgumentPlace(position=position), given))
        elif isinstance(given, list | tuple):
            numbers = [(index, each) for index, each in enumerate(given) if type(each) is int]
            found += [(ArgumentPlace(position=position, index=index), each) for index, each in numbers]
    height = [place for place, number in found if number == size[0]]
    width = [place for place, number in found if number == size[1] and place not in height[:1]]
    return (height[0], width[0]) if height and width else None


def as_matrix(tensor: Tensor, layout: Layout) -> Tensor | None:
    """A tensor of one image in a layout as (C, pixels in raster order); None: it has not that many axes."""
    if tensor.ndim != (3 if layout in FLAT else 4) or tensor.shape[0] != 1:
        return None
    if layout in ("maps", "channel rows"):
        return tensor.flatten(2)[0]
    return tensor.reshape(-1, tensor.shape[-1]).t()


def layout_of(argument: Value, arrived: Tensor) -> tuple[Layout, tuple[int, ...]] | None:
    """The layout of ``argument``, and which of its channels have arrived where.

    Args:
        argument: a tensor of one image.
        arrived: its :func:`~csa2glmha.reading.trails.codes` after some views: (channels, pixels).

    Returns:
        The layout and the order of channels, empty where all are as they were; None: it is no layout.
    """
    own = codes(argument)
    for layout in LAYOUTS:
        matrix = as_matrix(own, layout)
        if matrix is None or matrix.shape[1] != arrived.shape[1]:
            continue
        first = {code: channel for channel, code in enumerate(matrix[:, 0].tolist())}
        order = [first.get(code, -1) for code in arrived[:, 0].tolist()]
        if -1 not in order and torch.equal(matrix[order], arrived):
            plain = order == list(range(matrix.shape[0]))
            return layout, () if plain else tuple(order)
    return None


def size_in(shape: tuple[int, ...], layout: Layout) -> tuple[int, int] | None:
    """Height and width of a tensor in a layout, None where the layout does not say."""
    if layout in FLAT:
        return None
    return (shape[2], shape[3]) if layout == "maps" else (shape[1], shape[2])
