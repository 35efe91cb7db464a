"""What takes the place of a recorded module, called as that is: the layer, and how it is made again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.glmha import GLMHA
from csa2glmha.attention.guided import GuidedAttention
from csa2glmha.attention.layout import from_maps, to_maps
from csa2glmha.attention.pointwise import PointwiseGLMHA
from csa2glmha.core.problems import first_problem
from csa2glmha.core.strict_json import dumps
from csa2glmha.reading.wiring import ON_MAPS, Branch, Part, Wiring, bind, in_words, signature_of


class Replacement(Part):
    """What takes the place of a recorded module: all that is needed to make it but the GLMHA configuration.

    A student's file holds one for each layer, so that its network need not be recorded again.

    Attributes:
        kind: tells it from other ways to replace a module.
        plain: the module is called with one map alone, by position, as GLMHA itself is.
        from_moments: second moments of the input give the logits.
        signature: of the module, as :func:`~csa2glmha.reading.wiring.in_words` gives it.
        wiring: where the inputs of the attention are among the module's arguments.
    """

    kind: Literal["attention"] = "attention"
    plain: bool
    from_moments: bool
    signature: str
    wiring: Wiring

    @classmethod
    def of(
        cls, module: nn.Module, form: ChannelAttention, wiring: Wiring, alone: bool = False
    ) -> Replacement:
        """That of a module of this form; ``alone``: all its calls have one argument, given by position."""
        return cls(
            plain=alone and wiring == ON_MAPS and not form.from_moments,
            from_moments=form.from_moments,
            signature=in_words(signature_of(module)),
            wiring=wiring,
        )

    @classmethod
    def from_json(cls, value: object) -> Replacement:
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
        return self.model_dump(mode="json", exclude_defaults=True) | {"kind": self.kind}

    @property
    def value_branch(self) -> bool:
        """As of the canonical form: all of V is needed."""
        return self.wiring.branch is not None or self.wiring.factor is not None

    def check(self, module: nn.Module, config: GLMHAConfig) -> None:
        """Raise ValueError, in one line, unless this was made for such a module and configuration."""
        signature, wiring = signature_of(module), self.wiring
        now = in_words(signature)
        if now != self.signature:
            raise ValueError(f"its module was called with {self.signature} then, and is with {now} now")
        if any(place.position >= len(signature.parameters) for place in wiring.places):
            raise ValueError(f"wiring: {now} has no such argument")
        if (wiring.queries is None) != (config.query_channels is None) or (
            wiring.queries and self.from_moments
        ):
            raise ValueError("wiring: one with an input for queries and a layer without do not go together")
        if self.plain and (wiring != ON_MAPS or self.from_moments):
            raise ValueError("plain: this layer is not called with one map alone")
        width = config.heads * config.head_channels
        orders = [each.order for each in (wiring.factor, wiring.branch) if each is not None]
        if any(order and len(order) != width for order in orders):
            raise ValueError(f"order: not of the {width} channels that V has")
        if wiring.branch is not None:
            if wiring.branch.order and max(wiring.branch.order) >= width:
                raise ValueError(f"order: not of the {width} channels that V has")
            try:
                module.get_submodule(wiring.branch.module)
            except AttributeError:
                raise ValueError(f"branch: its module has no {wiring.branch.module!r}") from None

    def build(self, module: nn.Module, config: GLMHAConfig) -> nn.Module:
        """An uninitialised layer that is called as the module is, with the module's own branch."""
        layer: GuidedAttention
        if self.plain:
            layer = GLMHA(config)  # which deployment knows
        else:
            kind = RecordedPointwiseGLMHA if self.from_moments else RecordedGLMHA
            layer = kind(config, self.wiring, signature_of(module), branch_of(self.wiring, module))
        vars(layer)["replacement"] = self
        return layer


def put_replacement(model: nn.Module, name: str, replacement: Replacement, config: GLMHAConfig) -> None:
    """Put an uninitialised layer, without memory for its weights, in the place of the module of that name.

    Raises:
        ValueError: there is no such module, or it is called otherwise.
    """
    try:
        module = model.get_submodule(name) if name else model
    except AttributeError:
        raise ValueError("the network has no module of this name") from None
    replacement.check(module, config)
    with torch.device("meta"):
        model.set_submodule(name, replacement.build(module, config))


def replacement_of(layer: nn.Module) -> Replacement | None:
    """How a layer of a student was made, where its teacher was recorded."""
    found: Replacement | None = vars(layer).get("replacement")
    return found


def branch_of(wiring: Wiring, module: nn.Module) -> BranchOnMaps | None:
    """What a module makes of V beside its attention, from maps to maps; None: nothing."""
    branch = wiring.branch
    return None if branch is None else BranchOnMaps(branch, module.get_submodule(branch.module))


class BranchOnMaps(nn.Module):
    """What is made of V, from maps to maps."""

    def __init__(self, branch: Branch, module: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.module = module

    def forward(self, values: Tensor) -> Tensor:
        """From V (B, heads * c, H, W) to (B, out, H, W)."""
        taken = values[:, list(self.branch.order)] if self.branch.order else values
        made: Tensor = self.module(from_maps(taken, self.branch.entry))
        return to_maps(made, self.branch.result, (values.shape[2], values.shape[3]))


class _Wired(GuidedAttention):
    """A layer that is called as the module was that it replaces.

    Args:
        config: of the attention.
        wiring: where its inputs are among the arguments.
        signature: of the module that it replaces.
        branch: makes what is added to the output of V, taken over as it is.
    """

    def __init__(
        self,
        config: GLMHAConfig,
        wiring: Wiring,
        signature: inspect.Signature,
        branch: BranchOnMaps | None,
    ) -> None:
        super().__init__(config)
        self.wiring, self.signature, self.branch = wiring, signature, branch

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of a call in the order of the module's signature."""
        return bind(self.signature, args, kwargs)

    def inputs_of(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """What the attention is made from, (B, C, H, W), and a second input for queries, from a call's."""
        return self.wiring.inputs(args)

    def value_factors(self, args: tuple[Any, ...]) -> Tensor | None:
        """What V is multiplied by before the attention, (B, heads * c, H, W); None: nothing."""
        return self.wiring.factors(args, self.config.heads * self.config.head_channels)

    def value_branch(self, values: Tensor) -> Tensor | None:
        """What is made of V (B, heads * c, H, W) and added to the output; None: nothing."""
        return None if self.branch is None else self.branch(values)

    def module_output(self, args: tuple[Any, ...], maps: Tensor) -> Tensor:
        """What the module returned, from the output (B, out_channels, H, W)."""
        return from_maps(maps, self.wiring.output)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.attend(self.bind(args, kwargs))


class RecordedGLMHA(_Wired, GLMHA):
    """GLMHA in the place of any module, called as that is."""


class RecordedPointwiseGLMHA(_Wired, PointwiseGLMHA):
    """The same, where second moments of the input give the logits."""
