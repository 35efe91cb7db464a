"""How a recorded layer is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.layout import from_maps
from csa2glmha.reading.replacement import Replacement
from csa2glmha.reading.wired import branch_of
from csa2glmha.reading.wiring import bind, signature_of


class RecordedReader:
    """Reads the one module that a recording has shown, as a :class:`~csa2glmha.reading.reader.Reader`.

    Args:
        module: the module.
        form: its canonical form.
        replacement: what takes its place.
    """

    def __init__(self, module: nn.Module, form: ChannelAttention, replacement: Replacement) -> None:
        self.module_type = type(module)
        self.replacement = replacement
        self.wiring = replacement.wiring
        self._form = form
        self._signature = signature_of(module)

    def __deepcopy__(self, memo: dict[int, object]) -> RecordedReader:
        """The same: networks are copied with what they carry, and the form is as large as the attention."""
        return self

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
        return branch_of(self.wiring, module)

    def build(self, module: nn.Module, config: GLMHAConfig) -> nn.Module:
        """An uninitialised replacement that is called as the module is, with the module's own branch."""
        return self.replacement.build(module, config)


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
