"""How a recorded layer is read, and the layer that takes its place, called exactly as the module is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.glmha import GLMHA
from csa2glmha.attention.guided import GuidedAttention
from csa2glmha.attention.layout import from_maps, to_maps
from csa2glmha.attention.pointwise import PointwiseGLMHA
from csa2glmha.reading.wiring import ON_MAPS, Branch, Wiring, bind, signature_of


class RecordedReader:
    """Reads the one module that a recording has shown, as a :class:`~csa2glmha.reading.reader.Reader`.

    Args:
        module: the module.
        form: its canonical form.
        wiring: where its inputs are among the module's arguments.
        plain: it is called with one map alone, by position, as GLMHA itself is.
    """

    def __init__(
        self, module: nn.Module, form: ChannelAttention, wiring: Wiring, plain: bool = False
    ) -> None:
        self.module_type = type(module)
        self.wiring = wiring
        self._form = form
        self._signature = signature_of(module)
        self._plain = plain and wiring == ON_MAPS and not form.from_moments

    def read(self, module: nn.Module) -> ChannelAttention:
        """The layer in canonical form, on the module's device."""
        parameter = next(module.parameters(), None)
        return self._form if parameter is None else _moved(self._form, parameter)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of a call in the order of the module's signature."""
        return bind(self._signature, args, kwargs)

    def attention_inputs(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """The (B, C, H, W) input of the projections, and a second one where queries have their own."""
        return self.wiring.inputs(args)

    def module_output(self, args: tuple[Any, ...], maps: Tensor) -> Tensor:
        """The attention's output (B, out, H, W) in the layout that the module returns."""
        return from_maps(maps, self.wiring.output)

    def value_factors(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """What V is multiplied by before the attention, (B, heads * c, H, W); None: nothing."""
        return self.wiring.factors(args, self._form.output.shape[1])

    def value_branch(self, module: nn.Module) -> Callable[[Tensor], Tensor] | None:
        """From V (B, heads * c, H, W), without factors, to what is added to the output; None: nothing."""
        return self._branch(module)

    def build(self, module: nn.Module, config: GLMHAConfig) -> nn.Module:
        """An uninitialised replacement that is called as the module is, with the module's own branch."""
        if self._plain:
            return GLMHA(config)  # which deployment knows
        kind = RecordedPointwiseGLMHA if self._form.from_moments else RecordedGLMHA
        return kind(config, self.wiring, self._signature, self._branch(module))

    def _branch(self, module: nn.Module) -> _BranchOnMaps | None:
        branch = self.wiring.branch
        return None if branch is None else _BranchOnMaps(branch, module.get_submodule(branch.module))


class _BranchOnMaps(nn.Module):
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
        branch: _BranchOnMaps | None,
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


def _moved(form: ChannelAttention, like: Tensor) -> ChannelAttention:
    """The form on the device of a parameter."""

    def to(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(like.device)

    def part(projection: Projection) -> Projection:
        return replace(
            projection,
            pointwise=projection.pointwise.to(like.device),
            pointwise_bias=to(projection.pointwise_bias),
            depthwise=to(projection.depthwise),
            depthwise_bias=to(projection.depthwise_bias),
        )

    return replace(
        form,
        queries=part(form.queries),
        keys=part(form.keys),
        values=part(form.values),
        temperature=form.temperature.to(like.device),
        output=form.output.to(like.device),
        output_bias=to(form.output_bias),
    )
