"""What hyper-parameters may be, checked before a network is built from a file's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

#: A 3x3 convolution of this many channels has 38 G weights: nothing that is stored is wider.
Width = Annotated[int, Field(ge=1, le=2**16)]
Heads = Annotated[int, Field(ge=1, le=2**16)]
Blocks = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=1, le=2**16)]


class _Hyperparameters(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @property
    def blocks(self) -> int:
        """Blocks and other modules that are built one by one."""
        raise NotImplementedError


class RestormerHyperparameters(_Hyperparameters):
    """Of :class:`csa2glmha.families.restormer.network.Restormer`."""

    in_channels: Width
    out_channels: Width
    dim: Width
    num_blocks: list[Blocks] = Field(min_length=4, max_length=4)
    num_refinement_blocks: Annotated[int, Field(ge=0)]
    heads: list[Heads] = Field(min_length=4, max_length=4)
    ffn_expansion_factor: Annotated[float, Field(gt=0, le=2**16)]
    bias: bool
    norm_bias: bool
    dual_pixel: bool

    @property
    def blocks(self) -> int:
        return sum(self.num_blocks) + self.num_refinement_blocks

    def model_post_init(self, context: Any) -> None:
        for level, heads in enumerate(self.heads):
            if self.dim * 2**level % heads:
                raise ValueError(f"heads: {heads} do not divide {self.dim * 2**level} channels evenly")
        # The topmost decoder level is twice as wide, with the heads of the first.
        if int(self.dim * self.ffn_expansion_factor) < 1:
            raise ValueError("ffn_expansion_factor: leaves no hidden channel")


class MSTHyperparameters(_Hyperparameters):
    """Of :class:`csa2glmha.families.spectral.mst.MST`."""

    dim: Width
    num_blocks: list[Blocks] = Field(min_length=1, max_length=8)
    mask_size: list[Side] | None = Field(None, min_length=2, max_length=2)

    @property
    def blocks(self) -> int:
        return sum(self.num_blocks)


class MSTPlusPlusHyperparameters(_Hyperparameters):
    """Of :class:`csa2glmha.families.spectral.mst_plus_plus.MSTPlusPlus`."""

    in_channels: Width
    n_feat: Width
    stage: Blocks
    num_blocks: list[Blocks] = Field(min_length=1, max_length=4)

    @property
    def blocks(self) -> int:
        return self.stage * sum(self.num_blocks)


_OF: dict[str, type[_Hyperparameters]] = {
    "restormer": RestormerHyperparameters,
    "mst": MSTHyperparameters,
    "mst_plus_plus": MSTPlusPlusHyperparameters,
}


def check_hyperparameters(name: str, values: Mapping[str, Any], tensors: int) -> dict[str, Any]:
    """The hyper-parameters of an architecture, if a network of them can be in a file.

    Args:
        name: of the architecture.
        values: the hyper-parameters as the file has them.
        tensors: how many the file holds; every block of a network has some.

    Raises:
        ValueError: the first problem, in one line.
        KeyError: there is no such architecture.
        TypeError: the values are no mapping.
    """
    try:
        checked = _OF[name](**values)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    if checked.blocks > tensors:
        raise ValueError(f"{checked.blocks} blocks, but only {tensors} tensors")
    return dict(values)


def first_problem(error: ValidationError) -> str:
    """What pydantic says first, in one line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
