"""Layers in the place of a recorded module, called as that is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.glmha import GLMHA
from csa2glmha.attention.guided import GuidedAttention
from csa2glmha.attention.layout import from_maps, to_maps
from csa2glmha.attention.pointwise import PointwiseGLMHA
from csa2glmha.reading.given_map import GivenMap
from csa2glmha.reading.wiring import Branch, Wiring, bind, called


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


class MapOnlyGLMHA(RecordedGLMHA):
    """GLMHA's attention map in a module that makes and mixes its values itself, called as that is.

    Args:
        config: of the attention, without an output: ``out_channels`` is 0.
        wiring: where the inputs of queries and keys are among the arguments.
        signature: of the module.
        given: where the module uses its map.
        module: without what makes queries and keys.
    """

    def __init__(
        self,
        config: GLMHAConfig,
        wiring: Wiring,
        signature: inspect.Signature,
        given: GivenMap,
        module: nn.Module,
    ) -> None:
        super().__init__(config, wiring, signature, None)
        self.register_parameter("output", None)
        self.given, self.module = given, module

    def attend(self, args: tuple[Any, ...]) -> Any:
        """What the module returns, with the map that its own input makes."""
        return self.apply_matrix(args, self.matrix(self.moments_of(args)))

    def fold(
        self, attention: Tensor, value_gates: Tensor | None = None, output: Tensor | None = None
    ) -> Tensor:
        """The map as it is: (B, heads, c, c)."""
        return attention

    def apply_matrix(self, args: tuple[Any, ...], matrix: Tensor) -> Any:
        """What the module returns with that map."""
        positional, named = called(self.signature, args)
        return self.given.run(lambda: self.module(*positional, **named), matrix)
